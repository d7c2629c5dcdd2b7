"""Counterfactuals in the folders that the evaluation scripts of DiME and ACE read.

Those scripts (github.com/guillaumejs2403/DiME and ACE: compute_FVA.py, compute_MNAC.py, compute_CD.py,
compute_COUT.py, compute_LPIPS.py, compute_FID.sh, compute_sFID.sh) look for

    OUT/Original/Correct|Incorrect/NAME       images, by whether the classifier is right about them
    OUT/Results/EXP/CC|IC/CCF|ICF/CF/NAME     counterfactuals; CC: of images it is right about, IC: wrong;
                                              CCF: that reach the target, ICF: that do not

with one NAME for an image and its counterfactual. `OUT/images.csv` says whose picture each NAME is.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stylex.errors import ConfigError, RunError
from stylex.evaluation.counterfactual_metrics import Answer
from stylex.run import write_atomically

COLUMNS = ("file", "image", "label", "class", "target", "flipped", "attributes")


def export_dime(found: Sequence[Answer], out: Path, experiment: str = "stylex") -> int:
    """Write counterfactuals; returns how many. An image without a label counts as one it is right about.

    Raises:
        ConfigError: a name of the experiment that is no folder's name.
        RunError: `out` is not a new or empty folder, or cannot be written.
    """
    check_export(out, experiment)
    try:
        for folder in ("Correct", "Incorrect"):
            (out / "Original" / folder).mkdir(parents=True)
        for group in ("CC", "IC"):
            for end in ("CCF", "ICF"):  # the scripts list all four, also where there is nothing in them
                (out / "Results" / experiment / group / end / "CF").mkdir(parents=True)
    except OSError as error:
        raise RunError(f"{out}: could not be written ({error.strerror})") from None
    rows = []
    for number, each in enumerate(found):
        counterfactual = each.counterfactual
        if counterfactual.original is None:
            continue
        file = f"{number:06d}.png"
        right = each.label is None or each.label == each.predicted
        reached = "CCF" if counterfactual.flipped else "ICF"
        _save(out / "Original" / ("Correct" if right else "Incorrect") / file, counterfactual.original)
        results = out / "Results" / experiment / ("CC" if right else "IC") / reached / "CF"
        _save(results / file, counterfactual.edited)
        rows.append(
            (
                file,
                counterfactual.name,
                each.label or "",
                each.predicted,
                counterfactual.target,
                counterfactual.flipped,
                len(counterfactual.changes),
            )
        )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows)
    write_atomically(out / "images.csv", lambda file: file.write(text.getvalue().encode("utf-8")))
    return len(rows)


def check_export(out: Path, experiment: str) -> None:
    """See that an export can be written there, before time is spent on it; errors as `export_dime`."""
    if not re.fullmatch(r"[\w.-]+", experiment) or experiment.startswith("."):
        raise ConfigError(f"the experiment's name {experiment!r} must be letters, digits, '-', '_' and '.'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is not an empty folder; nothing was overwritten, choose another")


def _save(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "PNG")
    write_atomically(path, lambda file: file.write(packed.getvalue()))
