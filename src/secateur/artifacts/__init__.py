"""Artifacts: the files that are written and read, and the sizes of networks."""
