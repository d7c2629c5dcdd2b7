"""The field's figures for counterfactuals: validity, proximity, sparsity, realism."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import in_class
from stylex.attfind.effects import log_odds
from stylex.classifiers import Classifier
from stylex.counterfactuals import Counterfactual, explain_styles
from stylex.data import ImageSet
from stylex.errors import ConfigError, DataError
from stylex.evaluation.distributions import Realism, realism
from stylex.evaluation.extractors import Extractor
from stylex.evaluation.intervals import Interval, bootstrap_mean, wilson
from stylex.evaluation.measure import judge_logits
from stylex.explainer import Explainer
from stylex.perceptual import Distance

log = logging.getLogger("stylex")

LEAST_REALISTIC = 4
"""Fewer counterfactuals than this make no distribution."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One counterfactual, and where its image stands in the set: row, label (None without) and class."""

    row: int
    label: str | None
    predicted: str
    counterfactual: Counterfactual


@dataclass(frozen=True)
class CounterfactualFigures:
    """Figures over the images asked about; proximity and sparsity over those that an edit flipped.

    Images that the reconstruction alone puts into the class count in `validity` and `by_reconstruction`, not
    in distances and sparsity: nothing was changed there, which would make those figures too good.

    Attributes:
        images: asked about, all of them outside the class that they were sent to.
        validity: share whose counterfactual the classifier puts into that class.
        by_reconstruction: how many of those the reconstruction alone put there, with nothing changed.
        edit_validity: share of the other images that the edit puts into the class; None where there is none.
        judge_validity: share of the valid ones that an independent classifier puts there too.
        l1, perceptual: distance of the counterfactual from the original, per image; pixels in [-1, 1].
        edit_l1, edit_perceptual: from the reconstruction: what the edit alone does.
        sparsity: attributes changed, mean; `used` counts images by their number.
        perceptual_network: name of the network of the distance.
        realism: of the valid counterfactuals of a class against real images of that class; classes with too
            few of either are missing.
    """

    images: int
    validity: Interval
    by_reconstruction: int
    edit_validity: Interval | None
    judge_validity: Interval | None
    l1: Interval | None
    perceptual: Interval | None
    edit_l1: Interval | None
    edit_perceptual: Interval | None
    sparsity: Interval | None
    used: dict[int, int]
    perceptual_network: str
    realism: dict[str, Realism]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        intervals = (
            "edit_validity",
            "judge_validity",
            "l1",
            "perceptual",
            "edit_l1",
            "edit_perceptual",
            "sparsity",
        )
        return {
            "images": self.images,
            "validity": self.validity.to_json(),
            "by_reconstruction": self.by_reconstruction,
            **{
                name: None if getattr(self, name) is None else getattr(self, name).to_json()
                for name in intervals
            },
            "used": [{"attributes": count, "images": images} for count, images in sorted(self.used.items())],
            "perceptual_network": self.perceptual_network,
            "realism": {name: found.to_json() for name, found in self.realism.items()},
        }


def answers(
    explainer: Explainer, images: ImageSet, target: str | None = None, count: int | None = None
) -> Iterator[Answer]:
    """Counterfactuals of images that are outside the target, one by one.

    Args:
        target: the class to send images to; by default the likeliest other one, which of two is the other.
        count: the most images, evenly spaced; all by default.

    Raises:
        ConfigError: no such class, or none named for labels that do not exclude each other.
    """
    model, names = explainer.model, explainer.class_names
    activation = model.classifier.activation
    if target is not None and target not in names:
        raise ConfigError(f"no class '{target}'; the classifier knows {', '.join(names)}")
    if target is None and activation == "sigmoid":
        raise ConfigError(
            "labels that do not exclude each other have no 'other class'; name one with --target"
        )
    if not len(images):
        raise DataError("there are no images to explain")
    latents, logits = model.encode(images.batch(slice(None)))
    given = logits.cpu().numpy()
    odds = log_odds(given.astype(np.float64), activation)
    goals = _goals(odds, given, names, target, activation)
    rows = [row for row, goal in enumerate(goals) if goal is not None]
    if count is not None and len(rows) > count:
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count).round()]
    for row in rows:
        goal = goals[row]
        assert goal is not None
        found = explain_styles(
            model,
            explainer.discovery.space,
            explainer.findings.attributes[goal],
            model.styles(latents[row : row + 1]),
            goal,
            image=images.batch([row]).to(model.hardware.device),
            name=images.names[row],
        )
        label = None
        if images.labels is not None and images.class_names is not None:
            label = images.class_names[int(images.labels[row])]
        yield Answer(row, label, names[int(odds[row].argmax())], found)


