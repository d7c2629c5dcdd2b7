"""Serving pages: an address that is free, and a server that says nothing about who came."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from stylex.errors import ConfigError, RunError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: no such address here. RunError: the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError, OverflowError):
        raise ConfigError(f"--host {host}: there is no such address") from None
    found = socket.socket(family, kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        found.close()
        raise RunError(f"{host}, port {port}: {error.strerror}; choose another with --port") from None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, public_url: str | None = None) -> tuple[str, ...] | None:
    """Names that requests may call the server by; None (any) on an open address without a URL."""
    public = () if public_url is None else (public_host(public_url).partition(":")[0],)
    if is_loopback(host) or public:
        return (*LOOPBACK_NAMES, host.lower(), *public)
    return None


def public_host(url: str) -> str:
    """Host and port of the address under which people reach the pages.

    Raises:
        ConfigError: not an http or https URL without a path.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise ConfigError(f"--public-url {url}: give scheme and host, such as https://study.example.org")
    return parts.netloc.lower()


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until somebody asks to stop. No request is logged: neither visitors nor what they send."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        limit_concurrency=2000,
    )
    uvicorn.Server(config).run(sockets=[listening])
