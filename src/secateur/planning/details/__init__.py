"""Details of budgets, plans and sizes, and the kinds of files that there are."""
