"""The pages of a study: consent, questions one by one, thanks; and the administrator's."""

from __future__ import annotations

import hmac
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from PIL import Image

from stylex.attfind.names import clean_name
from stylex.errors import ConfigError, RunError
from stylex.study import export
from stylex.study.answers import CHOICES
from stylex.study.design import Step, make_form
from stylex.study.store import ANSWER_LENGTH, Place, Store
from stylex.web.forms import Forms
from stylex.web.pages import application, environment, page
from stylex.web.serving import public_host

MAX_BODY = 65_536
"""Bytes of a form: a choice, or a few words."""

CHOOSING = ("practice", "question", "attention", "control")
"""Kinds of steps at which A or B is chosen."""

KINDS = {"gif": "image/gif", "webp": "image/webp"}

_ADMIN = "stylex-admin"


def create_app(
    store: Store,
    pictures: Mapping[str, bytes],
    admin_token: str,
    names: Callable[[], Sequence[str]],
    *,
    hosts: Collection[str] | None = None,
    public_url: str | None = None,
) -> FastAPI:
    """A study's application.

    Args:
        pictures: file name → content, of `read_pictures`; an animation and a still of each name.
        admin_token: who knows it may see the administrator's page.
        names: of the study's attributes, as they are now.
        hosts: see `web.guards.Guards`.
        public_url: where people reach the pages, if a server stands in front.

    Raises:
        RunError: a picture is missing, or is none.
    """
    design = store.design
    title = design.settings.title
    app = application(title, hosts=hosts, max_body=MAX_BODY)
    https = public_url is not None and public_url.startswith("https:")
    known = () if public_url is None else (public_host(public_url),)
    forms = Forms(store.secret, "stylex-study", secure=https, hosts=known)
    counted = [
        step for step in store_steps(store) if step.kind in ("question", "attention", "control", "naming")
    ]
    sizes = {file: picture_size(file, content) for file, content in pictures.items()}
    for file in (f"{name}.{kind}" for name in design.images for kind in KINDS):
        if file not in sizes:
            raise RunError(f"{file}: the study's picture is missing; take a whole copy of the run")
    about = {"title": title, "settings": design.settings, "questions": len(counted), "sizes": sizes}

    def respond(request: Request, part: str, values: Mapping[str, Any]) -> Response:
        """A part of the page to htmx, else the whole page."""
        visitor = forms.welcome(request)
        full = {**about, **values, "token": forms.token(visitor), "part": part}
        if request.headers.get("hx-request"):
            found = page(part, full)
        else:
            found = page("study.html", full)
        if forms.visitor(request) is None:
            forms.keep(found, visitor)
        return found

    def where(request: Request, place: Place | None, stills: bool) -> Response:
        if place is None:
            return respond(request, "closed.html" if store.closed else "consent.html", {"begun": False})
        if place.done:
            return respond(request, "thanks.html", {})
        if store.closed:
            return respond(request, "closed.html", {"begun": True})
        step = place.form[place.step]
        before = [entry for entry in place.form[: place.step] if entry.kind not in ("practice", "begin")]
        values: dict[str, Any] = {
            "step": step,
            "number": place.step,
            "done": len(before),
            "stills": stills or step.kind == "control",
            "asked_stills": stills,
            "longest": ANSWER_LENGTH,
        }
        if step.kind == "begin":
            chosen = store.choice(place.number, place.step - 1)
            values |= {"practice": place.form[place.step - 1], "chosen": chosen}
        part = {"begin": "begin.html", "naming": "naming.html"}.get(step.kind, "question.html")
        return respond(request, part, values)

    @app.get("/")
    def start(request: Request) -> Response:
        visitor = forms.visitor(request)
        place = None if visitor is None else store.place(visitor)
        return where(request, place, request.query_params.get("stills") == "1")

    @app.post("/begin")
    async def begin(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=4)
        visitor = forms.check(request, form)
        await run_in_threadpool(store.join, visitor)
        return RedirectResponse("/", 303)

    @app.post("/leave")
    async def leave(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=4)
        forms.check(request, form)
        response = RedirectResponse("/", 303)
        response.delete_cookie("stylex-study", path="/")
        return response

    @app.post("/answer")
    async def answer(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=8)
        visitor = forms.check(request, form)
        sent = {key: value for key, value in form.items() if isinstance(value, str)}
        stills = sent.get("stills") == "1"

        def keep() -> Response:
            step = sent.get("step", "")
            if not step.isdecimal() or len(step) > 6:
                raise HTTPException(400, "This form names no page. Reload the page and try again.")
            place = store.place(visitor)
            if place is None:
                return RedirectResponse("/", 303)
            number = int(step)
            if number == place.step and not place.done:
                place, _ = store.answer(visitor, number, stills=stills, **_checked(place.form[number], sent))
            if request.headers.get("hx-request"):
                return where(request, place, sent.get("asked") == "1")
            return RedirectResponse("/?stills=1" if sent.get("asked") == "1" else "/", 303)

        return await run_in_threadpool(keep)

    @app.get("/shown/{file}")
    async def shown(file: str) -> Response:
        if file not in pictures:
            raise HTTPException(404, "There is no such picture.")
        kind = KINDS[file.rpartition(".")[2]]
        return Response(
            pictures[file], media_type=kind, headers={"cache-control": "private, max-age=86400, immutable"}
        )

    # The administrator's page.
    granted = forms.sign("admin", admin_token)

    def is_admin(request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given, admin_token):
            return True
        return _same(request.cookies.get(_ADMIN, ""), granted)

    def admin_only(request: Request) -> None:
        if not is_admin(request):
            raise HTTPException(403, "This page is the administrator's; log in first.")

    @app.get("/admin")
    def admin(request: Request) -> Response:
        if not is_admin(request):
            return respond(request, "login.html", {"wrong": False})
        return respond(request, "admin.html", _progress(store, names(), public_url or str(request.base_url)))

    @app.post("/admin/login")
    async def login(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=4)
        forms.check(request, form)
        given = form.get("secret")
        if not isinstance(given, str) or not _same(given.strip(), admin_token):
            found = respond(request, "login.html", {"wrong": True})
            found.status_code = 403
            return found
        response = RedirectResponse("/admin", 303)
        response.set_cookie(_ADMIN, granted, httponly=True, samesite="strict", secure=https, path="/admin")
        return response

    @app.post("/admin/close")
    async def close(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=4)
        forms.check(request, form)
        admin_only(request)
        await run_in_threadpool(store.close_study, form.get("closed") == "yes")
        return RedirectResponse("/admin", 303)

    @app.get("/admin/export/{file}")
    def exported(file: str, request: Request) -> Response:
        admin_only(request)
        if file not in export.files(design):
            raise HTTPException(404, "There is no such export.")
        attentive = request.query_params.get("attentive") == "1"
        text = export.content(store, names(), file, attentive=attentive)
        kind = "text/csv" if file.endswith(".csv") else "text/plain"
        return Response(
            text,
            media_type=f"{kind}; charset=utf-8",
            headers={"content-disposition": f'attachment; filename="{file}"'},
        )

    environment()  # templates are compiled before the first participant waits for them
    return app


