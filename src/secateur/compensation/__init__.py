"""Weights that make up for removed units: targets, moments, fits, the surgeon."""
