"""Section 3.7, computational requirements: what it took here, beside what it took the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stylex.classifiers import load
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import STYLEGAN2, Workshop
from stylex.run import Run, provenance, read_json

STUDY = (
    "The study: StylEx 48 hours on one GeForce GTX 1080 Ti (220,000 steps of 4 images at 64 px), the cat/dog "
    "classifier 30 minutes on a Tesla K80, the age classifier 6 hours on a GeForce GTX 1080 Ti."
)


def make(shop: Workshop) -> Item:
    """Seconds and images of every training of this experiment, as their files have recorded them."""
    trained = {recipe: _run(shop.run(recipe)) for recipe in (shop.stylex_recipe, STYLEGAN2)}
    report = load(shop.classifier_file()).report
    content: dict[str, Any] = {
        "machine": provenance(),
        "runs": trained,
        "classifier": {
            "architecture": report.get("architecture"),
            "seconds": report.get("seconds"),
            "epochs": report.get("epochs"),
            "images": report.get("training_images"),
        },
    }
    lines = [
        f"## Compute: {shop.experiment.title}",
        "",
        "| what | images seen | minutes | images/s | machine |",
        "|---|---|---|---|---|",
    ]
    for recipe, found in trained.items():
        lines.append(
            f"| recipe {recipe} | {found['images']:,} | {found['seconds'] / 60:.1f} | "
            f"{found['images_per_second']:.1f} | {found['machine']} |"
        )
    mine = content["classifier"]
    if mine["seconds"] is not None:
        seen = (mine["images"] or 0) * (mine["epochs"] or 0)
        lines.append(
            f"| classifier {mine['architecture']} | {seen:,} | {mine['seconds'] / 60:.1f} | "
            f"{seen / max(mine['seconds'], 1e-9):.1f} | – |"
        )
    return Item("compute", shop.experiment.name, "\n".join([*lines, "", STUDY]), content)


def _run(run: Run) -> dict[str, Any]:
    last = _last_line(run.metrics_file)
    images, seconds = int(last.get("images", 0)), float(last.get("seconds", 0.0))
    about = read_json(run.path / "run.json")
    return {
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else 0.0,
        "machine": about.get("machine", "unknown"),
    }


def _last_line(file: Path) -> dict[str, Any]:
    """The last whole line of a metrics log; empty where there is none."""
    if not file.exists():
        return {}
    for line in reversed(file.read_text(encoding="utf-8").splitlines()):
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        return found
    return {}
