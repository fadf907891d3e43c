"""What a unit or a weight is worth: questions asked of E, and the registry of their criteria."""
