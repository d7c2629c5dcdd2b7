"""Pages: templates that share the report's pieces, the files they load, an application for them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from stylex.errors import StylexError
from stylex.report.html import percent, probability, signed
from stylex.web.guards import Guards

log = logging.getLogger("stylex")

_ASSETS = {
    "style.css": ("stylex.report", "templates/style.css", "text/css"),
    "web.css": ("stylex.web", "static/web.css", "text/css"),
    "web.js": ("stylex.web", "static/web.js", "text/javascript"),
    "htmx.min.js": ("stylex.web", "static/htmx.min.js", "text/javascript"),
}
"""Everything that a page may load, by name: what is asked for is looked up here and nowhere else."""


@cache
def asset(name: str) -> tuple[bytes, str]:
    """Content and type of one of the files that pages load.

    Raises:
        KeyError: no such file.
    """
    package, path, kind = _ASSETS[name]
    return files(package).joinpath(path).read_bytes(), kind


@cache
def asset_url(name: str) -> str:
    """Where a page finds it; the address changes with the content, so that browsers may keep it."""
    return f"/static/{name}?v={hashlib.sha256(asset(name)[0]).hexdigest()[:12]}"


@cache
def environment() -> jinja2.Environment:
    """Templates of the report, of these pages, of viewer and study; every value is escaped."""
    folders = ("stylex.web", "stylex.viewer", "stylex.study", "stylex.report")
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "probability": probability, "signed": signed}
    found.globals["asset"] = asset_url
    return found


def page(template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """A template as a response."""
    return HTMLResponse(environment().get_template(template).render(values), status)


def application(title: str, *, hosts: Collection[str] | None, max_body: int) -> FastAPI:
    """An application with guards, the pages' files, and errors told in one line. `title` stands on errors."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guards, hosts=hosts, max_body=max_body)

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "There is no such file.")
        content, kind = asset(name)
        return Response(
            content, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"}
        )

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        return _sorry(request, title, error.detail, error.status_code)

    @app.exception_handler(StylexError)
    async def wrong(request: Request, error: StylexError) -> Response:
        return _sorry(request, title, str(error), 400)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected %s on %s", type(error).__name__, request.url.path)
        return _sorry(request, title, "Something went wrong here; try again.", 500)

    return app


def _sorry(request: Request, title: str, text: str, status: int) -> Response:
    """One line: for htmx as text that web.js shows, for people as a page."""
    if request.headers.get("hx-request"):
        return Response(text, status, media_type="text/plain; charset=utf-8")
    return page("sorry.html", {"title": title, "text": text}, status)
