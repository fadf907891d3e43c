"""Refinement: all weights that stay, moved towards the original's own outputs."""
