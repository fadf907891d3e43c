"""Tiny random networks as people write them, cut, and used as the originals were."""
