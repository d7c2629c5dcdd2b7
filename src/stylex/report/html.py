"""The report as one HTML file that needs nothing else: styles, script and pictures are inside."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from stylex.evaluation.measure import DISTINCT
from stylex.report.charts import SHARES, CurveChart, Scale, curve_chart, effect_scale
from stylex.report.content import AttributeSection, Picture, ReportContent, TargetSection
from stylex.report.pictures import as_image, data_uri, enlarge, heat_map

CLASS_COLORS = 8
"""How many class colours style.css defines (`.k0` …); further classes begin again."""

_AT_A_GLANCE = 3
_FEW_TARGETS = 4
"""Of more target classes, pictures are folded away and the contents are short."""
_FACTS_ON_TOP = 6
_NARROW_SPACE = "\u202f"
_MINUS = "\u2212"


@dataclass(frozen=True)
class _Target:
    """A target section with what its charts need."""

    section: TargetSection
    anchor: str
    color: str
    effects: Scale
    chart: CurveChart
    headline: tuple[int, float] | None


def render_html(content: ReportContent) -> str:
    """Draw a report. Equal content gives equal text; every name in it is escaped.

    Returns:
        One HTML document without any reference to the outside; a content security policy inside it forbids
        any, and any script but its own.

    Raises:
        DataError: a picture that is not uint8 [H, W, 3], or a heat map of another size than its pictures.
    """
    return _render("report.html", content, site=None, shown=_packer(), heat=_heat)


def render_page(content: ReportContent, template: str, **values: Any) -> str:
    """A page of a site; see `site.write_site`, which gives `site`, `shown` and `heat`."""
    return _render(template, content, **values)


def report_targets(content: ReportContent) -> list[Any]:
    """Target sections with what their charts need."""
    return [_target(content, index) for index in range(len(content.targets))]


def _render(template: str, content: ReportContent, **values: Any) -> str:
    facts = list(content.facts.items())
    many = len(content.targets) > _FEW_TARGETS
    script = asset("report.js")
    page = _environment().get_template(template)
    return page.render(
        content=content,
        targets=report_targets(content),
        facts_on_top=facts[:_FACTS_ON_TOP],
        facts_below=facts[_FACTS_ON_TOP:],
        provenance=list(_flat(content.provenance)),
        provenance_json=json.dumps(content.provenance, indent=2, ensure_ascii=False, default=str),
        style=Markup(asset("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        color_of=lambda name: _color(content.class_names, name),
        verdict=lambda probabilities: max(range(len(probabilities)), key=probabilities.__getitem__),
        shares=SHARES,
        at_a_glance=1 if many else _AT_A_GLANCE,
        many=many,
        **values,
    )


@cache
def asset(name: str) -> str:
    """The text of a style sheet, script or template of this package."""
    return files("stylex.report").joinpath("templates", name).read_text("utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "probability": probability, "signed": signed}
    return environment


def percent(share: float) -> str:
    """A share as a whole percentage, rounded half up; one digit where it would else be a false 0 or 100 %."""
    value = 100 * share
    if 0 < value < 1 or 99 < value < 100:
        text = f"{min(99.9, max(0.1, value)):.1f}"
    else:
        text = str(math.floor(value + 0.5))
    return text + _NARROW_SPACE + "%"


def probability(value: float) -> str:
    """Two digits, and never 0 or 1 for what is only near them."""
    if 0 < value < 0.005:
        return "<0.01"
    if 0.995 <= value < 1:
        return ">0.99"
    return f"{value:.2f}"


def signed(value: float) -> str:
    """Two digits with a sign; zero has none."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", _MINUS)


def _target(content: ReportContent, index: int) -> _Target:
    section = content.targets[index]
    return _Target(
        section=section,
        anchor=f"target-{index + 1}",
        color=_color(content.class_names, section.target),
        effects=effect_scale(section.attributes),
        chart=curve_chart(section.curves),
        headline=_headline(section),
    )


def _color(class_names: tuple[str, ...], name: str) -> str:
    """The CSS class that gives a class its colour."""
    return f"k{class_names.index(name) % CLASS_COLORS if name in class_names else 0}"


def _headline(section: TargetSection) -> tuple[int, float] | None:
    """How many of the attributes shown together flip which share of images, up to `_AT_A_GLANCE`.

    From the curve of the distinct ones where some repeat others, for those are shown; else from the first.
    """
    curves = {curve.label: curve for curve in section.curves}
    curve = curves.get(DISTINCT, section.curves[0] if section.curves else None)
    if curve is None or not curve.counts:
        return None
    points = list(zip(curve.counts, curve.rates, strict=True))
    return max([point for point in points if point[0] <= _AT_A_GLANCE] or points[:1])


def _packer() -> Callable[[Picture], str]:
    """A function that packs pictures for one report, each once."""
    packed: dict[tuple[tuple[int, ...], bytes], str] = {}

    def shown(picture: Picture) -> str:
        key = (picture.shape, hashlib.sha256(picture.tobytes()).digest())
        if key not in packed:
            packed[key] = data_uri(enlarge(as_image(picture)))
        return packed[key]

    return shown


def _heat(attribute: AttributeSection) -> str:
    return data_uri(heat_map(attribute.where, [pair.before for pair in attribute.pairs]))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as rows: label, text."""
    for key, value in values.items():
        label = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label} · ")
        elif isinstance(value, (list, tuple)):
            yield label, ", ".join(map(str, value))
        else:
            yield label, str(value)