def measure_counterfactuals(
    explainer: Explainer,
    images: ImageSet,
    found: Sequence[Answer],
    *,
    perceptual: tuple[str, Distance],
    extractor: Extractor,
    judge: Classifier | None = None,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> CounterfactualFigures:
    """All figures of the counterfactuals in `found`.

    Args:
        images: the set that they were made of; its images of each class, by the classifier, are what
            counterfactuals of that class are compared with.
        perceptual, extractor, judge: on the model's device.

    Raises:
        DataError: no counterfactuals.
    """
    if not found:
        raise DataError("every image is in the class asked for already; there is nothing to measure")
    say = on_progress or (lambda stage: None)
    model = explainer.model
    valid = [each for each in found if each.counterfactual.flipped]
    say("distances")
    originals, plain, edited = (
        _stack([getattr(each.counterfactual, part) for each in valid])
        for part in ("original", "reconstruction", "edited")
    )
    reals = images.batch(slice(None))
    classes = model.classify(reals).cpu().numpy()
    realistic: dict[str, Realism] = {}
    activation = model.classifier.activation
    for target, name in enumerate(model.class_names):
        there = torch.from_numpy(in_class(classes, target, activation))
        own = torch.tensor([each.counterfactual.target == name for each in valid], dtype=torch.bool)
        if min(int(there.sum()), int(own.sum())) < LEAST_REALISTIC:
            if own.any():
                log.warning(
                    "realism towards '%s' is left out: %d counterfactuals and %d real images of the class, "
                    "and a distribution needs %d of each",
                    name,
                    int(own.sum()),
                    int(there.sum()),
                    LEAST_REALISTIC,
                )
            continue
        say(f"realism of counterfactuals towards {name}")
        features = extractor.extract(reals[there]), extractor.extract(edited[own])
        realistic[name] = realism(extractor.name, *features, seed)
    confirmed = None
    if judge is not None and valid:
        goals = [model.class_names.index(each.counterfactual.target) for each in valid]
        verdicts = judge_logits(judge, model, edited)
        agreed = [bool(in_class(v, goal, judge.activation)) for v, goal in zip(verdicts, goals, strict=True)]
        confirmed = wilson(sum(agreed), len(agreed))
    moved = torch.tensor([not each.counterfactual.already for each in valid], dtype=torch.bool)
    amounts = [len(each.counterfactual.changes) for each in valid if not each.counterfactual.already]
    by_reconstruction = len(valid) - len(amounts)
    open_ = len(found) - by_reconstruction
    originals, plain, by_edit = (part[moved] if len(valid) else part for part in (originals, plain, edited))
    name, distance = perceptual
    return CounterfactualFigures(
        len(found),
        wilson(len(valid), len(found)),
        by_reconstruction,
        wilson(len(amounts), open_) if open_ else None,
        confirmed,
        _mean((originals - by_edit).abs().mean(dim=(1, 2, 3))),
        _mean(_apart(distance, originals, by_edit, explainer)),
        _mean((plain - by_edit).abs().mean(dim=(1, 2, 3))),
        _mean(_apart(distance, plain, by_edit, explainer)),
        _mean(torch.tensor(amounts, dtype=torch.float64)),
        dict(Counter(amounts)),
        name,
        realistic,
    )


def _goals(
    odds: npt.NDArray[Any],
    logits: npt.NDArray[np.float32],
    names: Sequence[str],
    target: str | None,
    activation: Any,
) -> list[str | None]:
    """The class that each image is sent to; None for those that are there already."""
    if target is not None:
        there = in_class(logits, names.index(target), activation)
        return [None if each else target for each in there]
    others = odds.copy()
    others[np.arange(len(odds)), odds.argmax(axis=1)] = -np.inf
    return [names[int(row.argmax())] for row in others]


def _stack(pictures: Sequence[npt.NDArray[np.uint8] | None]) -> Tensor:
    """uint8 [H, W, 3] each → [N, 3, H, W] in [-1, 1]; without any, an empty tensor."""
    known = [picture for picture in pictures if picture is not None]
    if not known:
        return torch.empty(0, 3, 1, 1)
    return torch.from_numpy(np.stack(known).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


@torch.inference_mode()
def _apart(distance: Distance, first: Tensor, second: Tensor, explainer: Explainer) -> Tensor:
    device, size = explainer.model.hardware.device, explainer.model.batch_size
    parts = [
        distance(first[begin : begin + size].to(device), second[begin : begin + size].to(device))
        .float()
        .cpu()
        for begin in range(0, len(first), size)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


def _mean(values: Tensor) -> Interval | None:
    """Mean with its bootstrap interval; None of fewer than two values, which have none."""
    return bootstrap_mean(values.double().cpu().numpy()) if len(values) > 1 else None
