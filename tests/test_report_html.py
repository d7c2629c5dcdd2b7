"""The HTML report: complete, self-contained, safe, the same every time."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from report_samples import SIDE, heat, picture, report_content
from stylex.errors import DataError
from stylex.report import render_html
from stylex.report.charts import Scale, curve_chart, effect_scale
from stylex.report.content import Curve, ReportContent, Table, TargetSection
from stylex.report.html import CLASS_COLORS, asset, percent, probability, signed
from stylex.report.pictures import data_uri, enlarge, heat_map

VOID = {"meta", "link", "img", "input", "br"}
LOADING = {"src", "href", "srcset", "action", "formaction", "poster", "data", "xlink:href", "background"}


class Page(HTMLParser):
    """Elements as (tag, attributes), the text outside style and script, and the tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.code: dict[str, list[str]] = {"style": [], "script": []}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.code:
            self.code[self.open[-1]].append(data)
        else:
            self.words.append(data)

    def all(self, tag: str, css_class: str | None = None) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (css_class is None or css_class in (attributes.get("class") or "").split())
        ]

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(report_content()))


def strings(value: object) -> list[str]:
    """Every text somewhere in a report's content, mappings' keys too."""
    if isinstance(value, str):
        return [value]
    if dataclasses.is_dataclass(value):
        return [s for field in dataclasses.fields(value) for s in strings(getattr(value, field.name))]
    if isinstance(value, dict):
        return [s for pair in value.items() for part in pair for s in strings(part)]
    if isinstance(value, (tuple, list)):
        return [s for part in value for s in strings(part)]
    return []


def pictures(value: object) -> list[np.ndarray]:
    """Every picture somewhere in a report's content."""
    if isinstance(value, np.ndarray):
        return [value] if value.ndim == 3 else []
    if dataclasses.is_dataclass(value):
        return [p for field in dataclasses.fields(value) for p in pictures(getattr(value, field.name))]
    if isinstance(value, tuple):
        return [p for part in value for p in pictures(part)]
    return []


def test_is_one_well_formed_document(page: Page) -> None:
    assert page.open == []
    for tag in ("html", "head", "body", "main", "nav", "h1"):
        assert len(page.all(tag)) == 1, tag


def test_refers_to_nothing_outside(page: Page) -> None:
    references = [
        value or ""
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in LOADING
    ]
    assert len(references) > 50
    assert [r[:60] for r in references if not r.startswith(("data:", "#"))] == []
    styles = "".join(page.code["style"]) + " ".join(a.get("style") or "" for _, a in page.elements)
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in str(policies[0])


def test_policy_allows_the_script_that_is_there_and_no_other(page: Page) -> None:
    (script,) = page.code["script"]
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(str(m["content"]) for m in page.all("meta") if m.get("http-equiv"))
    assert f"script-src 'sha256-{expected}'" in policy
    assert "fetch(" not in script
    assert "XMLHttpRequest" not in script


