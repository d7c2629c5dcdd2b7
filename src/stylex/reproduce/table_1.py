"""Table 1: the data sets, and how many images are trained and validated on."""

from __future__ import annotations

from typing import Any

import numpy as np

from stylex.data import Dataset
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop


def make(shop: Workshop) -> Item:
    """Counts of ours beside the study's; the subset and framing of the images are stated."""
    same = len(set(shop.experiment.sources(shop.folders))) == 1
    used = {"StylEx": shop.data} if not same else {}
    used["classifier" if not same else "StylEx and classifier"] = shop.classifier_data
    content: dict[str, Any] = {
        "sets": {name: _counts(data) for name, data in used.items()},
        "study": {
            name: {"training": counts[0], "validation": counts[1]}
            for name, counts in shop.experiment.study.items()
        },
        "note": shop.experiment.note,
    }
    lines = [
        f"## Table 1: {shop.experiment.title}",
        "",
        "| used for | training | discovery | test | classes in training |",
        "|---|---|---|---|---|",
    ]
    for name, counts in content["sets"].items():
        classes = ", ".join(f"{label} {count:,}" for label, count in counts["classes"].items()) or "–"
        lines.append(
            f"| {name} | {counts['training']:,} | {counts['discovery']:,} | {counts['test']:,} | {classes} |"
        )
    for name, study in content["study"].items():
        lines.append(f"| the study's {name} | {study['training']:,} | – | {study['validation']:,} | – |")
    return Item("table-1", shop.experiment.name, "\n".join([*lines, "", shop.experiment.note]), content)


def _counts(data: Dataset) -> dict[str, Any]:
    labels, names = data.training.labels, data.training.class_names
    classes = {}
    if labels is not None and names is not None:
        counts = np.bincount(labels, minlength=len(names))
        classes = dict(zip(names, counts.tolist(), strict=True))
    return {
        "training": len(data.training),
        "discovery": len(data.discovery),
        "test": len(data.test),
        "skipped": len(data.skipped),
        "classes": classes,
    }
