"""The errors that stylex raises on purpose: each says what is wrong, where, and what to do.

And the one line that they quote of errors of other code."""

from __future__ import annotations


class StylexError(Exception):
    """Base of every error that a user can cause; the command line prints it as one line."""


class DataError(StylexError):
    """Images, tables or splits that cannot be used as they are."""


class ClassifierError(StylexError):
    """A classifier that cannot be loaded, or whose outputs are not what it promised."""


class ConfigError(StylexError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another."""


class RunError(StylexError):
    """A run directory that is missing something, of another version, or already in use."""


class CheckpointError(StylexError):
    """A file of weights that is damaged, incomplete, of another layout, or holds code."""


class TrainingDiverged(StylexError):  # noqa: N818 (what happened, not an error of ours)
    """Losses, weights or reconstructions went wrong for the second time; the last good checkpoint stays."""


class Stopped(StylexError):  # noqa: N818 (a request, no error)
    """Somebody asked the program to stop (Ctrl-C, SIGTERM); the work so far is safe and can be continued."""


REASON_LENGTH = 200
"""Characters of another program's error that a line of ours may quote."""

INTERPRETER = "The following operation failed in the TorchScript interpreter."
"""How TorchScript's errors begin; what failed stands in their last line."""


def reason_of(error: BaseException) -> str:
    """What an error of other code says, in one line: its first, or its type where it says nothing."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0] == INTERPRETER else 0].strip()[:REASON_LENGTH]
