"""What it is worth: the gated loss E(g) and the criteria, one idea per file."""
