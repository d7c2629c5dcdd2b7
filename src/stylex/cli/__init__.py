"""The command line: one file a verb, each parses, calls one function and prints."""

from stylex.cli.app import main

__all__ = ["main"]
