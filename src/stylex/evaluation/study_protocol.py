"""The replication study's flip rates, as its code measures them (Bosch et al. 2022, Table 2).

It differs from the default protocol where that study's code does: raw logits, discovery images that are
test images too, ranges taken anew on every thousand latents, one merged ranking whose first ten coordinates
are moved away from the class that an image has, and a standard deviation over ten draws in place of an
interval. `TestFigure.interval` gives what it leaves out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from stylex.attfind import find_attributes, sweep
from stylex.attfind.selection import DirectedCoordinate, invert
from stylex.baselines import rank_wu
from stylex.classifiers import Classifier
from stylex.config import AttFindSettings, Settings
from stylex.data import ImageSet
from stylex.errors import DataError
from stylex.evaluation.flips import ConfirmedShare, confirmed_share
from stylex.evaluation.intervals import Interval, wilson
from stylex.evaluation.measure import Logits, MeasuredImages, judge_logits
from stylex.model import Model
from stylex.stylespace import StyleSpace

Classes = npt.NDArray[np.int64]


class StudySettings(Settings):
    """Numbers of the study's code; smaller ones make a trial of it."""

    discovery: int = Field(400, ge=2, description="latents that attributes are searched on")
    latents: int = Field(1000, ge=2, description="latents of one test")
    repeats: int = Field(10, ge=2, description="tests, over which mean and standard deviation are taken")
    count: int = Field(10, ge=1, description="coordinates selected for each class, and moved at once")
    max_image_effect: float = Field(2.5, gt=0)
    wu_threshold: float = Field(0.9, ge=0, lt=1)


@dataclass(frozen=True)
class StudyFigure:
    """One cell of Table 2, with what the study leaves out.

    Attributes:
        method: "AttFind" or "Wu et al.".
        mean, std: over the repeats, of the share of latents whose class differs from that of the unedited
            generated image; std is the population one (numpy's default, as in that code).
        original: the same against the class of the original image; None where latents are sampled.
        interval: of the pooled share over distinct images (Wilson). Repeats draw images again, so this is
            wider than their spread suggests.
        by_class: share of flips away from each class, over all repeats; None where no image was of it.
        confirmed: share of flips that an independent classifier sees as well; None without one.
        distance: mean absolute change of a pixel, images in [-1, 1].
        changes: the coordinates moved, with the direction that leads towards the first class.
    """

    method: str
    mean: float
    std: float
    original: tuple[float, float] | None
    interval: Interval
    by_class: tuple[float | None, ...]
    confirmed: ConfirmedShare | None
    distance: float
    changes: tuple[DirectedCoordinate, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "method": self.method,
            "mean": self.mean,
            "std": self.std,
            "original": None
            if self.original is None
            else {"mean": self.original[0], "std": self.original[1]},
            "interval": self.interval.to_json(),
            "by_class": list(self.by_class),
            "confirmed": None if self.confirmed is None else self.confirmed.to_json(),
            "distance": self.distance,
            "changes": [list(change) for change in self.changes],
        }


@dataclass(frozen=True)
class StudyResult:
    """Table 2's figures of one model: AttFind and, where it can be ranked, Wu et al.

    `measured` says which images were tested, each once, in the order in which they were drawn.
    """

    recipe: str
    settings: StudySettings
    coordinates: int
    class_names: tuple[str, ...]
    distinct: int
    figures: tuple[StudyFigure, ...]
    measured: MeasuredImages

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "protocol": "study",
            "recipe": self.recipe,
            "settings": self.settings.model_dump(mode="json"),
            "coordinates": self.coordinates,
            "class_names": list(self.class_names),
            "distinct_images": self.distinct,
            "measured": self.measured.to_json(),
            "figures": [figure.to_json() for figure in self.figures],
        }


