"""What changed between two versions of a classifier? Both answer to the same edits of one generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from stylex.attfind import BATCH_SIZE, find_attributes, sweep
from stylex.attfind.attributes import in_class
from stylex.attfind.effects import log_odds
from stylex.attfind.likeness import mark_repeats
from stylex.classifiers import Classifier
from stylex.errors import ClassifierError, DataError
from stylex.evaluation.intervals import Interval, paired_difference, wilson
from stylex.evaluation.measure import TestImages, same_class
from stylex.explainer import Explainer
from stylex.model import Model
from stylex.stylespace import DIRECTIONS, DirectedCoordinate

COUNT = 5
"""Attributes of each version, towards each class."""

SWEPT = 16
"""Discovery images of each class on which the second version's attributes are searched."""

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class SharedAttribute:
    """One change of style and what it does to either version, over the same edited test images.

    Attributes:
        target, direction, coordinate: the change and the class that it was selected for.
        title: of the attribute, as the run calls it, else a neutral one.
        ranks: place in the ranking of the first and of the second version; None where it is not among them.
        first, second: mean change of the target's log-odds by either version.
        difference: second − first, image by image.
        p: of no difference (paired t), adjusted over all attributes asked about (Holm).
    """

    target: str
    direction: int
    coordinate: int
    title: str
    ranks: tuple[int | None, int | None]
    first: float
    second: float
    difference: Interval
    p: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "target": self.target,
            "direction": self.direction,
            "coordinate": self.coordinate,
            "title": self.title,
            "ranks": list(self.ranks),
            "first": self.first,
            "second": self.second,
            "difference": self.difference.to_json(),
            "p": self.p,
            "differs": self.p <= SIGNIFICANCE,
        }


@dataclass(frozen=True)
class Comparison:
    """Two versions on one generator.

    Attributes:
        images: test images.
        agreement: share of them to which both give the same class.
        attributes: those of either version, where they differ most first.
    """

    images: int
    agreement: Interval
    attributes: tuple[SharedAttribute, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.images,
            "agreement": self.agreement.to_json(),
            "attributes": [entry.to_json() for entry in self.attributes],
        }


def compare_versions(
    explainer: Explainer,
    second: Classifier,
    test: TestImages,
    *,
    count: int = COUNT,
    swept: int = SWEPT,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Search attributes for the second version on the run's generator, and measure those of both on both.

    The images are encoded once, with the run's own classifier as condition: both versions answer to the very
    same pictures, and what differs is the classifiers alone. The second version's attributes are as many,
    compared and ranked as the run's, so that ranks can be set side by side.

    Args:
        second: another classifier of the same classes, on the model's hardware.
        count: of the first attributes of either, no more than the run's search selected.
        swept: discovery images of each class for the search.

    Raises:
        ClassifierError: other classes, or the same classifier.
        DataError: no test images outside any class.
    """
    model, names = explainer.model, explainer.class_names
    if second.class_names != names:
        raise ClassifierError(
            f"the second classifier has the classes {', '.join(second.class_names)}, "
            f"the run's has {', '.join(names)}"
        )
    if second.fingerprint == model.classifier.fingerprint:
        raise ClassifierError("the second classifier is the very one of the run; there is nothing to compare")
    other = replace(model, classifier=second)
    rankings = _rankings(explainer, other, count, swept, on_progress)
    found: list[tuple[SharedAttribute, float]] = []
    for target, name in enumerate(names):
        mine, theirs = rankings[0].get(name, []), rankings[1].get(name, [])
        for change in dict.fromkeys([*mine, *theirs]):
            pair = _effects((model, other), explainer, test, target, change)
            if pair is None:
                continue
            difference = paired_difference(pair[1], pair[0], resamples=999, seed=seed)
            shared = SharedAttribute(
                name,
                *change,
                _title(explainer, name, change),
                (_rank(mine, change), _rank(theirs, change)),
                float(pair[0].mean()),
                float(pair[1].mean()),
                difference,
                1.0,
            )
            found.append((shared, _p(pair[1] - pair[0])))
    if not found:
        raise DataError("no test images are outside any class: nothing to compare the versions on")
    adjusted = multipletests([p for _, p in found], method="holm")[1]
    attributes = [replace(entry, p=float(p)) for (entry, _), p in zip(found, adjusted, strict=True)]
    attributes.sort(key=lambda entry: -abs(entry.difference.estimate))
    answers = other.classify(test.images).cpu().numpy()
    same = same_class(test.logits_original, answers, second.activation)
    return Comparison(len(same), wilson(int(same.sum()), len(same)), tuple(attributes))


def _rankings(
    explainer: Explainer,
    other: Model,
    count: int,
    swept: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[DirectedCoordinate]], dict[str, list[DirectedCoordinate]]]:
    """The first attributes towards every class: those of the run, and of a search for the other version."""
    names, discovery = explainer.class_names, explainer.discovery
    mine = {name: [entry.change for entry in explainer.findings.attributes[name][:count]] for name in names}
    logits = torch.cat(
        [
            other.classify(other.synthesise(discovery.styles[first : first + other.batch_size])).cpu()
            for first in range(0, len(discovery.styles), other.batch_size)
        ]
    ).numpy()
    rows: set[int] = set()
    for target in range(len(names)):
        members = np.flatnonzero(in_class(logits, target, other.classifier.activation))
        rows.update(members[:swept].tolist())
    chosen = sorted(rows)
    settings = explainer.findings.settings.model_copy(update={"unstable_threshold": None})
    after = sweep(
        other,
        discovery.space,
        discovery.styles[chosen],
        shift=settings.shift,
        batch_size=settings.batch_size or BATCH_SIZE,
        on_image=on_progress,
    ).numpy()
    before = logits[chosen]
    activation = other.classifier.activation
    # where the second version sees nothing but the target, nothing can be sent there
    targets = [target for target in range(len(names)) if not in_class(before, target, activation).all()]
    found = find_attributes(before, after, discovery.space, names, settings, activation, targets=targets)
    found = mark_repeats(other, discovery.space, discovery.styles, torch.from_numpy(logits), found)
    theirs = {name: [entry.change for entry in each[:count]] for name, each in found.attributes.items()}
    return mine, theirs


def _effects(
    models: tuple[Model, Model],
    explainer: Explainer,
    test: TestImages,
    target: int,
    change: DirectedCoordinate,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Change of the target's log-odds by either version, on images that the first puts outside the target."""
    first = models[0]
    rows = torch.from_numpy(np.flatnonzero(~in_class(test.logits, target, first.classifier.activation)))
    if len(rows) < 2:
        return None
    drawn = first.synthesise(explainer.discovery.space.shift(test.styles[rows], [change]))
    found = []
    for model in models:
        activation = model.classifier.activation
        before, after = (
            log_odds(model.classify(images).double().cpu().numpy(), activation)[:, target]
            for images in (test.reconstructions[rows], drawn)
        )
        found.append(after - before)
    return found[0], found[1]


def _title(explainer: Explainer, name: str, change: DirectedCoordinate) -> str:
    for entry in explainer.findings.attributes[name]:
        if entry.change == change and entry.name:
            return entry.name
    place, channel = explainer.discovery.space.layer(change[1])
    return f"{DIRECTIONS[change[0]]} {place.name} channel {channel}"


def _rank(ranking: list[DirectedCoordinate], change: DirectedCoordinate) -> int | None:
    return ranking.index(change) + 1 if change in ranking else None


def _p(difference: npt.NDArray[np.float64]) -> float:
    if difference.std() == 0:
        return 1.0 if difference.mean() == 0 else 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)
