"""A study without a model: every animation shows a coloured square, attribute by attribute another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import problems
import training_problems
from stylex.attfind import search
from stylex.report.content import Pair
from stylex.run import Run, write_json, write_tensors
from stylex.study.design import Design, StudyAttribute, StudySettings, make_questions, needed_images
from stylex.study.material import _write_pictures, study_folder

SIDE = 16

SMALL = 32


def draw_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Animations of SMALL pixels: tiny models draw noise, and its palette takes seconds at the usual size."""
    monkeypatch.setattr("stylex.study.material.SHOWN_SIDE", SMALL)


def design(**settings: object) -> Design:
    chosen = StudySettings.model_validate(
        {"attributes": 3, "questions": 2, "attention": 1, "seed": 4} | settings
    )
    count = needed_images(chosen) + 2
    attributes = tuple(
        StudyAttribute(
            target="b",
            rank=place + 1,
            direction=1,
            coordinate=10 + place,
            shown=tuple(f"{place:02x}{image:02x}{'0' * 16}" for image in range(count)),
        )
        for place in range(chosen.attributes)
    )
    # Attributes overlap in their images, so that distractors have to keep away from those of a question.
    images = {
        name: number + place
        for place, entry in enumerate(attributes)
        for number, name in enumerate(entry.shown)
    }
    questions, practice = make_questions(chosen, attributes, images)
    return Design(
        settings=chosen, attributes=attributes, questions=questions, practice=practice, images=images
    )


def pair(name: str) -> Pair:
    """Attribute number p brightens column p of a grey picture."""
    place, image = int(name[:2], 16), int(name[2:4], 16)
    before = np.full((SIDE, SIDE, 3), 60 + 5 * image, np.uint8)
    after = before.copy()
    after[:, 3 * place : 3 * place + 3] = 250
    return Pair(name, before, after, 0.2, 0.7, True)


def write_study(run: Run, made: Design) -> None:
    folder = study_folder(run)
    names = sorted(made.images)
    for name in names:
        _write_pictures(folder / "material", name, pair(name))
    both = torch.from_numpy(np.stack([np.stack([pair(name).before, pair(name).after]) for name in names]))
    write_tensors(folder / "pairs.safetensors", {"pairs": both}, {"names": names})
    write_json(folder / "study.json", made.model_dump(mode="json"))


def run_with_study(path: Path, made: Design) -> Run:
    """A searched run of a tiny model, with this study in it."""
    model = problems.tiny_model()
    run = problems.save_tiny_run(path, model)
    search(run, model, training_problems.images(12), run.config.attfind)
    write_study(run, made)
    return run
