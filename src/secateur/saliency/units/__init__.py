"""Criteria of units, one file each; every module in this folder is loaded."""
