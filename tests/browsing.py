"""A real browser: Debian's Chromium, driven by Playwright, and what every page must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from web_server import CHROMIUM

NARROW = {"width": 360, "height": 740}
WIDE = {"width": 1280, "height": 860}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium")
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


def check_page(page: Any) -> None:
    """It fits its window, its words can be read, its pictures and fields say what they are."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], page.url
    worst = page.evaluate(CONTRAST)
    assert worst[0] >= 4.5, (page.url, worst)
    unnamed = "[...document.querySelectorAll('img')].filter(found => !found.alt).length"
    assert page.evaluate(unnamed) == 0, page.url
    fields = "[...document.querySelectorAll('input:not([type=hidden])')]"
    unlabelled = fields + ".filter(found => !found.labels.length && !found.ariaLabel).length"
    assert page.evaluate(unlabelled) == 0, page.url


STYLED = "() => [...document.querySelectorAll('link[rel=stylesheet]')].every((found) => found.sheet)"
"""Every style sheet has arrived: sizes mean something from here on."""


def tab_to(page: Any, name: str, key: str = "Tab") -> None:
    """Press Tab until something of that id, name or class, or with these words, has the focus."""
    for _ in range(60):
        page.keyboard.press(key)
        if name in page.evaluate(CALLED):
            return
    raise AssertionError(f"{key} leads to no {name}")


def check_focus(page: Any) -> None:
    """Tab leads to everything that can be used, and draws a line around what it leads to.

    From the top of a page that was just loaded.
    """
    page.evaluate(FOCUS)
    for _ in range(200):
        page.keyboard.press("Tab")
        found = page.evaluate("window.reached()")
        if found is None:
            break
        assert found["marked"], (page.url, found["what"])
    assert page.evaluate("window.missed()") == [], page.url


CALLED = """(({ id, name, className, textContent }) => [id, name, className, textContent.trim()])(
  document.activeElement
)"""

FOCUS = """() => {
  const look = (found) => {
    const { outlineStyle, outlineWidth, outlineColor, boxShadow } = getComputedStyle(found);
    const clear = outlineStyle === "none" || /^rgba.* 0\\)$/.test(outlineColor);
    const drawn = !clear && parseFloat(outlineWidth) >= 2;
    return { outline: drawn ? [outlineStyle, outlineWidth, outlineColor].join(" ") : "", boxShadow };
  };
  const whole = (found) => {
    const { outlineOffset, outlineWidth } = getComputedStyle(found), box = found.getBoundingClientRect();
    const reach = parseFloat(outlineOffset) + parseFloat(outlineWidth) - 1;
    for (let around = found.parentElement; around; around = around.parentElement) {
      if (getComputedStyle(around).overflow === "visible") continue;
      const edge = around.getBoundingClientRect();
      if (box.left - reach < edge.left || box.right + reach > edge.right) return false;
      if (box.top - reach < edge.top || box.bottom + reach > edge.bottom) return false;
    }
    return true;
  };
  const before = new Map([...document.querySelectorAll("*")].map((found) => [found, look(found)]));
  const marked = (found) => {
    const now = look(found), then = before.get(found);
    if (now.boxShadow !== "none" && now.boxShadow !== then.boxShadow) return true;
    return now.outline !== "" && now.outline !== then.outline && whole(found);
  };
  const seen = new Set();
  window.reached = () => {
    const at = document.activeElement;
    if (at === document.body || seen.has(at)) return null;
    seen.add(at);
    const drawn = [at, at.parentElement, ...(at.labels || [])].some(marked);
    return { what: at.outerHTML.slice(0, 120), marked: drawn };
  };
  const usable = "a[href], button:enabled, input:enabled:not([type=hidden]), summary, [tabindex='0']";
  window.missed = () => [...document.querySelectorAll(usable)].filter((found) => {
    const group = found.type === "radio" ? [...document.getElementsByName(found.name)] : [found];
    return found.checkVisibility({ visibilityProperty: true }) && !group.some((one) => seen.has(one));
  }).map((found) => found.outerHTML.slice(0, 120));
}"""
"""Compares every element's outline and shadow with those it had unfocused: its own, its label's, its frame's.

An outline counts that is 2 pixels wide and that nothing around cuts off.
"""

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
  const faded = (found, color, under) => {
    let share = 1;
    for (let at = found; at; at = at.parentElement) share *= Number(getComputedStyle(at).opacity);
    return color.slice(0, 3).map((value, place) => share * value + (1 - share) * under[place]);
  };
  let worst = [99, ""];
  for (const found of document.querySelectorAll("body *")) {
    const own = [...found.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !found.getClientRects().length || found.closest(".hidden, .when, .skip, datalist")) continue;
    const under = ground(found);
    const [a, b] = [light(faded(found, parse(getComputedStyle(found).color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, found.textContent.trim().slice(0, 40)];
  }
  return worst;
}"""
"""WCAG AA asks for 4.5 : 1: the worst contrast of a text with the background it stands on, and that text."""
