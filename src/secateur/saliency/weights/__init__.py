"""Criteria of single weights, one file each; every module in this folder is loaded."""