def study_protocol(
    model: Model,
    training: ImageSet | None,
    settings: StudySettings | None = None,
    *,
    judge: Classifier | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> StudyResult:
    """Measure flip rates as the study's code does.

    With an encoder latents are those of training images: shuffled, the first for discovery; and all of them
    shuffled anew for the tests, from which the images of discovery are not excluded. A set of fewer images
    is gone through again, so images repeat then, within a test too. Without an encoder latents are mapped
    from fresh z.

    Args:
        training: the training images; None for a model without an encoder.
        on_progress: called with (stage, done, in all).

    Raises:
        DataError: more or fewer than two classes, labels that do not exclude each other, no training images,
            or a class that no latent shows.
    """
    chosen = settings or StudySettings()
    if len(model.class_names) != 2 or model.classifier.activation != "softmax":
        raise DataError(
            f"protocol 'study' is for two classes that exclude each other, not {', '.join(model.class_names)}"
        )
    if model.encoder is not None and (training is None or not len(training)):
        raise DataError("protocol 'study' encodes training images, and there are none")
    say = on_progress or (lambda stage, done, total: None)
    draws = _Draws(model, training, seed)
    styles, logits, _, _ = draws.take(chosen.discovery)
    before = logits.numpy()
    for target, name in enumerate(model.class_names):
        if not (before.argmax(axis=1) == target).any():
            raise DataError(f"none of {chosen.discovery} latents shows '{name}'; train longer, or take more")
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    after = sweep(
        model, space, styles, on_image=lambda done, total: say("measuring effects", done, total)
    ).numpy()
    search = AttFindSettings(
        effect="logits",
        count=chosen.count,
        max_image_effect=chosen.max_image_effect,
        unstable_threshold=None,
    )
    found = find_attributes(before, after, space, model.class_names, search, "softmax")
    rankings: dict[str, Sequence[DirectedCoordinate]] = {"AttFind": found.merged[: chosen.count]}
    searchable = space.searchable(styles).cpu().numpy()
    probabilities = model.classifier.probabilities(logits).cpu().numpy()
    with suppress(DataError):  # for the first class; its inverse serves the second
        rankings["Wu et al."] = rank_wu(searchable, probabilities, 0, chosen.wu_threshold, count=chosen.count)
    draws.shuffle()
    tests = []
    for number in range(chosen.repeats):
        say("testing", number, chosen.repeats)
        part = draws.take(chosen.latents)
        tests.append((part, {name: _edit(model, part, changes, judge) for name, changes in rankings.items()}))
    names = np.concatenate([part[3] for part, _ in tests])
    figures = tuple(
        _figure(method, changes, [(part, edits[method]) for part, edits in tests], names, judge is not None)
        for method, changes in rankings.items()
    )
    _, first = np.unique(names, return_index=True)
    tested = names[np.sort(first)]
    return StudyResult(
        model.recipe.name,
        chosen,
        space.size,
        model.class_names,
        len(tested),
        figures,
        _measured(tested, None if model.encoder is None else training),
    )


Part = tuple[Tensor, Tensor, Logits | None, Classes]
"""Styles [n, T], logits of the generated images [n, K], of the originals or None, and who they are [n]."""


def _measured(tested: Classes, training: ImageSet | None) -> MeasuredImages:
    """Names of the images tested and the hash of their pixels; of samples their numbers."""
    if training is None:
        return MeasuredImages(tuple(f"sample {number}" for number in tested), None)
    digest = hashlib.sha256()
    for number in tested:
        digest.update(training.images[number].tobytes())
    return MeasuredImages(tuple(training.names[number] for number in tested), digest.hexdigest())


class _Draws:
    """Latents in the order in which the study's code draws them: shuffled, one part after another."""

    def __init__(self, model: Model, training: ImageSet | None, seed: int) -> None:
        self._model, self._training = model, training
        self._random = np.random.default_rng(seed)
        self._seed = seed + 3_000_003
        self._waiting = np.empty(0, np.int64)
        self._sampled = 0

    def shuffle(self) -> None:
        """Go on with all training images in a new order, those drawn before among them."""
        self._waiting = np.empty(0, np.int64)

    def take(self, count: int) -> Part:
        model = self._model
        if model.encoder is None or self._training is None:
            self._seed += 1
            latents = model.sample(count, self._seed)
            names = np.arange(self._sampled, self._sampled + count, dtype=np.int64)
            self._sampled += count
            originals = None
        else:
            while len(self._waiting) < count:
                again = self._random.permutation(len(self._training)).astype(np.int64)
                self._waiting = np.concatenate([self._waiting, again])
            names, self._waiting = self._waiting[:count], self._waiting[count:]
            encoded = [
                model.encode(self._training.batch(names[first : first + model.batch_size]))
                for first in range(0, count, model.batch_size)
            ]
            latents = torch.cat([latents for latents, _ in encoded])
            originals = torch.cat([logits for _, logits in encoded]).cpu().numpy()
        styles = model.styles(latents)
        return styles, _classify(model, styles), originals, names


@dataclass(frozen=True, eq=False)
class _Edited:
    """Of n edited images: class, class by the judge before and after (None without one), distance moved."""

    classes: Classes
    judged: tuple[Classes, Classes] | None
    distance: float


def _edit(
    model: Model, part: Part, towards_first: Sequence[DirectedCoordinate], judge: Classifier | None
) -> _Edited:
    """Move all coordinates to the ends of this part's own ranges, away from the class that an image has."""
    styles, logits, _, _ = part
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    first = logits.argmax(dim=1) == 0
    moved = styles.clone()
    moved[~first] = space.shift(styles[~first], towards_first)
    moved[first] = space.shift(styles[first], invert(towards_first))
    classes, before, after, distances = [], [], [], []
    for begin in range(0, len(styles), model.batch_size):
        batch = slice(begin, begin + model.batch_size)
        plain, edited = model.synthesise(styles[batch]), model.synthesise(moved[batch])
        classes.append(model.classify(edited).argmax(dim=1).cpu().numpy())
        distances.append((edited - plain).abs().mean(dim=(1, 2, 3)).double().cpu().numpy())
        if judge is not None:
            before.append(judge_logits(judge, model, plain).argmax(axis=1))
            after.append(judge_logits(judge, model, edited).argmax(axis=1))
    judged = None if judge is None else (np.concatenate(before), np.concatenate(after))
    return _Edited(np.concatenate(classes), judged, float(np.concatenate(distances).mean()))


def _figure(
    method: str,
    changes: Sequence[DirectedCoordinate],
    tests: Sequence[tuple[Part, _Edited]],
    names: Classes,
    has_judge: bool,
) -> StudyFigure:
    before = [part[1].argmax(dim=1).cpu().numpy() for part, _ in tests]
    after = [edited.classes for _, edited in tests]
    rates = [float((new != old).mean()) for old, new in zip(before, after, strict=True)]
    originals = [part[2] for part, _ in tests]
    against: tuple[float, float] | None = None
    known = [each.argmax(axis=1) for each in originals if each is not None]
    if len(known) == len(tests):
        shares = [float((new != old).mean()) for old, new in zip(known, after, strict=True)]
        against = float(np.mean(shares)), float(np.std(shares))
    old, new = np.concatenate(before), np.concatenate(after)
    confirmed = None
    if has_judge:
        judged = [edited.judged for _, edited in tests if edited.judged is not None]
        confirmed = confirmed_share(
            old,
            new,
            np.concatenate([each[0] for each in judged]),
            np.concatenate([each[1] for each in judged]),
        )
    _, place = np.unique(names, return_index=True)  # each distinct image once, as it was drawn first
    flipped = (new != old)[place]
    away = [(new != old)[old == target] for target in (0, 1)]
    return StudyFigure(
        method,
        float(np.mean(rates)),
        float(np.std(rates)),
        against,
        wilson(int(flipped.sum()), len(flipped)),
        tuple(float(each.mean()) if len(each) else None for each in away),
        confirmed,
        float(np.mean([edited.distance for _, edited in tests])),
        tuple(changes),
    )


def _classify(model: Model, styles: Tensor) -> Tensor:
    """Logits of generated images, batch by batch so that no more images are held than one."""
    found = [
        model.classify(model.synthesise(styles[first : first + model.batch_size])).cpu()
        for first in range(0, len(styles), model.batch_size)
    ]
    return torch.cat(found)
