"""What a model is called with: nested values, the form of each tensor, and which of them hold the samples."""
