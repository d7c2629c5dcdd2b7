"""The viewer in a real browser."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import problems
import training_problems
import web_server
from browsing import NARROW, WIDE, check_focus, check_page, tab_to
from stylex import load
from stylex.attfind import search
from stylex.evaluation.measure import prepare
from stylex.explainer import load_images
from stylex.report.html import probability
from stylex.viewer.app import create_app
from stylex.viewer.workbench import Workbench
from test_study_material import searched, several_classes

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

AT_ONCE = 150
"""Milliseconds."""


class Viewed:
    def __init__(self, path: Path) -> None:
        model = problems.tiny_model()
        self.run = problems.save_tiny_run(path, model)
        images = training_problems.images(12)
        search(self.run, model, images, self.run.config.attfind)
        explainer = load(self.run.path, device="cpu", precision="fp32")
        self.bench = Workbench(explainer, prepare(explainer.model, images, 0))
        self.app = create_app(self.bench, "tiny")


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Viewed:
    return Viewed(tmp_path_factory.mktemp("viewed") / "run")


@pytest.fixture(scope="module")
def viewer(viewed: Viewed) -> Iterator[str]:
    with web_server.served(viewed.app) as url:
        yield url


def edited(page: Any) -> tuple[str, str]:
    """The edited picture, and the probabilities beside it."""
    return page.locator("#edited .after").get_attribute("src"), page.locator(".probabilities").inner_text()


def test_a_slider_changes_picture_and_probability(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    picture, figures = edited(page)
    with page.expect_response(re.compile("/edited")) as answer:
        page.locator("#s1").fill("100")
    assert answer.value.ok
    playwright.expect(page.locator("#edited .after")).not_to_have_attribute("src", picture)
    assert edited(page)[1] != figures
    assert page.locator("output[for=s1]").inner_text() == "+100 %"
    assert "s1=100" in page.url
    moved = edited(page)
    page.reload()  # the address says it all
    assert edited(page) == moved
    with page.expect_response(re.compile("/reset")):
        page.click("text=Reset")
    playwright.expect(page.locator("#edited .after")).to_have_attribute("src", picture)
    assert page.locator("#s1").input_value() == "0"
    assert "s1" not in page.url


def test_dragging_ends_at_the_last_position(visit: Any, viewer: str, viewed: Viewed) -> None:
    page = visit(viewer)
    box = page.locator("#s1").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(box["x"] + box["width"] * (0.5 + 0.04 * step), box["y"] + box["height"] / 2)
    page.mouse.up()
    last = int(page.locator("#s1").input_value())
    assert last > 50
    found = viewed.bench.edit(viewed.bench.subject("0"), _target(page), {1: last / 100})
    shown = f"{found.probabilities_after[viewed.bench.class_names.index(_target(page))]:.2f}"
    playwright.expect(page.locator("#edited .end figcaption b")).to_have_text(shown)


def _target(page: Any) -> str:
    return page.locator("input[name=target]").first.get_attribute("value")


FOLLOW = """async () => {
  const slider = document.getElementById("s1"), taken = [];
  for (let step = 1; step <= 12; step++) {
    const swapped = new Promise((done) => document.addEventListener("htmx:afterSwap", done, { once: true }));
    const begun = performance.now();
    slider.value = 8 * step;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await swapped;
    await document.querySelector("#edited .after").decode();
    taken.push(performance.now() - begun);
  }
  return taken.sort((a, b) => a - b);
}"""


def test_the_picture_follows_a_slider(visit: Any) -> None:
    """Of the shipped model, 64 pixels: from a change to the decoded picture in 150 ms, 9 times of 10.

    The best of forty rounds counts: the machine has other work. Prints what `docs/viewer.md` says of speed.
    """
    explainer = load("demo", device="cpu")
    few = load_images(explainer.run).test.select(slice(4))
    bench = Workbench(explainer, prepare(explainer.model, few, 0))
    threads = bench.quickest_threads(os.cpu_count() or 1)
    torch.set_num_threads(threads)
    late: list[float] = []
    with web_server.served(create_app(bench, "shipped")) as url:
        page = visit(url)
        while len(late) < 40 and min(late, default=AT_ONCE) >= AT_ONCE:
            taken = page.evaluate(FOLLOW)
            late.append(taken[math.ceil(0.9 * len(taken)) - 1])
            middle, last = taken[len(taken) // 2], taken[-1]
            figures = f"median {middle:.0f} ms, 90th percentile {late[-1]:.0f} ms, at most {last:.0f} ms"
            print(f"{threads} threads: {figures}")
    assert min(late) < AT_ONCE


def test_flip_it_with_the_keyboard_alone(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Flip it":
            break
    with page.expect_response(re.compile("/flip")):
        page.keyboard.press("Enter")
    playwright.expect(page.locator(".said")).not_to_be_empty()
    page.locator("#s1").focus()
    before = page.locator("#s1").input_value()
    with page.expect_response(re.compile("/edited")):
        page.keyboard.press("ArrowRight" if before != "100" else "ArrowLeft")
    assert page.locator("#s1").input_value() != before


def test_sliding_back_and_flipping_with_the_keyboard_alone(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    picture, _ = edited(page)
    shown = page.locator("#edited .after")
    tab_to(page, "s1")
    page.keyboard.press("End")
    playwright.expect(shown).not_to_have_attribute("src", picture)
    tab_to(page, "Reset", "Shift+Tab")
    page.keyboard.press("Enter")
    playwright.expect(shown).to_have_attribute("src", picture)
    playwright.expect(page.locator("#s1")).to_have_value("0")
    playwright.expect(page.locator("#do-reset")).to_be_focused()  # the new one: Tab goes on from here
    tab_to(page, "Flip it", "Shift+Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".said")).not_to_be_empty()
    playwright.expect(page.locator("#do-flip")).to_be_focused()


def test_comparing_with_the_keyboard_alone(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    before = page.locator("#edited .before")
    playwright.expect(before).to_be_hidden()
    tab_to(page, "mode")
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#mode-flicker")).to_be_checked()
    playwright.expect(before).to_be_visible()
    playing = "[...document.getAnimations()].map(found => found.playState)"
    assert set(page.evaluate(playing)) == {"running"}
    tab_to(page, "pause", "Shift+Tab")
    page.keyboard.press("Space")
    playwright.expect(page.locator("#pause")).to_be_checked()
    assert set(page.evaluate(playing)) == {"paused"}
    tab_to(page, "mode")
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#mode-slide")).to_be_checked()
    tab_to(page, "wipe")
    cut = "getComputedStyle(document.querySelector('#edited .after')).clipPath"
    assert page.evaluate(cut).endswith(" 50%)")
    for key, percent in (("ArrowRight", 51), ("Home", 0), ("End", 100)):
        page.keyboard.press(key)
        playwright.expect(page.locator("#edited .frame")).to_have_attribute("style", f"--cut: {percent}%;")
        assert page.evaluate(cut).endswith(f" {percent}%)")


def test_naming_with_the_keyboard_alone(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    tab_to(page, "see")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/attributes/"))
    tab_to(page, "name")
    page.keyboard.press("Control+A")
    page.keyboard.type("a bright stripe")
    tab_to(page, "Name it")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("h1")).to_contain_text("a bright stripe")
    tab_to(page, "Back to the image")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("label[for=s1]")).to_contain_text("a bright stripe")


def test_an_upload_with_the_keyboard_alone(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    content = io.BytesIO()
    Image.fromarray(training_problems.images(20).images[18]).save(content, "PNG")
    tab_to(page, "file")
    for attempt in range(3):  # a browser that waits for a busy processor can lose a key
        try:
            with page.expect_file_chooser(timeout=10_000) as chooser:
                page.keyboard.press("Space")
            break
        except playwright.TimeoutError:
            assert attempt < 2, "no key opens the choice of a file"
    chooser.value.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": content.getvalue()})
    tab_to(page, "Look at it")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("image=upload-"))
    assert "mine.png" in page.title()


def test_the_focus_can_be_seen_wherever_tab_leads(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    for path in ("/", "/?image=1&only=a&s1=60", "/attributes/0/1", "/?image=99"):
        for mode in ("side", "flicker", "slide"):
            page.goto(viewer + path)
            if page.locator(f"#mode-{mode}").count():
                page.evaluate(f"document.getElementById('mode-{mode}').checked = true")  # keeps the focus
            check_focus(page)
    visit.complaints.clear()  # the browser notes that there is no image 99


def bench_of(path: Path, kind: str) -> Workbench:
    """A run of three or six classes, or one that samples its images for want of an encoder."""
    images = None if kind == "sampled" else training_problems.images(40)
    names = {"three classes": "abc", "six classes": "abcdef"}.get(kind, "")
    model = several_classes(*names) if names else problems.tiny_model("stylegan2")
    explainer = searched(path, model, images)
    return Workbench(explainer, prepare(explainer.model, images, 0, count=12))


def row_that_moves(bench: Workbench, target: str) -> int:
    """An image on which the first slider changes the figures that the page shows."""
    for row in bench.rows():
        subject = bench.subject(str(row))
        after = bench.edit(subject, target, {1: 1.0}).probabilities_after
        if list(map(probability, after)) != list(map(probability, subject.probabilities_before)):
            return row
    raise AssertionError(f"the first slider towards {target} moves nothing")


@pytest.mark.parametrize("kind", ["three classes", "six classes", "sampled"])
def test_every_class_can_be_aimed_at(visit: Any, tmp_path: Path, kind: str) -> None:
    bench = bench_of(tmp_path / "run", kind)
    names = bench.class_names
    with web_server.served(create_app(bench, kind)) as url:
        page = visit(url)
        assert page.locator(".three figure").count() == (2 if kind == "sampled" else 3)
        assert page.locator("#file").count() == (0 if kind == "sampled" else 1)
        for place, target in enumerate(names):
            row = row_that_moves(bench, target)
            page.goto(f"{url}/?image={row}&target={names[place - 1]}")
            if kind == "six classes":  # as many are folded away
                page.click(".targets summary")
            page.click(f".sliders nav a[href$='target={target}']")
            playwright.expect(page.locator("#sliders-title")).to_have_text(f"Towards {target}")
            picture, _ = edited(page)
            page.locator("#s1").fill("100")
            playwright.expect(page.locator("#edited .after")).not_to_have_attribute("src", picture)
            moved = bench.edit(bench.subject(str(row)), target, {1: 1.0})
            figures = [probability(value) for value in moved.probabilities_after]
            playwright.expect(page.locator(".probabilities .to")).to_have_text(figures)
        page.goto(url)
        page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true; })")
        check_focus(page)
        for size in (NARROW, WIDE):
            page.set_viewport_size(size)
            check_page(page)


def test_a_name_stays_in_the_run_and_is_escaped(visit: Any, viewer: str, viewed: Viewed) -> None:
    page = visit(viewer)
    page.locator("a.see").first.click()
    page.fill("#name", "<b>bright & bold</b>")
    page.click("text=Name it")
    playwright.expect(page.locator("h1")).to_contain_text("<b>bright & bold</b>")
    assert page.locator("h1 b").count() == 0
    page.click("text=Back to the image")
    playwright.expect(page.locator("label[for=s1]")).to_contain_text("<b>bright & bold</b>")
    stored = load(viewed.run.path, device="cpu", precision="fp32")
    assert any(entry.name == "<b>bright & bold</b>" for entry in stored.attributes(_target(page)))


def test_an_upload_is_looked_at_and_a_bad_one_refused(visit: Any, viewer: str) -> None:
    page = visit(viewer)
    picture = training_problems.images(20).images[19]
    content = io.BytesIO()
    Image.fromarray(picture).resize((90, 70)).save(content, "JPEG")
    page.set_input_files("#file", {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": content.getvalue()})
    page.click("text=Look at it")
    page.wait_for_url(re.compile("image=upload-"))
    assert "me.jpg" in page.title()
    page.set_input_files("#file", {"name": "no.jpg", "mimeType": "image/jpeg", "buffer": b"not an image"})
    page.click("text=Look at it")
    playwright.expect(page.locator(".lead")).to_contain_text("no image")
    visit.complaints.clear()  # the browser notes the refusal


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read(visit: Any, viewer: str, scheme: str) -> None:
    for size in (NARROW, WIDE):
        page = visit(viewer, color_scheme=scheme, viewport=size)
        for path in ("/", "/?image=1&s1=60", "/attributes/0/1", "/?image=99"):
            page.goto(viewer + path)
            check_page(page)
            buttons = page.locator("button, .button").all()
            assert min(button.bounding_box()["height"] for button in buttons) >= 32
    visit.complaints.clear()  # the browser notes that there is no image 99