def read_pictures(folder: Path) -> dict[str, bytes]:
    """A study's pictures by file name, all of them in memory: no request names a file.

    Raises:
        RunError: there are none.
    """
    try:
        found = {
            file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix[1:] in KINDS
        }
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror})") from None
    if not found:
        raise RunError(f"{folder}: holds no pictures; take a whole copy of the run")
    return found


def picture_size(file: str, content: bytes) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        RunError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as found:
            return found.size
    except OSError:
        raise RunError(f"{file}: is no picture; take a whole copy of the run") from None


def store_steps(store: Store) -> tuple[Step, ...]:
    """The steps of a form of this study; all forms have as many of each kind."""
    return make_form(store.design, 0)


def _checked(step: Step, sent: Mapping[str, str]) -> dict[str, str]:
    """What a step asks for, of what was sent.

    Raises:
        HTTPException: a choice that is none.
    """
    if step.kind in CHOOSING:
        choice = sent.get("choice", "")
        if choice not in CHOICES:
            raise HTTPException(400, "Choose A or B first.")
        return {"choice": choice}
    if step.kind == "naming":
        try:
            return {"words": clean_name(sent.get("words", "")[:ANSWER_LENGTH])}
        except ConfigError:
            raise HTTPException(400, "That is too long; a few words will do.") from None
    return {}


def _same(given: str, wanted: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _progress(store: Store, names: Sequence[str], url: str) -> dict[str, Any]:
    people, answers = store.participants(), store.answers()
    counts: dict[int, int] = {}
    failed: set[int] = set()
    for entry in answers:
        counts[entry.participant] = counts.get(entry.participant, 0) + 1
        if entry.kind == "attention" and not entry.correct:
            failed.add(entry.participant)
    return {
        "url": url.rstrip("/"),
        "closed": store.closed,
        "people": [
            {
                "number": entry.number,
                "started": entry.started,
                "finished": entry.finished,
                "answered": counts.get(entry.number, 0),
                "inattentive": entry.number in failed,
            }
            for entry in reversed(people)
        ],
        "finished": sum(entry.finished is not None for entry in people),
        "last": max((entry.answered for entry in answers), default=None),
        "steps": len(store_steps(store)),
        "files": export.files(store.design),
        "found": export.analysis_so_far(store, names),
        "names": names,
    }
