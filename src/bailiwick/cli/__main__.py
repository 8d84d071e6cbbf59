"""`python -m bailiwick.cli`: the program without its entry point on PATH."""

from bailiwick.cli import main

main()