def test_names_are_unique_and_every_pointer_arrives(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    pointers = [str(a["href"])[1:] for a in page.all("a")]
    pointers += [str(a["for"]) for a in page.all("label")]
    pointers += [p for _, a in page.elements for p in (a.get("aria-labelledby") or "").split()]
    pointers += [str(a["data-copy"]) for a in page.all("button")]
    assert len(pointers) > 20
    assert set(pointers) <= set(ids)


def test_says_everything_that_the_content_says(page: Page) -> None:
    missing = [text for text in strings(report_content()) if text not in page.text]
    assert missing == []
    assert "54,321" in page.text


def test_shows_every_picture_and_heat_map(page: Page) -> None:
    content = report_content()
    sources = {str(a["src"]) for a in page.all("img")}
    expected = {data_uri(enlarge(Image.fromarray(p))) for p in pictures(content)}
    assert len(expected) == len(pictures(content))
    for target in content.targets:
        for found in target.attributes:
            expected.add(data_uri(heat_map(found.where, [pair.before for pair in found.pairs])))
    assert sources == expected


def test_every_attribute_has_its_figures_and_pairs(page: Page) -> None:
    content = report_content()
    attributes = [found for target in content.targets for found in target.attributes]
    assert len(page.all("article", "attribute")) == len(attributes) == 4
    pairs = [pair for found in attributes for pair in found.pairs]
    glances = sum(len(target.attributes) for target in content.targets)
    assert len(page.all("figure", "pair")) == len(pairs)
    assert len(page.all("div", "frame")) == len(pairs) + glances
    for found in attributes:
        assert f"channel {found.channel} · coordinate {found.coordinate}" in page.text
        assert f"{percent(found.flip_share_low)} to {percent(found.flip_share_high)}" in page.text
        assert f"{signed(found.effect_low)} to {signed(found.effect_high)}" in page.text
        for pair in found.pairs:
            assert f"{probability(pair.probability_before)} → to {probability(pair.probability_after)}" in (
                page.text
            )
    flips = sum(pair.flipped for pair in pairs) + sum(
        example.flipped for target in content.targets for example in target.counterfactuals
    )
    assert len(page.all("span", "yes")) == flips


@pytest.mark.parametrize(
    "anchor",
    [
        "overview",
        "reconstruction",
        "target-1",
        "target-1-attributes",
        "target-1-counterfactuals",
        "target-2",
        "target-2-attribute-2",
        "pairs",
        "repeat",
        "command",
        "provenance",
        "pause",
        "mode-flicker",
        "mode-slide",
        "mode-side",
    ],
)
def test_has_every_section_and_control(page: Page, anchor: str) -> None:
    assert anchor in {a.get("id") for _, a in page.elements}


def test_contents_list_every_section_and_attribute(page: Page) -> None:
    links = [str(a["href"]) for a in page.all("a")]
    for target in (1, 2):
        assert f"#target-{target}" in links
        assert f"#target-{target}-counterfactuals" in links
        assert f"#target-{target}-attribute-2" in links
    assert {"#overview", "#reconstruction", "#pairs", "#repeat"} <= set(links)


def test_nested_provenance_stands_in_the_table(page: Page) -> None:
    assert "nested · hash sha256:abc" in page.text
    assert "list one, two" in page.text


def test_warnings_stand_before_the_attributes() -> None:
    text = render_html(report_content())
    assert text.index("warning-one") < text.index('class="glance"') < text.index('id="target-1"')


def test_a_lost_class_is_marked(page: Page) -> None:
    assert len(page.all("figure", "changed")) == 1
    assert page.text.count("class lost") == 1


def test_every_picture_has_words_and_every_control_a_name(page: Page) -> None:
    alts = [a.get("alt") for a in page.all("img")]
    assert len(alts) > 20
    assert all(alt and len(alt) > 10 for alt in alts)
    labelled = {a["for"] for a in page.all("label")}
    for control in page.all("input"):
        assert control.get("aria-label") or control["id"] in labelled
    for chart in page.all("svg"):
        assert chart.get("aria-hidden") == "true" or chart.get("aria-labelledby")
    assert "curve-0-1: 1 changed, 20\u202f%; 2 changed, 40\u202f%; 3 changed, 83\u202f%." in page.text


def test_hostile_names_stay_words() -> None:
    evil = '"><script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>'
    content = report_content()
    target = content.targets[0]
    first = target.attributes[0]
    pair = dataclasses.replace(first.pairs[0], name=evil)
    hostile = dataclasses.replace(
        content,
        title=evil,
        summary=evil,
        class_names=(evil, "class-old"),
        facts={evil: evil},
        warnings=(evil,),
        command=evil,
        provenance={evil: evil, "deeper": {evil: [evil]}},
        reconstruction_figures={evil: evil},
        quality_tables=(Table(evil, (evil, evil), ((evil, evil),)),),
        pair_tables=(Table(evil, (evil, evil), ((evil, evil),)),),
        reconstructions=(dataclasses.replace(content.reconstructions[0], name=evil),),
        targets=(
            dataclasses.replace(
                target,
                target=evil,
                attributes=(
                    dataclasses.replace(first, name=evil, layer=evil, direction=evil, pairs=(pair,)),
                ),
                curves=(dataclasses.replace(target.curves[0], label=evil),),
                counterfactuals=(dataclasses.replace(target.counterfactuals[0], name=evil, changes=(evil,)),),
            ),
        ),
    )
    page = Page(render_html(hostile))
    assert page.open == []
    assert len(page.all("script")) == 1
    assert [a for _, a in page.elements if any(name.startswith("on") for name in a)] == []
    assert all(str(a["src"]).startswith("data:") for a in page.all("img"))
    assert page.text.count("alert(1)") > 15


def test_same_content_same_text() -> None:
    assert render_html(report_content()) == render_html(report_content())


def test_a_report_with_nothing_found_says_so() -> None:
    empty = TargetSection("class-old", (), (), ())
    page = Page(
        render_html(
            ReportContent(
                "t", "s", ("class-young", "class-old"), {}, (), (), {}, (empty,), 5, "log-odds", "cmd", {}
            )
        )
    )
    assert page.open == []
    assert "No attribute was found that moves images towards class-old." in page.text
    assert page.all("img") == []
    ids = {a.get("id") for _, a in page.elements}
    assert "reconstruction" not in ids
    assert "pairs" not in ids
    assert "warnings-title" not in ids
    assert {str(a["href"])[1:] for a in page.all("a")} <= ids


def test_pictures_survive_packing() -> None:
    gradient = np.stack(np.meshgrid(np.arange(64) * 4, np.arange(64) * 3), axis=-1)
    original = np.concatenate([gradient, np.full((64, 64, 1), 90)], axis=-1).astype(np.uint8)
    uri = data_uri(enlarge(Image.fromarray(original)))
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as opened:
        shown = opened.convert("RGB")
    assert shown.size == (256, 256)
    back = np.asarray(shown.resize((64, 64), Image.Resampling.BOX), np.float64)
    assert np.abs(back - original).mean() < 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (256, 256)), ((28, 28), (252, 252)), ((200, 100), (200, 100)), ((1024, 512), (256, 128))],
)
def test_small_pictures_grow_by_whole_factors(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert enlarge(Image.new("RGB", size)).size == expected


def test_pictures_of_the_wrong_kind_are_refused() -> None:
    content = report_content()
    broken = dataclasses.replace(
        content.reconstructions[0],
        original=picture(1).astype(np.float32),  # type: ignore[arg-type]
    )
    with pytest.raises(DataError, match="uint8"):
        render_html(dataclasses.replace(content, reconstructions=(broken,)))


def test_heat_lies_where_the_change_is() -> None:
    ground = np.full((SIDE, SIDE, 3), 128, np.uint8)
    shown = np.asarray(heat_map(heat(2), [ground]), np.int64)
    cell = shown.shape[0] // SIDE
    redness = shown[..., 0] - shown[..., 2]
    at = np.unravel_index(redness.argmax(), redness.shape)
    assert abs(at[0] - 2.5 * cell) < cell
    assert abs(at[1] - 2.5 * cell) < cell
    corner = shown[-cell:, -cell:]
    assert np.ptp(corner, axis=-1).max() == 0, "without heat the ground stays grey"


def test_heat_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="heat map"):
        heat_map(np.zeros((SIDE + 1, SIDE), np.float32), [picture(1)])


