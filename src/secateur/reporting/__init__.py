"""What is shown: tables, pictures, progress."""
