"""The networks of the suite, by family; each file registers its own."""
