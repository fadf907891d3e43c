"""What is written: files and their sizes."""
