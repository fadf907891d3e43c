"""Planning: orders of removal and the budgets at which they end."""
