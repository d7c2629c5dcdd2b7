"""A study's folder: its design, the animations and stills that it shows, drawn from a run once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from stylex.attfind import Attribute, Findings
from stylex.attfind.likeness import LIKENESS_IMAGES, looks
from stylex.errors import DataError, RunError
from stylex.evaluation.measure import TestImages, identify
from stylex.explainer import Explainer
from stylex.report.animation import write_gif
from stylex.report.content import Pair
from stylex.report.gallery import gallery
from stylex.report.pictures import SHOWN_SIDE, as_image, enlarge
from stylex.run import Run, read_json, read_tensors, write_atomically, write_json, write_tensors
from stylex.study.design import (
    Design,
    StudyAttribute,
    StudySettings,
    TestImagesUsed,
    make_questions,
    needed_images,
)

DISTRACTORS = 3
"""Images of an attribute beyond those that its own questions need: more to draw distractors from."""

_GAP = 4


def study_folder(run: Run) -> Path:
    """Where a run's study lies."""
    return run.path / "study"


def top_attributes(findings: Findings, class_names: tuple[str, ...], target: str | None) -> list[Attribute]:
    """Attributes to ask about, best first, each coordinate once.

    Of one class its ranking; of two classes the merged list, where attributes are ranked by effect with those
    that repeat another of their class last; else the classes take turns, rank by rank.
    """
    ranked: list[Attribute]
    if target is not None:
        ranked = list(findings.attributes[target])
    elif findings.merged:
        towards, away = (findings.attributes[name] for name in class_names)
        changes = {entry.change: entry for entry in towards} | {
            (1 - entry.direction, entry.coordinate): entry for entry in away
        }
        ranked = [changes[change] for change in findings.merged if change in changes]
        if findings.settings.order == "effect":
            ranked.sort(key=lambda entry: entry.repeats is not None)
    else:
        every = [entry for found in findings.attributes.values() for entry in found]
        ranked = sorted(every, key=lambda entry: (entry.rank, -abs(entry.effect)))
    by_coordinate: dict[int, Attribute] = {}
    for entry in ranked:  # a distractor must not be the same coordinate the other way round
        by_coordinate.setdefault(entry.coordinate, entry)
    return list(by_coordinate.values())


def make_study(
    explainer: Explainer,
    test: TestImages,
    settings: StudySettings,
    on_progress: Callable[[str], None] | None = None,
    *,
    source: str | None = None,
) -> Design:
    """Draw a study's animations, write them and its design into the run, and return the design.

    Attributes that too few images show are passed over. File names say nothing about what is in them.

    Args:
        source: where the test images came from, by default the run's own source.

    Raises:
        DataError: too few attributes that enough test images show.
        RunError: the run cannot be written.
    """
    say = on_progress or (lambda text: None)
    folder = study_folder(explainer.run)
    wanted = needed_images(settings)
    attributes: list[StudyAttribute] = []
    chosen: list[Attribute] = []
    images: dict[str, int] = {}
    pairs: dict[str, Pair] = {}
    for entry in top_attributes(explainer.findings, explainer.class_names, settings.target):
        if len(attributes) == settings.attributes:
            break
        found = gallery(explainer, test, entry, wanted + DISTRACTORS)
        seen = [place for place, moved in enumerate(found.moved) if moved]
        if len(seen) < wanted:
            say(f"{entry.title}: only {len(seen)} of {wanted} images show it; passed over")
            continue
        shown = [_name(settings.seed, entry, found.rows[place]) for place in seen]
        for name, place in zip(shown, seen, strict=True):
            images[name], pairs[name] = found.rows[place], found.pairs[place]
        attributes.append(
            StudyAttribute(
                target=entry.target,
                rank=entry.rank,
                direction=entry.direction,
                coordinate=entry.coordinate,
                shown=tuple(shown),
            )
        )
        chosen.append(entry)
        say(f"drew {entry.title}, {len(attributes)} of {settings.attributes}")
    if len(attributes) < settings.attributes:
        raise DataError(
            f"{explainer.run.path}: {len(attributes)} attributes can be seen on {wanted} test images each, "
            f"not {settings.attributes}; ask about fewer (--attributes), ask less (--questions), "
            "or add test images"
        )
    attributes = [
        entry.model_copy(update={"alike": places})
        for entry, places in zip(attributes, _alike(explainer, chosen), strict=True)
    ]
    questions, practice = make_questions(settings, attributes, images)
    design = Design(
        settings=settings,
        attributes=tuple(attributes),
        questions=questions,
        practice=practice,
        images=images,
        drawn_from=_identity(explainer, test, source),
    )
    (folder / "study.json").unlink(missing_ok=True)
    if (folder / "material").exists():
        shutil.rmtree(folder / "material")
    say(f"writing {len(pairs)} animations")
    for name, pair in pairs.items():
        _write_pictures(folder / "material", name, pair)
    names = sorted(pairs)
    both = [np.stack([pairs[name].before, pairs[name].after]) for name in names]
    write_tensors(folder / "pairs.safetensors", {"pairs": torch.from_numpy(np.stack(both))}, {"names": names})
    # Last: a folder without it is no study yet.
    write_json(folder / "study.json", design.model_dump(mode="json"))
    return design


