"""What stands between the network and the pages: sizes, host names, headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Scripts and requests only from and to this server; inline styles place points on charts."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


_DRAINED = 10
"""Times the size allowed of a body that is too large, that are read and forgotten before saying so."""


class _TooLargeError(Exception):
    pass


class Guards:
    """Refuses foreign host names and large bodies; adds the headers that keep pages to themselves.

    Args:
        hosts: names that a request may call this server by, without port; None for any. Without this a page
            of somebody else could have its own name point at the loopback address and read from us.
        max_body: bytes that a request may send.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, max_body: int) -> None:
        self.app = app
        self.hosts = hosts
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.hosts is not None and _host(headers.get(b"host", b"")) not in self.hosts:
            await PlainTextResponse("This server has another name.", 421)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            await self._drain(receive)
            await self._too_large(scope, receive, send)
            return
        got, begun, more = 0, False, True

        async def counted() -> Message:
            nonlocal got, more
            message = await receive()
            got += len(message.get("body", b""))
            more = bool(message.get("more_body"))
            if got > self.max_body:
                raise _TooLargeError
            return message

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
                found.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except _TooLargeError:
            if not begun:
                if more:
                    await self._drain(receive)
                await self._too_large(scope, receive, send)

    async def _drain(self, receive: Receive) -> None:
        """Let a browser finish sending, within reason: one that is cut off does not read the answer."""
        left = _DRAINED * self.max_body
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = f"That is too large; send at most {self.max_body / 1e6:.1f} MB."
        await PlainTextResponse(text, 413, {"connection": "close"})(scope, receive, send)


def _host(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
