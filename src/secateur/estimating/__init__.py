"""What a job takes, before it starts."""
