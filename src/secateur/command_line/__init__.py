"""What the command line does for its commands: the files it writes, the tables and JSON it prints."""
