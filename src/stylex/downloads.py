"""Files of weights from elsewhere: in torch hub's folder, or downloaded into it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch

from stylex.errors import ConfigError, reason_of

TIMEOUT = 20.0
"""Seconds without an answer after which a download counts as failed."""


def weights_file(url: str, wanted_by: str, instead: str) -> Path:
    """Where the weights at `url` lie, downloaded first if they do not.

    Args:
        url: ends in a name that ends in "-", the first digits of the file's sha256 and ".pth".
        wanted_by, instead: what needs the file, and what to choose in its place, for the message.

    Raises:
        ConfigError: it can be neither found nor downloaded; says where to put it.
    """
    name = url.rpartition("/")[2]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.exists():
        digest = name.removesuffix(".pth").rpartition("-")[2]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _socket_timeout(TIMEOUT):
                torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = reason_of(error)
            raise ConfigError(
                f"{wanted_by}: {url} could not be downloaded ({reason}); put that file into "
                f"{file.parent}, or choose {instead}"
            ) from None
    return file


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
