"""Saliency, the worth of a unit or a weight: questions asked of E, and the registry of their criteria."""
