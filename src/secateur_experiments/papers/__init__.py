"""The experiments: data, training, the demonstration."""
