"""Commands of the command line, beside those in `secateur.cli`."""
