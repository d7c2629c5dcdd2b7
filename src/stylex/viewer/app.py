"""The viewer's pages: one image on the desk, sliders, the smallest flip; attributes with their galleries."""

from __future__ import annotations

import io
import json
import secrets
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData, QueryParams, UploadFile

from stylex.attfind.names import LONGEST_NAME
from stylex.counterfactuals import Counterfactual
from stylex.errors import ConfigError, RunError
from stylex.report.animation import counterfactual_figure
from stylex.report.charts import SHARES
from stylex.report.compose import EFFECT_ON
from stylex.report.content import Picture
from stylex.report.counterfactuals import as_example
from stylex.report.html import CLASS_COLORS, probability
from stylex.report.pictures import as_image, data_uri, enlarge, heat_map
from stylex.viewer.uploads import FORMATS, MAX_BYTES, read_upload
from stylex.viewer.workbench import Subject, Workbench
from stylex.web.forms import Forms
from stylex.web.pages import application, page

THUMBNAILS = 24
"""Images to choose from on one page."""

CLASSES_SHOWN = 8
"""Of a classifier with many classes, those of which the probability is drawn."""

EXPORTS = {"png": "image/png", "gif": "image/gif", "json": "application/json"}


@dataclass(frozen=True)
class State:
    """What an address says: the image, the target class, how far each slider is, in percent."""

    subject: Subject
    target: str
    amounts: Mapping[int, int]

    @property
    def image(self) -> str:
        """The image's key."""
        return self.subject.key

    @property
    def query(self) -> str:
        moved = {f"s{rank}": str(amount) for rank, amount in sorted(self.amounts.items()) if amount}
        return urlencode({"image": self.image, "target": self.target, **moved})

    @property
    def untouched(self) -> State:
        return State(self.subject, self.target, {})

    def shares(self) -> dict[int, float]:
        return {rank: amount / 100 for rank, amount in self.amounts.items() if amount}