def test_curves_lie_where_their_figures_say() -> None:
    chart = curve_chart([Curve("c", (1, 3, 5), (0.0, 0.5, 1.0), (0.0, 0.25, 0.75), (0.5, 0.75, 1.0), 9)])
    (line,) = chart.lines
    assert line.path == "M0 100L50 50L100 0"
    assert line.band == "M0 50L50 25L100 0L100 25L50 75L0 100Z"
    assert line.points == "M0 100h0M50 50h0M100 0h0"
    assert chart.x_ticks == ((0, "1"), (50, "3"), (100, "5"))


def test_a_single_count_stands_in_the_middle() -> None:
    (line,) = curve_chart([Curve("c", (7,), (0.4,), (0.3,), (0.5,), 9)]).lines
    assert line.path == "M50 60"


def test_many_counts_have_few_ticks_with_both_ends() -> None:
    counts = tuple(range(1, 51))
    values = tuple(0.5 for _ in counts)
    ticks = curve_chart([Curve("c", counts, values, values, values, 9)]).x_ticks
    assert len(ticks) == 10
    assert (ticks[0], ticks[-1]) == ((0, "1"), (100, "50"))


def test_effects_share_an_axis_that_holds_zero_and_every_interval() -> None:
    first, second = report_content().targets[0].attributes
    scale = effect_scale([first, dataclasses.replace(second, effect_low=-0.5)])
    assert (scale.low, scale.high) == (-0.5, 1.5)
    assert scale.position(0) == 25
    assert scale.position(9) == 100
    assert effect_scale([]) == Scale(0.0, 1.0)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0"), (0.00001, "0.1"), (0.005, "0.5"), (0.083, "8"), (0.965, "97"), (0.9999, "99.9"), (1, "100")],
)
def test_percentages_are_never_a_false_nothing_or_all(share: float, text: str) -> None:
    assert percent(share) == text + "\u202f%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (0.004, "<0.01"),
        (0.005, "0.01"),
        (0.5, "0.50"),
        (0.9949, "0.99"),
        (0.996, ">0.99"),
        (1, "1.00"),
    ],
)
def test_probabilities_are_never_a_false_zero_or_one(value: float, text: str) -> None:
    assert probability(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.345, "+2.35"), (-0.5, "−0.50"), (-0.001, "0.00")])
