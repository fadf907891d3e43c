"""E(g): the mean loss over the data as a function of the gates, and how it is evaluated."""
