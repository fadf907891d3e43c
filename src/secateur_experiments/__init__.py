"""Experiments with Secateur: the demonstration, the papers' figures, fast paths beside slow ones."""
