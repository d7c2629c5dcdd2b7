from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import problems
import report_samples
import training_problems
from stylex.attfind import search
from stylex.errors import RunError
from stylex.explainer import load
from stylex.report.html import render_html
from stylex.report.site import MARK, without_images, write_site
from test_cli import CPU, check, stylex  # noqa: F401


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action") and value and not value.startswith("data:"):
                self.found.append(value)
            if name == "id" and value:
                self.ids.add(value)


def read(page: Path) -> Links:
    found = Links()
    found.feed(page.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "out"
    write_site(report_samples.report_content(), folder)
    return folder


def test_every_link_leads_somewhere_within(site: Path) -> None:
    pages = {page.name: read(page) for page in site.glob("*.html")}
    assert len(pages) == 5  # an overview, and two attributes of two classes
    for name, page in pages.items():
        for link in page.found:
            file, _, anchor = link.partition("#")
            target = file or name
            assert (site / target).is_file(), (name, link)
            assert ":" not in link
            assert not link.startswith("/")  # a site may lie below any address
            if anchor:
                assert anchor in pages[target].ids, (name, link)
    linked = {link for page in pages.values() for link in page.found}
    assert {file.name for file in (site / "images").iterdir()} == {
        link.removeprefix("images/") for link in linked if link.startswith("images/")
    }


def test_pages_say_what_the_report_says(site: Path) -> None:
    overview = (site / "index.html").read_text(encoding="utf-8")
    for words in ("named-0", "named-1", "the-summary", "warning-one", "class-young", "sha256:abc"):
        assert words in overview
    page = (site / "target-1-attribute-1.html").read_text(encoding="utf-8")
    assert "named-0" in page
    assert page.count('class="pair"') == 3
    assert 'href="target-1-attribute-2.html"' in page
    for text in (overview, page):
        assert re.search(r"Content-Security-Policy.*script-src 'self'", text)
        assert "<style>" not in text


def test_every_picture_says_how_large_it_is(tmp_path: Path) -> None:
    content = report_samples.report_content()
    flat = replace(content.reconstructions[0], original=report_samples.picture(7)[:4])  # wider than high
    write_site(replace(content, reconstructions=(flat,)), tmp_path / "site")
    found = set()
    for page in (tmp_path / "site").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        pictures = re.findall(r'<img [^>]*src="([^"]+)" width="(\d+)" height="(\d+)"', text)
        assert len(pictures) == text.count("<img ") > 0
        for file, width, height in pictures:
            with Image.open(tmp_path / "site" / file) as picture:
                assert picture.size == (int(width), int(height))
            found.add(picture.size)
    assert found == {(256, 256), (256, 128)}


def test_a_site_is_replaced_and_nothing_else(tmp_path: Path, site: Path) -> None:
    content = report_samples.report_content()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match="no earlier site"):
        write_site(content, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    write_site(content, tmp_path / "site")
    (tmp_path / "site" / "index.html").unlink()  # as if it was cut off
    (tmp_path / "site" / "images" / "old.webp").write_bytes(b"old")
    write_site(content, tmp_path / "site")
    assert (tmp_path / "site" / MARK).exists()
    assert not (tmp_path / "site" / "images" / "old.webp").exists()
    same = {file.relative_to(site): file.read_bytes() for file in site.rglob("*") if file.is_file()}
    again = tmp_path / "site"
    assert same == {file.relative_to(again): file.read_bytes() for file in again.rglob("*") if file.is_file()}


def test_without_images_nothing_of_the_data_is_left(tmp_path: Path) -> None:
    content = without_images(report_samples.report_content())
    write_site(content, tmp_path / "site")
    texts = [page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")]
    for text in (*texts, render_html(content)):
        assert ".png" not in text  # names of images
    assert "named-0" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    # What is left are the four heat maps, on an even ground whatever the images were.
    assert len(list((tmp_path / "site" / "images").iterdir())) == len(
        {attribute.where.tobytes() for target in content.targets for attribute in target.attributes}
    )
    dark = report_samples.report_content()
    for target in dark.targets:
        for attribute in target.attributes:
            for pair in attribute.pairs:
                pair.before[:] = 0
    assert render_html(without_images(dark)) == render_html(content)
    assert np.ptp(dark.targets[0].attributes[0].pairs[0].before) == 0


def test_the_program_writes_a_site_with_names_and_without_the_data(stylex: Any, tmp_path: Path) -> None:  # noqa: F811
    data = problems.save_images(tmp_path / "private-faces")
    model = problems.tiny_model()
    run = problems.save_tiny_run(tmp_path / "run", model, data=str(data))
    search(run, model, training_problems.images(12), run.config.attfind)
    explainer = load(run.path, device="cpu", precision="fp32")
    explainer.name_attribute(explainer.attributes("b")[0].coordinate, "a <b>bright</b> stripe")
    asked = ["report", run.path, "--attributes", "2", "--json", *CPU]
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    found = check(stylex(*asked, "--site", whole), "stylex report")
    assert found["report"] == str(whole / "index.html")
    check(stylex(*asked, "--site", bare, "--without-images"), "stylex report")
    report = check(stylex(*asked, "--without-images"), "stylex report")["report"]
    names = {file.name for file in data.rglob("*.png")}
    shared = [*bare.glob("*.html"), Path(report)]
    texts = {page: page.read_text(encoding="utf-8") for page in [*whole.glob("*.html"), *shared]}
    assert any(name in text for page, text in texts.items() if page.parent == whole for name in names)
    for page in shared:
        assert not [word for word in (*names, "private-faces") if word in texts[page]], page
    for page in (whole / "index.html", bare / "index.html", Path(report)):
        assert "a &lt;b&gt;bright&lt;/b&gt; stripe" in texts[page]
        assert "<b>bright</b>" not in texts[page]
