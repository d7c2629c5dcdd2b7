"""How attributes and counterfactuals show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stylex.attfind import Attribute
from stylex.counterfactuals import Counterfactual
from stylex.report.html import percent, probability, signed
from stylex.report.pictures import as_image, data_uri, enlarge
from stylex.stylespace import DIRECTIONS

SIDE = 128
"""Pixels along a side of a picture in a notebook, at least."""


def attributes_html(attributes: Sequence[Attribute]) -> str:
    """A table of attributes."""
    rows = "".join(
        f"<tr><td>{entry.rank}</td><td>{escape(entry.title)}{_same(entry)}</td><td>{escape(entry.target)}</td>"
        f"<td>{DIRECTIONS[entry.direction]}</td><td>{signed(entry.effect)}</td>"
        f"<td>{percent(entry.flipped)}</td></tr>"
        for entry in attributes
    )
    heads = ("", "attribute", "towards", "change", "effect", "flips alone")
    return (
        f"<table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{rows or '<tr><td colspan=6>No attribute was found.</td></tr>'}</tbody></table>"
    )


def _same(entry: Attribute) -> str:
    return "" if entry.repeats is None else f" <small>as {entry.repeats}</small>"


def counterfactual_html(found: Counterfactual) -> str:
    """Original, reconstruction and edited image with the target's probability under each, and the answer."""
    index = found.class_names.index(found.target)
    shown = [("reconstruction", found.reconstruction, found.probabilities_before)]
    shown += [("counterfactual", found.edited, found.probabilities_after)]
    if found.original is not None and found.probabilities_original is not None:
        shown.insert(0, ("image", found.original, found.probabilities_original))
    figures = "".join(
        f'<figure style="display:inline-block;margin:0 8px 0 0;text-align:center">'
        f'<img src="{data_uri(enlarge(as_image(picture), SIDE))}" width="{SIDE}" alt="{name}">'
        f"<figcaption>{name}: {escape(found.target)} {probability(values[index])}</figcaption></figure>"
        for name, picture, values in shown
    )
    warning = "" if found.warning is None else f"<p><b>{escape(found.warning)}</b></p>"
    return f"<div>{figures}<p>{escape(found.answer)}</p>{warning}</div>"
