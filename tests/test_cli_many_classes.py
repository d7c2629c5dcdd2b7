"""Three classes from their images to the report by the command line alone, every figure measured again."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import training_problems
from stylex.attfind import sweep_slowly
from stylex.data import load_dataset
from stylex.explainer import Explainer, open_explainer
from stylex.model import load_model
from stylex.report.html import signed
from stylex.run import Run, read_json
from test_cli import CPU, check, keep_classifier, stylex  # noqa: F401

COLOURS = {"blue": (40, 60, 210), "green": (50, 200, 60), "red": (210, 50, 40)}
NAMES = tuple(COLOURS)
COUNT = 3
"""Attributes of each class, and from each to each other one."""

LENGTH = ("training.total_kimg=0.2", "training.checkpoint_kimg=1", "training.sample_kimg=1")

TOLERANCE = 2e-3
"""Of an effect in log-odds: the sweep and its slow reference round otherwise."""

Effects = npt.NDArray[np.float64]


def save_colours(folder: Path, count: int = 90) -> Path:
    """A folder a class: its colour in many shades, with a brighter or darker patch somewhere."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour) * random.uniform(0.6, 1.0) + random.normal(0, 8, (16, 16, 3))
            row, column = random.integers(0, 10, 2)
            pixels[row : row + 6, column : column + 6] += random.uniform(-60, 60)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:03d}.png")
    return folder


def divide(path: Path, images: Path) -> None:
    """Give a run a classifier that sees all three classes in its reconstructions.

    A model trained for a few steps draws images that mostly count as one. Class k becomes what lies at
    k · 120° in the plane of the first two principal components of the logits, each of deviation 1.
    """
    run = Run.open(path)
    model = load_model(run, training_problems.HARDWARE)
    pool = load_dataset(images, size=16, labelled=False).discovery.batch(slice(None))
    logits = model.classify(model.synthesise(model.styles(model.encode(pool)[0])))
    centre = logits.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(logits - centre, full_matrices=False)
    plane = axes[:2] / (sizes[:2, None] / math.sqrt(len(logits)))
    angles = torch.arange(3) * (2 * math.pi / 3)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1) @ plane
    head: Any = model.classifier.network.head
    with torch.no_grad():
        head.bias.copy_(directions @ (head.bias - centre))
        head.weight.copy_(directions @ head.weight)
    keep_classifier(run, model.classifier)


class Measured:
    """Logits of a run's discovery images [N, 3], and after each change alone [N, 2, S, 3] (slow sweep)."""

    def __init__(self, explainer: Explainer) -> None:
        found = explainer.discovery
        after = sweep_slowly(explainer.model, found.space, found.styles)
        self.before, self.after = found.logits.double().numpy(), after.double().numpy()
        self.classes = self.before.argmax(axis=1)

    def towards(self, target: int) -> tuple[Effects, Effects]:
        """Of images outside a class: effects on its log-odds, and whether they get there: [n, 2, S] each."""
        rows = self.classes != target
        change = odds(self.after[rows], target) - odds(self.before[rows], target)[:, None, None]
        return change, self.after[rows].argmax(axis=-1) == target

    def between(self, source: int, target: int) -> tuple[Effects, Effects]:
        """Of images of a class: effects on the log-odds of another against it, and whether they get there."""
        rows = self.classes == source
        before, after = (z[rows][..., target] - z[rows][..., source] for z in (self.before, self.after))
        return after - before[:, None, None], self.after[rows].argmax(axis=-1) == target


