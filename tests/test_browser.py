"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import problems
import study_samples
import training_problems
import web_server
from stylex import load
from stylex.attfind import search
from stylex.evaluation.measure import prepare
from stylex.study.store import Store
from stylex.viewer.app import create_app
from stylex.viewer.workbench import Workbench
from web_server import CHROMIUM, Program

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")

NARROW = {"width": 360, "height": 740}
WIDE = {"width": 1280, "height": 860}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--headless"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open a page as a visitor of its own; what the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": WIDE} | options))
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        return page

    opened.complaints = complaints  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert not complaints, complaints


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
    import io

    from PIL import Image

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


def test_the_viewer_fits_a_narrow_screen(visit: Any, viewer: str) -> None:
    page = visit(viewer, viewport=NARROW)
    for path in ("/", "/attributes/0/1"):
        page.goto(viewer + path)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    unnamed = "[...document.querySelectorAll('img')].filter(found => !found.alt).length"
    assert page.evaluate(unnamed) == 0
    page.goto(viewer)
    fields = "[...document.querySelectorAll('input:not([type=hidden])')]"
    labelled = fields + ".filter(found => !found.labels.length && !found.ariaLabel).length"
    assert page.evaluate(labelled) == 0
    sizes = page.evaluate(
        "[...document.querySelectorAll('button')].map(found => found.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 32


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(visit: Any, viewer: str, scheme: str) -> None:
    """WCAG AA: 4.5 : 1 for every text, against the background that it stands on."""
    page = visit(viewer, color_scheme=scheme)
    worst = page.evaluate(CONTRAST)
    assert worst[0] >= 4.5, worst


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((value) => {
    const part = value / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (found) => {
    for (let at = found; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const found of document.querySelectorAll("body *")) {
    const own = [...found.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !found.getClientRects().length || found.closest(".hidden, .when, .skip, datalist")) continue;
    const [a, b] = [light(parse(getComputedStyle(found).color)), light(ground(found))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, found.textContent.trim().slice(0, 40)];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def study_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = study_samples.design(attributes=2, questions=2, attention=1, naming=True)
    return study_samples.run_with_study(tmp_path_factory.mktemp("study") / "run", made).path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def step_of(page: Any) -> int | None:
    found = page.locator("input[name=step]")
    return int(found.get_attribute("value")) if found.count() else None


def give(page: Any, choice: str = "A") -> None:
    """Answer one page, and wait until the next one is there."""
    step = step_of(page)
    if page.locator(f"#choice-{choice}").count():
        page.check(f"#choice-{choice}", force=True)
    if page.locator("#words").count():
        page.fill("#words", "a bright stripe")
    page.click("button[type=submit]")
    playwright.expect(page.locator(f"input[name=step][value='{step}']")).to_have_count(0)


def test_two_people_at_once_a_reload_a_return_and_a_killed_server(visit: Any, study_run: Path) -> None:
    port = free_port()
    serve = ("study", "serve", str(study_run), "--port", str(port))
    program = Program(*serve)
    url = f"http://127.0.0.1:{port}"
    try:
        one, two = visit(url), visit(url, viewport=NARROW)
        for page in (one, two):
            page.click("text=I agree")
        for _ in range(3):
            give(one, "A")
            give(two, "B")
        one.reload()
        assert step_of(one) == 3
        program.kill()  # between two answers
        one.check("#choice-A", force=True)
        one.click("button[type=submit]")
        playwright.expect(one.locator("#toast")).to_contain_text("Nothing was lost")
        program = Program(*serve)
        one.click("button[type=submit]")
        playwright.expect(one.locator("input[name=step][value='4']")).to_have_count(1)
        two.goto(url)  # comes back
        assert step_of(two) == 3
        while step_of(one) is not None:
            give(one, "A")
        while step_of(two) is not None:
            assert two.evaluate("document.documentElement.scrollWidth") == 360
            give(two, "B")
        for page in (one, two):
            assert "Thank you" in page.inner_text("h1")
        visit.complaints.clear()  # the browser noted the missing server
        program.kill()
        design = study_samples.design(attributes=2, questions=2, attention=1, naming=True)
        store = Store(study_run / "study" / "answers.sqlite", design)
        by_person = {
            number: [entry for entry in store.answers() if entry.participant == number] for number in (1, 2)
        }
        for number, choice in ((1, "A"), (2, "B")):
            given = by_person[number]
            assert [entry.step for entry in given] == list(range(len(store.form(number))))
            assert {entry.choice for entry in given if entry.kind in ("question", "attention")} == {choice}
            assert {entry.words for entry in given if entry.kind == "naming"} == {"a bright stripe"}
        assert all(entry.finished for entry in store.participants())
    finally:
        program.kill()


def test_a_double_click_counts_once_and_keys_suffice(visit: Any, tmp_path: Path) -> None:
    made = study_samples.design(attributes=2, questions=2, attention=0)
    run = study_samples.run_with_study(tmp_path / "run", made)
    from stylex.study.app import create_app as create_study
    from stylex.study.app import read_pictures

    store = Store(tmp_path / "answers.sqlite", made)
    app = create_study(store, read_pictures(run.path / "study" / "material"), "token" * 5, lambda: ["x", "y"])
    with web_server.served(app) as url:
        page = visit(url, reduced_motion="reduce")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # I agree
        page.wait_for_selector("#choice-A")
        shown = (
            "[...document.querySelectorAll('picture img')].every(found => found.currentSrc.endsWith('.webp'))"
        )
        page.wait_for_load_state("networkidle")
        assert page.evaluate(shown)  # less motion was asked for
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.name") == "choice":
                break
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("input[name=step][value='1']")).to_have_count(1)
        assert page.evaluate("document.activeElement.tagName") == "H1"  # read out, and Tab goes on from here
        assert [(entry.step, entry.stills) for entry in store.answers()] == [(0, True)]
        page.locator("button[type=submit]").dblclick()
        playwright.expect(page.locator("input[name=step][value='2']")).to_have_count(1)
        page.click("button[type=submit]")  # nothing is chosen: nothing is sent
        assert step_of(page) == 2
        page.check("#choice-B", force=True)
        page.locator("button[type=submit]").dblclick()
        playwright.expect(page.locator("input[name=step][value='3']")).to_have_count(1)
        assert [entry.step for entry in store.answers()] == [0, 1, 2]
        assert page.evaluate(CONTRAST)[0] >= 4.5
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(CONTRAST)[0] >= 4.5
