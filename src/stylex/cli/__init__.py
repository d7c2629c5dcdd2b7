"""The command line: one file a verb, each parses, calls one function and prints."""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPED = 143


def _too_early(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stylex: stopped before anything was begun\n")
    os._exit(STOPPED)


def main() -> None:
    """The program. What it needs takes seconds to import, and Ctrl-C may come in those too."""
    signal.signal(signal.SIGINT, _too_early)
    signal.signal(signal.SIGTERM, _too_early)
    from stylex.cli import app

    app.main()