def create_app(bench: Workbench, title: str, *, hosts: Collection[str] | None = None) -> FastAPI:
    """The viewer of a run.

    Args:
        title: what the run is called on the pages.
        hosts: see `web.guards.Guards`.
    """
    app = application("Viewer", hosts=hosts, max_body=MAX_BYTES + 65_536)
    forms = Forms(secrets.token_bytes(32), "stylex-viewer")
    common = {
        "title": title,
        "bench": bench,
        "class_names": bench.class_names,
        "color_of": lambda name: f"k{bench.class_names.index(name) % CLASS_COLORS}",
        "shares": SHARES,
        "shown": _shown,
        "formats": ", ".join(FORMATS),
        "max_mb": MAX_BYTES // 1_000_000,
    }

    def respond(request: Request, template: str, values: Mapping[str, Any]) -> Response:
        visitor = forms.welcome(request)
        found = page(template, {**common, **values, "token": forms.token(visitor)})
        if forms.visitor(request) is None:
            forms.keep(found, visitor)
        return found

    def desk(state: State, answer: str | None = None) -> dict[str, Any]:
        edited = bench.edit(state.subject, state.target, state.shares())
        return {
            "state": state,
            "subject": state.subject,
            "edited": edited,
            "answer": answer,
            "sliders": bench.attributes(state.target),
            "rows": _probabilities(edited),
        }

    @app.get("/")
    def start(request: Request) -> Response:
        state = _state(bench, request.query_params)
        chooser = _chooser(bench, request.query_params, state)
        return respond(request, "desk.html", desk(state) | chooser)

    @app.get("/edited")
    def edited(request: Request) -> Response:
        state = _state(bench, request.query_params)
        found = respond(request, "edited.html", desk(state))
        found.headers["HX-Replace-Url"] = f"/?{state.query}"
        return found

    @app.get("/reset")
    def reset(request: Request) -> Response:
        state = _state(bench, request.query_params).untouched
        found = respond(request, "bench.html", desk(state))
        found.headers["HX-Replace-Url"] = f"/?{state.query}"
        return found

    @app.get("/flip")
    def flip(request: Request) -> Response:
        state = _state(bench, request.query_params)
        amounts, found = bench.flip(state.subject, state.target)
        # Rounded up to what sliders show: a percent less might not flip.
        percent = {rank: min(100, int(amount * 100) + 1) for rank, amount in amounts.items()}
        flipped = State(state.subject, state.target, percent)
        response = respond(request, "bench.html", desk(flipped, answer=_short_answer(found)))
        response.headers["HX-Replace-Url"] = f"/?{flipped.query}"
        return response

    @app.get("/export/{kind}")
    def export(kind: str, request: Request) -> Response:
        if kind not in EXPORTS:
            raise HTTPException(404, f"An image is exported as {', '.join(EXPORTS)}.")
        state = _state(bench, request.query_params)
        found = bench.edit(state.subject, state.target, state.shares())
        return Response(
            exported(found, kind),
            media_type=EXPORTS[kind],
            headers={"content-disposition": f'attachment; filename="stylex.{kind}"'},
        )

    @app.get("/picture/{row}.png")
    def picture(row: int) -> Response:
        content = png(bench.picture(row))
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @app.post("/upload")
    async def upload(request: Request) -> Response:
        form = await request.form(max_files=1, max_fields=4)
        forms.check(request, form)
        sent = form.get("file")
        if not isinstance(sent, UploadFile):
            raise HTTPException(400, "Choose an image first.")
        content, name = await sent.read(), _file_name(sent.filename)
        subject = await run_in_threadpool(lambda: bench.upload(read_upload(content), name))
        target = _target(bench, _text(form, "target"), subject)
        return RedirectResponse(f"/?{State(subject, target, {}).query}", 303)

    @app.get("/attributes/{number}/{rank}")
    def attribute(number: int, rank: int, request: Request) -> Response:
        entry = bench.attribute(_class(bench, number), rank)
        found = bench.gallery(entry)
        heat = data_uri(heat_map(found.where, [pair.before for pair in found.pairs]))
        back = _state(bench, request.query_params)
        effect_on = EFFECT_ON[bench.explainer.findings.settings.effect]
        values = {
            "effect_on": effect_on,
            "entry": entry,
            "gallery": found,
            "heat": heat,
            "state": back,
            "number": number,
        }
        return respond(request, "attribute.html", values | {"longest": LONGEST_NAME})

    @app.post("/attributes/{number}/{rank}")
    async def name(number: int, rank: int, request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=4)
        forms.check(request, form)
        entry = bench.attribute(_class(bench, number), rank)
        await run_in_threadpool(bench.name, entry, _text(form, "name"))
        state = _state(bench, QueryParams(_text(form, "back")))
        return RedirectResponse(f"/attributes/{number}/{rank}?{state.query}", 303)

    return app


def _shown(picture: Picture) -> str:
    """A picture as the pages show it; image and reconstruction stay while sliders move."""
    return _packed(picture.shape, picture.tobytes())


@lru_cache(256)
def _packed(shape: tuple[int, ...], pixels: bytes) -> str:
    return data_uri(enlarge(as_image(np.frombuffer(pixels, np.uint8).reshape(shape))))


def exported(found: Counterfactual, kind: str) -> bytes:
    """An edited image as a PNG figure, a GIF that flickers, or JSON."""
    if kind == "json":
        content = found.to_json() | {"answer": _what_was_done(found)}
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"edited.{kind}"
        if kind == "png":
            figure = counterfactual_figure(as_example(found), found.target, headline=_what_was_done(found))
            figure.save(path)
        else:
            found.save(path)
        return path.read_bytes()


def png(picture: Any) -> bytes:
    """A picture, uint8 [H, W, 3], as a PNG file."""
    content = io.BytesIO()
    as_image(picture).save(content, "PNG")
    return content.getvalue()


