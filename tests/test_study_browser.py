"""A study in a real browser."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import study_samples
import web_server
from browsing import NARROW, STYLED, WIDE, check_focus, check_page, tab_to
from stylex.run import Run
from stylex.study.app import create_app, read_pictures
from stylex.study.material import study_folder
from stylex.study.store import Store
from web_server import Program

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


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


def agree(page: Any) -> None:
    """Begin, and wait until the first question is there with all its scripts."""
    page.click("text=I agree")
    playwright.expect(page.locator("input[name=step][value='0']")).to_have_count(1)
    page.wait_for_load_state("load")


def give(page: Any, choice: str = "A") -> None:
    """Answer one page, and wait until the next one is there."""
    step = step_of(page)
    if page.locator(f"#choice-{choice}").count():
        page.check(f"#choice-{choice}")
    if page.locator("#words").count():
        page.fill("#words", "a bright stripe")
    page.click("button[type=submit]")
    playwright.expect(page.locator(f"input[name=step][value='{step}']")).to_have_count(0)
    page.wait_for_load_state("load")


def test_two_people_at_once_a_reload_a_return_and_a_killed_server(visit: Any, study_run: Path) -> None:
    port = free_port()
    serve = ("study", "serve", str(study_run), "--port", str(port))
    program = Program(*serve)
    url = f"http://127.0.0.1:{port}"
    try:
        one, two = visit(url), visit(url, viewport=NARROW)
        for page in (one, two):
            agree(page)
        for _ in range(3):
            give(one, "A")
            give(two, "B")
        one.reload()
        assert step_of(one) == 3
        program.kill()  # between two answers
        one.check("#choice-A")
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


class Served:
    """A small study in this process."""

    TOKEN = "the-token-of-this-study"

    def __init__(self, folder: Path, **settings: object) -> None:
        self.design = study_samples.design(attributes=2, questions=2, attention=0, **settings)
        study_samples.write_study(run := Run(folder, SimpleNamespace()), self.design)  # type: ignore[arg-type]
        self.store = Store(folder / "answers.sqlite", self.design)
        pictures = read_pictures(study_folder(run) / "material")
        self.app = create_app(self.store, pictures, self.TOKEN, lambda: ["x", "a longer name"])


def test_a_double_click_counts_once(visit: Any, tmp_path: Path) -> None:
    study = Served(tmp_path)
    with web_server.served(study.app) as url:
        page = visit(url)
        agree(page)
        give(page, "A")
        page.locator("button[type=submit]").dblclick()
        playwright.expect(page.locator("input[name=step][value='2']")).to_have_count(1)
        page.click("button[type=submit]")  # nothing is chosen: nothing is sent
        assert step_of(page) == 2
        page.check("#choice-B")
        page.locator("button[type=submit]").dblclick()
        playwright.expect(page.locator("input[name=step][value='3']")).to_have_count(1)
        assert [entry.step for entry in study.store.answers()] == [0, 1, 2]


def test_an_answer_given_at_once_loads_no_new_page(visit: Any, tmp_path: Path) -> None:
    study = Served(tmp_path)
    with web_server.served(study.app) as url:
        page = visit(url)
        agree(page)
        page.evaluate(AT_ONCE)
        give(page, "A")
        playwright.expect(page.locator("h1")).to_have_text("Thank you")
        assert page.evaluate("window.same") is True
        assert [entry.step for entry in study.store.answers()] == list(range(len(study.store.form(1))))


AT_ONCE = """() => {
  window.same = true;
  document.addEventListener("htmx:afterSwap", () => window.setTimeout(() => {
    const choice = document.getElementById("choice-A");
    if (choice) choice.checked = true;
    const words = document.getElementById("words");
    if (words) words.value = "a bright stripe";
    const form = document.querySelector("#main form[hx-post]");
    if (form) form.requestSubmit();
  }, 0));
}"""


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize(
    ("path", "motion"), [("/", "no-preference"), ("/", "reduce"), ("/?stills=1", "reduce")]
)
def test_nothing_moves_when_the_pictures_arrive(
    visit: Any, tmp_path: Path, size: dict[str, int], path: str, motion: str
) -> None:
    study = Served(tmp_path)
    with web_server.served(study.app) as url:
        page = visit(url, viewport=size, reduced_motion=motion)
        agree(page)
        page.wait_for_selector("#choice-A")
        held: list[Any] = []
        page.route("**/shown/*", lambda route: held.append(route))
        page.goto(url + path, wait_until="commit")
        page.wait_for_selector("#choice-A")
        while len(held) < 4:
            page.wait_for_timeout(20)
        page.wait_for_function(STYLED)
        assert page.evaluate("[...document.images].filter(found => found.naturalWidth).length") == 0
        before = page.locator("#choice-A").bounding_box()
        for request in held:
            request.continue_()
        page.wait_for_load_state("load")
        assert page.evaluate("[...document.images].filter(found => found.naturalWidth).length") == 4
        assert page.locator("#choice-A").bounding_box() == before


def test_a_whole_study_with_the_keyboard_alone_and_without_motion(visit: Any, tmp_path: Path) -> None:
    study = Served(tmp_path, naming=True)
    with web_server.served(study.app) as url:
        page = visit(url, reduced_motion="reduce")
        tab_to(page, "I agree, begin")
        page.keyboard.press("Enter")
        page.wait_for_selector("#choice-A")
        page.wait_for_load_state("networkidle")
        stills = "[...document.querySelectorAll('picture img')].map(found => found.currentSrc.slice(-5))"
        assert set(page.evaluate(stills)) == {".webp"}  # less motion was asked for
        form = study.store.form(1)
        for number, step in enumerate(form):
            if step.kind == "naming":
                tab_to(page, "words")
                page.keyboard.type("stripe")
            elif step.kind != "begin":
                tab_to(page, "choice")
                page.keyboard.press("Space")
            tab_to(page, {"practice": "Check", "begin": "Start"}.get(step.kind, "Next"))
            page.keyboard.press("Enter")
            playwright.expect(page.locator(f"input[name=step][value='{number}']")).to_have_count(0)
            playwright.expect(page.locator("h1")).to_be_focused()  # read out, and Tab goes on from here
        assert page.inner_text("h1") == "Thank you"
        given = study.store.answers()
        assert [entry.step for entry in given] == list(range(len(form)))
        assert all(entry.stills for entry in given if entry.kind != "begin")
        assert {entry.words for entry in given if entry.kind == "naming"} == {"stripe"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read(visit: Any, tmp_path: Path, scheme: str) -> None:
    study = Served(tmp_path, naming=True, control=True)
    with web_server.served(study.app) as url:
        page = visit(url, color_scheme=scheme, viewport=NARROW)

        def check() -> None:
            for size in (WIDE, NARROW):
                page.set_viewport_size(size)
                check_page(page)

        check()
        agree(page)
        while step_of(page) is not None:
            check()
            if page.locator("a.still").is_visible():
                for other in ("With motion", "Without motion"):
                    page.click("a.still")
                    playwright.expect(page.locator("a.still")).to_have_text(other)
                    page.wait_for_load_state("load")
                    check()
            give(page, "A")
        check()
        page.goto(url + "/admin")
        check()
        page.fill("#secret", study.TOKEN)
        page.click("text=Log in")
        playwright.expect(page.locator("#by-title")).to_be_visible()
        assert page.locator("td", has_text="not yet").count() == 0
        check()


def test_the_focus_can_be_seen_on_every_page(visit: Any, tmp_path: Path) -> None:
    study = Served(tmp_path, naming=True, control=True)
    with web_server.served(study.app) as url:
        page = visit(url)
        check_focus(page)
        agree(page)
        while step_of(page) is not None:
            page.goto(url)  # Tab begins at the top again
            check_focus(page)
            give(page, "A")
        page.goto(url)
        assert page.inner_text("h1") == "Thank you"
        check_focus(page)
        page.goto(url + "/admin")
        check_focus(page)
        page.fill("#secret", study.TOKEN)
        page.click("text=Log in")
        playwright.expect(page.locator("#by-title")).to_be_visible()
        page.goto(url + "/admin")
        check_focus(page)
