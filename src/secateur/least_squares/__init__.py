"""Least squares from second moments or from rows: what a layer's weights should be."""
