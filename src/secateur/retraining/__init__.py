"""Units removed in rounds, with training in between."""
