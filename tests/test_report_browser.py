"""The report and its site in a real browser, opened as files as people open them."""

from __future__ import annotations

from typing import Any

import pytest

import report_samples
from browsing import NARROW, WIDE, check_page
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
