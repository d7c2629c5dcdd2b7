"""Forms that only our own pages can send: a token bound to the visitor's cookie, and the browser's word."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response

FIELD = "token"
"""Name of the hidden field that every form carries."""

_COOKIE = re.compile(r"[A-Za-z0-9_-]{43}")
_YEAR = 365 * 24 * 3600


class Forms:
    """Gives visitors a cookie and forms their token, and refuses forms that came from elsewhere.

    Args:
        secret: of this server; tokens stay good as long as it does.
        cookie: name of the visitor's cookie.
        secure: whether the cookie may travel over https only.
        hosts: names under which the pages are reached, beside the one that the request names.
    """

    def __init__(
        self, secret: bytes, cookie: str, *, secure: bool = False, hosts: tuple[str, ...] = ()
    ) -> None:
        self._secret = secret
        self._cookie = cookie
        self._secure = secure
        self._hosts = hosts

    def visitor(self, request: Request) -> str | None:
        """The visitor's cookie, 256 random bits that say nothing of the person; None at the first visit."""
        found = request.cookies.get(self._cookie, "")
        return found if _COOKIE.fullmatch(found) else None

    def welcome(self, request: Request) -> str:
        """The visitor's cookie, or a new one for `keep`."""
        return self.visitor(request) or secrets.token_urlsafe(32)

    def keep(self, response: Response, visitor: str) -> None:
        """Have the browser keep the cookie."""
        response.set_cookie(
            self._cookie, visitor, max_age=_YEAR, httponly=True, samesite="lax", secure=self._secure, path="/"
        )

    def token(self, visitor: str) -> str:
        """What the visitor's forms carry in FIELD."""
        return self.sign("form", visitor)

    def sign(self, purpose: str, text: str) -> str:
        """A signature that only this server can make."""
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()

    def check(self, request: Request, form: Mapping[str, object]) -> str:
        """The visitor who sent this form.

        Raises:
            HTTPException: 403, the form did not come from a page of ours.
        """
        visitor = self.visitor(request)
        given = form.get(FIELD)
        if (
            visitor is None
            or not isinstance(given, str)
            or not hmac.compare_digest(given.encode(), self.token(visitor).encode())
            or not self._from_here(request)
        ):
            raise HTTPException(403, "This form did not come from this page. Reload the page and try again.")
        return visitor

    def _from_here(self, request: Request) -> bool:
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = request.headers.get("origin")
        if origin is None:
            return True
        return urlsplit(origin).netloc in (request.headers.get("host"), *self._hosts)
