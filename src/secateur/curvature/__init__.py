"""The derivatives of E: in the gates, in the weights, of the loss in the outputs."""