def _what_was_done(found: Counterfactual) -> str:
    index = found.class_names.index(found.target)
    before, after = found.probabilities_before[index], found.probabilities_after[index]
    count = len(found.changes)
    moved = f"{count or 'no'} attribute{'' if count == 1 else 's'} moved"
    return f"{found.target}: {probability(before)} becomes {probability(after)}, {moved}"


def _short_answer(found: Counterfactual) -> str:
    if found.already:
        return f"It counts as {found.target} already; nothing has to change."
    if not found.flipped:
        return f"Nothing here makes it count as {found.target}; this is as near as the sliders get."
    count = len(found.changes)
    if count == 1:
        return f"This one change makes it count as {found.target}."
    return f"These {count} changes make it count as {found.target}; fewer do not."


def _probabilities(found: Counterfactual) -> list[tuple[str, float, float]]:
    """Class, probability before and after; of many classes the target and the likeliest."""
    names = found.class_names
    order = list(range(len(names)))
    if len(names) > CLASSES_SHOWN:
        target = names.index(found.target)
        order.sort(key=lambda i: (i != target, -found.probabilities_after[i], -found.probabilities_before[i]))
        order = order[:CLASSES_SHOWN]
    return [(names[i], found.probabilities_before[i], found.probabilities_after[i]) for i in order]


def _state(bench: Workbench, query: QueryParams) -> State:
    """The state in an address; what it leaves out is chosen.

    Raises:
        ConfigError, DataError: what it names does not exist.
    """
    subject = bench.subject(query.get("image") or "0")
    target = _target(bench, query.get("target") or "", subject)
    amounts = {}
    for entry in bench.attributes(target):
        text = query.get(f"s{entry.rank}", "0")
        try:
            amount = int(text)
        except ValueError:
            raise ConfigError(f"slider {entry.rank} stands on no number: {text[:20]!r}") from None
        if not -100 <= amount <= 100:
            raise ConfigError(f"slider {entry.rank} goes from -100 to 100, not to {text[:20]}")
        amounts[entry.rank] = amount
    return State(subject, target, amounts)


def _target(bench: Workbench, wanted: str, subject: Subject) -> str:
    """The class asked for, else the likeliest that the reconstruction does not count as."""
    if wanted:
        if wanted not in bench.class_names:
            raise ConfigError(f"no class '{wanted[:40]}'; there are {', '.join(bench.class_names)}")
        return wanted
    return bench.explainer.likely_target(torch.from_numpy(subject.logits)[None])


def _chooser(bench: Workbench, query: QueryParams, state: State) -> dict[str, Any]:
    """One page of images to choose from."""
    only = query.get("only") or ""
    if only and only not in bench.class_names:
        only = ""
    rows = bench.rows(only or None)
    pages = max(1, -(-len(rows) // THUMBNAILS))
    text = query.get("page", "1")
    number = min(pages, max(1, int(text) if text.isdecimal() and len(text) < 8 else 1))
    first = (number - 1) * THUMBNAILS
    links = {
        name: urlencode({"image": state.image, "target": state.target, "only": only, "page": value})
        for name, value in (("earlier", number - 1), ("later", number + 1))
        if 1 <= value <= pages
    }
    return {
        "only": only,
        "thumbnails": rows[first : first + THUMBNAILS],
        "pages": pages,
        "number": number,
    } | {"turn": links}


def _class(bench: Workbench, number: int) -> str:
    if not 0 <= number < len(bench.class_names):
        raise RunError(f"there is no class {number}")
    return bench.class_names[number]


def _text(form: FormData, key: str) -> str:
    found = form.get(key)
    return found if isinstance(found, str) else ""


def _file_name(name: str | None) -> str:
    """What an upload is called on the page: never a path."""
    shown = "".join(
        letter for letter in (name or "").replace("\\", "/").rpartition("/")[2] if letter.isprintable()
    )
    return shown[:60] or "your image"
