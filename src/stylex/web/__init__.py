"""The web stack that viewer and study share: FastAPI, Jinja2, htmx, and the look of the report."""

from __future__ import annotations

from importlib.util import find_spec

from stylex.errors import ConfigError

NEEDED = ("fastapi", "uvicorn", "sqlmodel", "multipart")
"""Modules of the extra `web`."""


def check_installed() -> None:
    """Raises ConfigError, with the remedy, where a package of the extra `web` is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"web pages need {', '.join(missing)}; pip install 'stylex[web]'")
