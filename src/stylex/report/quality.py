"""The tables of image quality in a report, from evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stylex.report.content import Table


def quality_tables(evaluation: Mapping[str, Any]) -> tuple[Table, ...]:
    """Tables of the sections `factors` and `quality`; none of a section that was not measured."""
    tables = []
    if evaluation.get("factors"):
        tables.append(_factors(evaluation["factors"]))
    quality = evaluation.get("quality")
    if quality and quality["fidelity"]:
        tables.append(_fidelity(quality["fidelity"]))
    if quality and quality["realism"]:
        tables.append(_realism(quality["realism"]))
    return tuple(tables)


def _factors(factors: Mapping[str, Any]) -> Table:
    return Table(
        "Factors that survive reconstruction, as a detector reads them",
        ("Factor", "Same as in the image", "95 % interval", "By chance", "Detector is right", "… on blurred"),
        tuple(
            (
                name.replace("_", " "),
                f"{found['agreement']['estimate']:.1%}",
                _interval(found["agreement"]),
                f"{found['chance']:.0%}",
                _share(found["accuracy"]),
                _share(found["blurred"]),
            )
            for name, found in factors.items()
        ),
    )


def _fidelity(fidelity: Mapping[str, Any]) -> Table:
    rows = [
        ("Mean absolute difference of a pixel (−1 to 1)", fidelity["l1"], ".4f"),
        (f"Perceptual distance ({fidelity['perceptual_network']})", fidelity["perceptual"], ".4f"),
        ("Class kept by the classifier explained", fidelity["agreement"], ".1%"),
    ]
    if fidelity["judge_agreement"] is not None:
        rows.append(("Class kept by an independent classifier", fidelity["judge_agreement"], ".1%"))
    return Table(
        f"How near {fidelity['images']} reconstructions are",
        ("Figure", "Mean", "95 % interval"),
        tuple((label, f"{value['estimate']:{form}}", _interval(value, form)) for label, value, form in rows),
    )


def _realism(realism: Mapping[str, Any]) -> Table:
    first = next(iter(realism.values()))
    return Table(
        f"How real images look as a set, in the features of {first['extractor']}",
        ("Images", "Number, against test images", "FID", "KID × 1000", "Precision", "Recall"),
        tuple(
            (
                kind,
                f"{found['generated']}, {found['reals']}",
                f"{found['fid']:.2f}",
                f"{1000 * found['kid']['mean']:.2f} ± {1000 * found['kid']['std']:.2f}",
                f"{found['precision']:.3f}",
                f"{found['recall']:.3f}",
            )
            for kind, found in realism.items()
        ),
    )


def _interval(figure: Mapping[str, Any], form: str = ".1%") -> str:
    return f"{figure['low']:{form}} to {figure['high']:{form}}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
