"""The report and its site in a real browser, opened as files as people open them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

import report_samples
import web_server
from browsing import NARROW, STYLED, WIDE, check_page
from stylex.report.html import render_html
from stylex.report.site import write_site

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Addresses of the report, of the site's index, and of one of its attributes."""
    folder = tmp_path_factory.mktemp("report")
    content = report_samples.report_content()
    write_site(content, folder / "site")
    (folder / "report.html").write_text(render_html(content), encoding="utf-8")
    files = ("report.html", "site/index.html", "site/target-1-attribute-1.html")
    return [(folder / file).as_uri() for file in files]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read(visit: Any, pages: list[str], scheme: str) -> None:
    for address in pages:
        page = visit(address, color_scheme=scheme)
        assert page.evaluate("document.documentElement.dataset.script") == "on"  # its script may run
        grounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert grounds == {"light": "rgb(247, 246, 242)", "dark": "rgb(19, 21, 24)"}[scheme]  # and its style
        shown = "[...document.images].filter(found => found.complete && found.naturalWidth).length"
        assert page.evaluate(shown) == page.evaluate("document.images.length") > 0
        page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true; })")
        for size in (NARROW, WIDE):
            page.set_viewport_size(size)
            for mode in ("flicker", "slide", "side"):
                page.click(f"label[for=mode-{mode}]")
                check_page(page)


def check_shown(page: Any, left: np.ndarray, right: np.ndarray) -> None:
    """The first pair has these colours in its left and right half; packing may change them a little."""
    with Image.open(io.BytesIO(page.locator(".frame").first.screenshot())) as taken:
        pixels = np.asarray(taken.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    for share, color in ((1, left), (3, right)):
        assert np.abs(pixels[2 * height // 5, share * width // 4] - color).max() < 8, page.url


PLAYING = "document.getAnimations().map(found => found.playState)"

STOP_AT = "time => document.getAnimations().forEach(found => { found.pause(); found.currentTime = time; })"


def test_the_controls_change_what_is_shown(visit: Any, pages: list[str]) -> None:
    pair = report_samples.report_content().targets[0].attributes[0].pairs[0]
    before, after = pair.before[0, 0], pair.after[0, 0]
    for address in pages:
        page = visit(address, viewport={"width": 1280, "height": 1600})
        first, second = page.locator(".frame .before").first, page.locator(".frame .after").first
        assert set(page.evaluate(PLAYING)) == {"running"}
        for state in ("paused", "running"):
            page.click("label[for=pause]")
            assert set(page.evaluate(PLAYING)) == {state}

        page.click("label[for=mode-slide]")
        assert page.evaluate(PLAYING) == []
        check_shown(page, before, after)
        wipe = page.locator(".wipe").first
        for place, color in (("100", before), ("0", after)):
            wipe.fill(place)
            check_shown(page, color, color)

        page.click("label[for=mode-side]")
        at = first.bounding_box()
        assert at["x"] + at["width"] <= second.bounding_box()["x"]
        check_shown(page, before, after)
        assert not wipe.is_visible()

        page.click("label[for=mode-flicker]")
        assert first.bounding_box() == second.bounding_box()
        for milliseconds, color in ((200, before), (1200, after)):
            page.evaluate(STOP_AT, milliseconds)
            check_shown(page, color, color)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site below some address of a web host."""
    folder = tmp_path_factory.mktemp("hosted")
    write_site(report_samples.report_content(), folder)
    with web_server.served(Starlette(routes=[Mount("/some/where", StaticFiles(directory=folder))])) as url:
        yield f"{url}/some/where"


PLACES = """[...document.querySelectorAll("h1, h2, h3, h4, img, figcaption, .interval")].map((found) => {
  const { x, y, width, height } = found.getBoundingClientRect();
  return [x, y, width, height];
})"""


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", ["index.html", "target-1-attribute-1.html"])
def test_nothing_moves_when_the_pictures_arrive(
    visit: Any, hosted: str, size: dict[str, int], name: str
) -> None:
    page = visit("about:blank", viewport=size)
    held: list[Any] = []
    let_go: list[bool] = []
    page.route("**/images/*", lambda route: route.continue_() if let_go else held.append(route))
    with page.expect_request("**/images/*"):
        page.goto(f"{hosted}/{name}", wait_until="domcontentloaded")
    page.wait_for_function(STYLED)
    arrived = "[...document.images].filter(found => found.naturalWidth).length"
    assert page.evaluate(arrived) == 0
    before = page.evaluate(PLACES)
    let_go.append(True)
    for route in held:
        route.continue_()
    page.wait_for_load_state("load")
    assert page.evaluate(arrived) == page.evaluate("document.images.length") > 0
    assert page.evaluate(PLACES) == before
