"""The model's own code: whether it computes with the sizes that are left, and the attributes with which it does."""
