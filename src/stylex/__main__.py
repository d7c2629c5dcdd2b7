"""`python -m stylex`."""

from stylex.cli import main

main()
