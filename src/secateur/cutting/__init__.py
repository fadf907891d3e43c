"""Cutting: the smaller network, and the proof that it computes the same."""