def test_effects_carry_their_sign(value: float, text: str) -> None:
    assert signed(value) in (text, text.replace("2.35", "2.34"))


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_of_aa(scheme: str) -> None:
    light, dark = asset("style.css").split("@media screen and (prefers-color-scheme: dark)", 1)
    rules = light if scheme == "light" else dark.split("\n}\n", 1)[0]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rules.split(".k0", 1)[0]))
    classes = re.findall(r"\.k\d \{ --k: (#[0-9a-f]{6});", rules)
    assert len(classes) == CLASS_COLORS
    for ground in ("paper", "surface"):
        for color in [colors[ink] for ink in ("ink", "ink-2", "ink-3", "accent", "bad")] + classes:
            assert contrast(color, colors[ground]) >= 4.5, (color, ground)
    assert contrast(colors["ink"], colors["sunken"]) >= 4.5
    assert contrast(colors["warn"], colors["warn-paper"]) >= 4.5
    assert contrast(colors["ink"], colors["warn-paper"]) >= 4.5


def test_motion_can_be_stopped() -> None:
    css = asset("style.css")
    paused = re.search(r"html:has\(#pause:checked\)[^{]*\{ animation-play-state: paused; \}", css)
    assert paused
    for animated in (".after", ".when-after", ".when-before"):
        assert animated in paused.group(0)
    assert "prefers-reduced-motion: reduce" in css
    assert "prefers-reduced-motion: reduce" in asset("report.js")


def test_effects_are_called_what_they_are() -> None:
    for effect_on in ("log-odds", "logit"):
        page = Page(render_html(dataclasses.replace(report_content(), effect_on=effect_on)))
        words = " ".join(page.words)
        assert words.count(f"Effect, {effect_on}") >= 4
        assert f"mean change of the target's {effect_on} over" in words
        assert ("log-odds" in words) == (effect_on == "log-odds")


def test_seven_curves_are_told_apart() -> None:
    """As many as an evaluation with controls has, each by its dash alone: colours are no help to everyone."""
    ends = {"lows": (0.0,) * 2, "highs": (1.0,) * 2}
    curves = tuple(Curve(f"curve {i}", (1, 2), (0.1 * i, 0.1 + 0.1 * i), images=9, **ends) for i in range(7))
    content = report_content()
    target = dataclasses.replace(content.targets[0], curves=curves)
    page = Page(render_html(dataclasses.replace(content, targets=(target,))))
    used = [found["class"] for found in page.all("svg") if (found.get("class") or "").startswith("line-")]
    assert len(set(used)) == 7
    styles = dict(re.findall(r"\.(line-\d) {([^}]*)}", asset("style.css")))
    dashes = [re.search(r"--d: ([^;]*);", styles[name or ""]) for name in dict.fromkeys(used)]
    assert len({None if dash is None else dash[1] for dash in dashes}) == 7
