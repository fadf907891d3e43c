"""What stands for that which torch.export does not take of a model as it is."""
