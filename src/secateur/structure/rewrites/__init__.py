"""Rewrites of captured graphs: the same values, by operations that everything else can work with."""
