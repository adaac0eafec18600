"""`python -m shorthorn` is the command-line program."""

from shorthorn.cli import main

main()
