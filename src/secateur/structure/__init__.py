"""The structure of a model: capture, axes, unit sets."""
