"""Making it: the smaller network, and the proof."""