def odds(logits: Effects, target: int) -> Effects:
    """ln p / (1 − p) of one class of logits [..., K], by way of the probabilities."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    others = np.delete(shares, target, axis=-1).sum(axis=-1)
    found: Effects = np.log(shares[..., target] / others)
    return found


def check_ranking(entries: list[dict[str, Any]], effects: Effects, reached: Effects) -> None:
    """Attributes as JSON has them are the coordinates of the largest effects measured, picked best first.

    Those that repeat another are ranked after all that differ, whatever their effect. With a limit that no
    image reaches, *subset* picks by the mean of the effects above 0.
    """
    assert [entry["rank"] for entry in entries] == list(range(1, COUNT + 1))
    entries = sorted(entries, key=lambda entry: entry["pick"])
    gains = np.maximum(effects, 0).mean(axis=0)
    picks = [(entry["direction"], entry["coordinate"]) for entry in entries]
    assert len({coordinate for _, coordinate in picks}) == len(picks) == COUNT
    best = np.sort(gains.max(axis=0))[::-1][:COUNT]
    np.testing.assert_allclose([gains[pick] for pick in picks], best, atol=TOLERANCE)
    for rank, (entry, pick) in enumerate(zip(entries, picks, strict=True), 1):
        own = effects[:, *pick]
        assert (entry["pick"], entry["images"]) == (rank, len(effects))
        assert entry["effect"] == pytest.approx(own.mean(), abs=TOLERANCE)
        assert entry["effect_std"] == pytest.approx(own.std(), abs=TOLERANCE)
        assert entry["flipped"] == pytest.approx(reached[:, *pick].mean())


def check_report(page: str, found: dict[str, Any], shown: int) -> None:
    """One section for each class, with the JSON's attributes and effects in their order; then the pairs."""
    sections = re.findall(r'<section class="target .*?</section>', page, re.S)
    for section, (name, entries) in zip(sections, found["attributes"].items(), strict=True):
        assert f"What turns other images into <b>{name}</b>" in section
        cells = re.findall(r'<td><span class="cell">.*?<b>(.*?)</b>', section, re.S)
        assert cells[1::2] == [signed(entry["effect"]) for entry in entries[:shown]]
        places = re.findall(r"channel (\d+) · coordinate (\d+)", section)
        assert places == [(str(entry["channel"]), str(entry["coordinate"])) for entry in entries[:shown]]
    pairs = re.search(r'<section id="pairs".*?</section>', page, re.S)
    assert pairs is not None
    rows = re.findall(r'<th scope="row">(\w+) → (\w+)</th><td>(\d+)</td>.*?<td>(\S+)</td></tr>', pairs[0])
    assert rows == [
        (source, target, str(entry["rank"]), signed(entry["effect"]))
        for source, targets in found["pairs"].items()
        for target, entries in targets.items()
        for entry in entries
    ]


def test_three_classes_from_images_to_report(
    stylex: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, classifier, run = save_colours(tmp_path / "colours"), tmp_path / "c.safetensors", tmp_path / "run"
    taught = ["classifier", "train", images, "--out", classifier, "--epochs", "8", "--batch-size", "32"]
    scores = check(stylex(*taught, "--json", *CPU), "stylex classifier train")
    assert scores["training"]["class_names"] == list(NAMES)
    assert scores["test"]["accuracy"] > 0.6  # by chance a third

    settings = [f"--set={text}" for text in (*training_problems.TINY, *LENGTH)]
    trained = ["train", "--data", images, "--classifier", classifier, "--out", run, "--size", "16", *settings]
    assert check(stylex(*trained, "--json", *CPU), "stylex train")["images"] == 200
    divide(run, images)

    search = ["attfind", run, "--images", "3", "--exact", *CPU]
    for text in ("unstable_threshold=null", "max_image_effect=1000", f"count={COUNT}", "alike=null"):
        search.append(f"--set={text}")
    alone = check(stylex(*search, "--json"), "stylex attfind")
    assert alone["pairs"] == {}
    found = check(stylex(*search, "--one-vs-one", "--json"), "stylex attfind")
    assert found == alone | {"pairs": found["pairs"]}  # the same measurement
    kept = read_json(run / "attributes.json")
    assert kept == {key: found[key] for key in kept}
    assert read_json(run / "pairs.json")["pairs"] == found["pairs"]

    explainer = open_explainer(Run.open(run), training_problems.HARDWARE)
    measured = Measured(explainer)
    assert set(measured.classes) == {0, 1, 2}
    assert tuple(found["attributes"]) == NAMES
    for target, name in enumerate(NAMES):
        check_ranking(found["attributes"][name], *measured.towards(target))
    assert [(one, other) for one, others in found["pairs"].items() for other in others] == list(
        itertools.permutations(NAMES, 2)
    )
    for source, target in itertools.permutations(range(3), 2):
        entries = found["pairs"][NAMES[source]][NAMES[target]]
        assert {entry["target"] for entry in entries} == {NAMES[target]}
        check_ranking(entries, *measured.between(source, target))

    said = stylex(*search, "--one-vs-one").out
    for one, other in itertools.permutations(NAMES, 2):
        first = found["pairs"][one][other][0]
        line = f"from '{one}' to '{other}' ({first['images']} images searched)\n   1. attribute 1 "
        assert line in said
        assert f"effect {first['effect']:+.2f}" in said[said.index(line) + len(line) :].splitlines()[0]

    drawn = check(stylex("report", run, "--attributes", "2", "--pairs", "1", "--json", *CPU), "stylex report")
    page = Path(drawn["report"]).read_text(encoding="utf-8")
    check_report(page, found, shown=2)
    assert " --one-vs-one" in page
