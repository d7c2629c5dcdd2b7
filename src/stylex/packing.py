"""Pack a finished run so that it can travel: weights, classifiers and a few of its images, nothing else."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from stylex.config import dump_yaml
from stylex.data import Dataset, ImageSet
from stylex.demo import FINDINGS
from stylex.errors import RunError
from stylex.run import Run, read_json, read_tensors, write_atomically, write_json, write_tensors


def pack(
    run: Run,
    data: Dataset,
    out: Path,
    *,
    training: int = 16,
    discovery: int = 280,
    test: int = 300,
    judge: Path | None = None,
) -> Run:
    """Copy what explanations need into a new folder.

    Images are written losslessly as one PNG each beside images/factors.csv, which names the set that every
    image belongs to (column split), its class and its factors, so that loading gives the same sets back.

    Args:
        training, discovery, test: images taken of each set, evenly spaced.
        judge: an independently trained classifier to go along.

    Raises:
        RunError: the run has no model or no classifier file of its own, or `out` is not an empty folder.
    """
    if not run.model_file.exists() or not run.classifier_file.exists():
        raise RunError(f"{run.path}: packing needs a trained model and a classifier that is a file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is not an empty folder; nothing was overwritten")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.yaml", lambda file: file.write(dump_yaml(run.config).encode()))
    tensors, header = read_tensors(run.model_file)
    write_tensors(out / "model.safetensors", tensors, header)
    shutil.copyfile(run.classifier_file, out / "classifier.safetensors")
    for name in FINDINGS:
        if (run.path / name).exists():
            shutil.copyfile(run.path / name, out / name)
    if judge is not None:
        shutil.copyfile(judge, out / "judge.safetensors")
    counts = {"training": training, "discovery": discovery, "test": test}
    _write_images(out / "images", {name: (getattr(data, name), count) for name, count in counts.items()})
    # Last: a folder without it counts as half-written.
    about = read_json(run.path / "run.json")
    if "from" in about:  # its place on this machine is nobody else's business
        about["from"]["run"] = Path(about["from"]["run"]).name
    write_json(out / "run.json", about)
    return Run.open(out)


def _write_images(folder: Path, sets: dict[str, tuple[ImageSet, int]]) -> None:
    folder.mkdir()
    rows: list[dict[str, str]] = []
    for split, (images, count) in sets.items():
        # Evenly spaced: sources are often sorted by class.
        for place, number in enumerate(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)):
            name = f"{split}-{place:04d}.png"
            picture = io.BytesIO()
            Image.fromarray(np.asarray(images.images[number])).save(picture, "PNG", optimize=True)
            (folder / name).write_bytes(picture.getvalue())
            row = {"file": name, "split": split}
            if images.labels is not None and images.class_names is not None:
                row["label"] = images.class_names[images.labels[number]]
            rows.append(row | {column: values[number] for column, values in images.factors.items()})
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    (folder / "factors.csv").write_text(text.getvalue(), encoding="utf-8")
