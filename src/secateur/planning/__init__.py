"""What goes: orders of removal and budgets."""
