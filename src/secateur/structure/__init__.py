"""What is there: capture, axes, unit sets."""