def _identity(explainer: Explainer, test: TestImages, source: str | None) -> TestImagesUsed:
    found = identify(explainer.model, test)
    sampled = explainer.model.encoder is None
    return TestImagesUsed(
        source=None if sampled else source or explainer.run.data_source,
        sha256=found.sha256,
        names=found.names,
    )


def _alike(explainer: Explainer, chosen: list[Attribute]) -> list[tuple[int, ...]]:
    """For each attribute, the places of those that change images like it or the other way round."""
    threshold = explainer.findings.settings.alike
    if threshold is None:
        return [()] * len(chosen)
    styles = explainer.discovery.styles[:LIKENESS_IMAGES]
    changes = [entry.change for entry in chosen]
    found = np.abs(looks(explainer.model, explainer.discovery.space, styles, changes).alike) >= threshold
    np.fill_diagonal(found, False)
    return [tuple(np.flatnonzero(row).tolist()) for row in found]


def load_design(run: Run) -> Design | None:
    """The study of a run, or None where it has none yet.

    Raises:
        RunError: it is damaged, or of another version.
    """
    file = study_folder(run) / "study.json"
    if not file.exists():
        return None
    content = read_json(file)
    try:
        design = Design.model_validate(content)
    except ValidationError as error:
        raise RunError(
            f"{file}: damaged ({error.errors()[0]['msg']}); take another copy of the run"
        ) from None
    if design.format != 1:
        raise RunError(f"{file}: a study of format {design.format}; this stylex reads format 1")
    return design


def load_pairs(run: Run) -> tuple[dict[str, int], Tensor]:
    """Places of the animations, and their frames uint8 [M, 2, H, W, 3]: before and after."""
    tensors, header = read_tensors(study_folder(run) / "pairs.safetensors")
    return {name: place for place, name in enumerate(header["names"])}, tensors["pairs"]


def attribute_names(run: Run, design: Design, findings: Findings) -> list[str]:
    """What the study's attributes are called: names that people gave, else their number in the study."""
    by_coordinate = {
        entry.coordinate: entry.name
        for found in findings.attributes.values()
        for entry in found
        if entry.name
    }
    names: list[str] = []
    for place, entry in enumerate(design.attributes, 1):
        name = by_coordinate.get(entry.coordinate, f"attribute {place}")
        names.append(name if name not in names else f"{name} ({place})")
    return names


def _name(seed: int, entry: Attribute, row: int) -> str:
    text = f"{seed}:{entry.target}:{entry.change}:{row}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _write_pictures(folder: Path, name: str, pair: Pair) -> None:
    """The animation, and a still with before and after side by side for who wants no motion."""
    scale = max(1, SHOWN_SIDE // max(pair.before.shape[:2]))
    write_gif(folder / f"{name}.gif", pair.before, pair.after, scale=scale)
    first, second = (enlarge(as_image(picture)) for picture in (pair.before, pair.after))
    still = Image.new("RGB", (first.width + _GAP + second.width, first.height), "white")
    still.paste(first, (0, 0))
    still.paste(second, (first.width + _GAP, 0))
    write_atomically(folder / f"{name}.webp", lambda file: still.save(file, "WEBP", quality=88, method=4))
