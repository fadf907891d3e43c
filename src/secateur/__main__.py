"""``python -m secateur``: the command line."""

from secateur.cli import main

main()
