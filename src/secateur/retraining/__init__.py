"""Removing units in rounds, with training in between."""
