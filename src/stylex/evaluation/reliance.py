"""True reliance: how a classifier answers when the same face is drawn again with one factor changed.

Rendered faces are the one place where this can be measured and not only guessed: the renderer changes glasses
and nothing else, so the change of the classifier's output is the effect of glasses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stylex.attfind.attributes import in_class
from stylex.attfind.effects import Activation, log_odds
from stylex.classifiers import Classifier
from stylex.data.avatar_spec import AvatarSpec
from stylex.data.decode import to_square
from stylex.data.faces import BACKGROUND, FACTORS, render_face
from stylex.data.images import ImageSet
from stylex.data.table import place_of
from stylex.errors import ConfigError, DataError
from stylex.evaluation.intervals import Interval, bootstrap, wilson

log = logging.getLogger("stylex")

RELIED_SHARE = 0.1
"""A factor counts as relied on when its effect is at least this share of the largest factor's."""

FACES = 300
"""Faces that are drawn again, by default: about thirty times each."""

LEAST_FACES = 10
"""Fewer faces outside a class than this carry no interval worth giving."""

RESAMPLES = 999

_TOLERANCE = 2  # grey levels; versions of the renderer round differently, another face differs by far more
_ENLARGED = (1, 2, 4, 8)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Redrawn:
    """What a classifier says of N faces and of every redrawing of them with one factor changed.

    Attributes:
        names: of the faces.
        values: factor → its V values.
        own: factor → [N], which of the values the face has.
        base: [N, K], logits of the faces as they are.
        logits: factor → [N, V, K], logits with that value; in the column of its own value those of `base`.
        activation: of the classifier.
    """

    names: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    own: dict[str, IntArray]
    base: npt.NDArray[np.float32]
    logits: dict[str, npt.NDArray[np.float32]]
    activation: Activation

    def changes(self, factor: str, target: int) -> FloatArray:
        """Change of the target's log-odds when a face gets a value, [N, V]; NaN for the value it has."""
        after = log_odds(self.logits[factor].astype(np.float64), self.activation)[..., target]
        before = log_odds(self.base.astype(np.float64), self.activation)[:, None, target]
        found: FloatArray = after - before
        found[np.arange(len(found)), self.own[factor]] = np.nan
        return found

    def outside(self, target: int) -> IntArray:
        """Positions of the faces that the classifier does not put into the target class."""
        return np.flatnonzero(~in_class(self.base, target, self.activation)).astype(np.int64)


@dataclass(frozen=True)
class FactorReliance:
    """How far one factor moves the classifier towards one class, over the faces outside it.

    Attributes:
        factor: its name.
        value: the value that moves faces most towards the class.
        effect: mean change of the class's log-odds when faces get the strongest value, which is chosen on
            other faces than those that estimate it (see `crossed_effect`).
        size: mean absolute change over all faces outside and all other values.
        flips: share of those faces that this value alone sends to the class.
        relied: whether the factor counts as relied on (see RELIED_SHARE).
        by_value: value → mean change of log-odds; None where every face has that value.
    """

    factor: str
    value: str
    effect: Interval
    size: Interval
    flips: Interval
    relied: bool
    by_value: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "factor": self.factor,
            "value": self.value,
            "effect": self.effect.to_json(),
            "size": self.size.to_json(),
            "flips": self.flips.to_json(),
            "relied": self.relied,
            "by_value": self.by_value,
        }


Reliance = dict[str, tuple[FactorReliance, ...]]
"""Class → its factors, the most relied on first; classes without enough faces outside are missing."""


def redraw(
    classifier: Classifier,
    faces: ImageSet,
    values: Mapping[str, Sequence[str]] | None = None,
    *,
    background: str = BACKGROUND,
    source: str | Path | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Redrawn:
    """Draw every face again with every other value of every factor, and ask the classifier.

    Args:
        faces: rendered avatars with their factor columns (others than FACTORS are ignored).
        values: factor → the values to try; by default those that occur among the faces. A factor with one
            value is left out, since nothing can be changed.
        background: colour that the faces were drawn on.
        source: folder or table that the faces come from, for messages.

    Raises:
        DataError: no faces, a factor column is missing, a value cannot be drawn, or a face is not the one
            that its row describes.
    """
    missing = [name for name in FACTORS if name not in faces.factors]
    if missing or not len(faces):
        raise DataError(
            f"these images are no rendered faces with their factors ({', '.join(missing) or 'none given'} "
            "missing); 'stylex data avatars' writes both"
        )
    tried = {name: _values(faces, name, values) for name in FACTORS}
    tried = {name: found for name, found in tried.items() if len(found) > 1}
    size = int(faces.images.shape[1])
    scale = _check_faces(faces, size, background, source)
    rows = [{name: faces.factors[name][number] for name in FACTORS} for number in range(len(faces))]
    base = _classify(classifier, [np.asarray(image) for image in faces.images], batch_size)
    logits = {name: np.repeat(base[:, None], len(found), axis=1) for name, found in tried.items()}
    own = {
        name: np.array([found.index(row[name]) for row in rows], np.int64) for name, found in tried.items()
    }
    waiting: list[npt.NDArray[np.uint8]] = []
    places: list[tuple[str, int, int]] = []

    def flush() -> None:
        for place, answer in zip(places, _classify(classifier, waiting, batch_size), strict=True):
            logits[place[0]][place[1], place[2]] = answer
        waiting.clear()
        places.clear()

    for number, row in enumerate(rows):
        for name, index in _others(tried, own, number):
            waiting.append(_drawn(row | {name: tried[name][index]}, size, scale, background))
            places.append((name, number, index))
        if len(waiting) >= batch_size:
            flush()
        if on_progress is not None:
            on_progress(number + 1, len(rows))
    flush()
    return Redrawn(faces.names, tried, own, base, logits, classifier.activation)


def reliance(
    redrawn: Redrawn,
    class_names: Sequence[str],
    *,
    relied_share: float = RELIED_SHARE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Reliance:
    """How far the classifier relies on every factor, towards every class; intervals by bootstrap over faces.

    Raises:
        DataError: too few faces outside every class.
        ConfigError: a share that is not between 0 and 1.
    """
    if not 0 < relied_share <= 1:
        raise ConfigError(f"the share from which a factor counts as relied on is {relied_share}: 0 to 1")
    found: Reliance = {}
    few: list[str] = []
    for target, label in enumerate(class_names):
        outside = redrawn.outside(target)
        if len(outside) < LEAST_FACES:
            few.append(f"'{label}' ({len(outside)})")
            continue
        changes = {name: redrawn.changes(name, target)[outside] for name in redrawn.values}
        once = np.ones(len(outside))
        most = max(crossed_effect(each, once) for each in changes.values())
        rows = []
        for name, each in changes.items():
            value = strongest(each)[0]
            lacking = redrawn.own[name][outside] != value
            after = redrawn.logits[name][outside][lacking, value]
            flipped = in_class(after, target, redrawn.activation)

            def effect_of(index: FloatArray, each: FloatArray = each) -> float:
                drawn = np.bincount(index.astype(np.int64), minlength=len(each))
                return crossed_effect(each, drawn.astype(np.float64))

            numbers = np.arange(len(outside), dtype=np.float64)
            rows.append(
                FactorReliance(
                    name,
                    redrawn.values[name][value],
                    bootstrap(numbers, effect_of, resamples=resamples, seed=seed),
                    bootstrap(np.nanmean(np.abs(each), axis=1), np.mean, resamples=resamples, seed=seed),
                    wilson(int(flipped.sum()), len(flipped)),
                    most > 0 and crossed_effect(each, once) >= relied_share * most,
                    dict(zip(redrawn.values[name], _means(each), strict=True)),
                )
            )
        found[label] = tuple(sorted(rows, key=lambda row: -row.effect.estimate))
    if few and found:
        log.warning(
            "true reliance is not measured towards %s: fewer than %d of %d faces are outside",
            ", ".join(few),
            LEAST_FACES,
            len(redrawn.names),
        )
    if not found:
        raise DataError(
            f"{len(redrawn.names)} faces leave fewer than {LEAST_FACES} outside every class; take more faces"
        )
    return found


def strongest(changes: FloatArray) -> tuple[int, float]:
    """The value whose mean change [N, V] is the largest, and that mean; values that all have do not count."""
    known = ~np.isnan(changes)
    counts = known.sum(axis=0)
    sums = np.where(known, changes, 0.0).sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
    best = int(means.argmax())
    return best, float(means[best])


def crossed_effect(changes: FloatArray, weights: FloatArray) -> float:
    """Mean change by a factor's strongest value, of changes [N, V] with NaN for the value that a face has.

    The largest of several means of the same faces is above 0 also for a factor that does nothing. So the
    value is chosen on every second face and its mean taken over the others, and the other way round; of both
    the mean over all these faces. Where the halves agree, that is the plain mean of the value.

    Args:
        weights: [N], how often each face counts; a face stays in its half however often it is drawn.
    """
    known = ~np.isnan(changes)
    halves = weights * np.stack([np.arange(len(changes)) % 2 == half for half in (0, 1)])
    counts = halves @ known
    sums = halves @ np.where(known, changes, 0.0)
    usable = (counts > 0).all(axis=0)
    if not usable.any():  # too few faces for two halves
        counts, sums = counts.sum(axis=0), sums.sum(axis=0)
        found = sums[counts > 0] / counts[counts > 0]
        return float(found.max()) if found.size else 0.0
    means = np.where(usable, sums / np.maximum(counts, 1e-12), -np.inf)
    chosen = means.argmax(axis=1)
    return float(sums[(1, 0), chosen].sum() / counts[(1, 0), chosen].sum())


def background_of(source: str | Path) -> str:
    """The colour that a folder of avatars was drawn on, from its spec.yaml; the default where it has none."""
    file = Path(source).expanduser() / "spec.yaml"
    return AvatarSpec.load(file).background if file.is_file() else BACKGROUND


def some_faces(images: ImageSet, count: int = FACES) -> ImageSet:
    """At most `count` of the images, evenly spaced (tables are often sorted by class)."""
    if count < 1:
        raise ConfigError(f"{count} faces are too few: give 1 or more")
    return images.select(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64))


def _means(changes: FloatArray) -> list[float | None]:
    return [None if np.isnan(column).all() else float(np.nanmean(column)) for column in changes.T]


def _values(faces: ImageSet, name: str, given: Mapping[str, Sequence[str]] | None) -> tuple[str, ...]:
    seen = set(faces.factors[name])
    return tuple(sorted(seen | set((given or {}).get(name, ()))))


def _others(
    tried: Mapping[str, Sequence[str]], own: Mapping[str, IntArray], number: int
) -> Iterator[tuple[str, int]]:
    for name, values in tried.items():
        for index in range(len(values)):
            if index != own[name][number]:
                yield name, index


def _check_faces(faces: ImageSet, size: int, background: str, source: str | Path | None) -> int:
    """How much larger than `size` the faces were drawn; see that each row describes its image.

    A set that is read smaller than it was rendered was resized by Lanczos, so its faces are compared with
    drawings of the larger size that are resized alike.
    """
    rows = [{name: faces.factors[name][number] for name in FACTORS} for number in range(len(faces))]

    def off(number: int, scale: int) -> int:
        drawn = _drawn(rows[number], size, scale, background)
        return int(np.abs(drawn.astype(np.int64) - faces.images[number].astype(np.int64)).max())

    scale = min(_ENLARGED, key=lambda scale: off(0, scale))
    for number, name in enumerate(faces.names):
        if off(number, scale) > _TOLERANCE:
            raise DataError(
                f"{place_of(source, name)}: is not the face that its row in the factor table describes; "
                "the table belongs to other images, or the background is another than spec.yaml says"
            )
    return scale


def _drawn(row: Mapping[str, str], size: int, scale: int, background: str) -> npt.NDArray[np.uint8]:
    face = render_face(row, size * scale, background)
    if scale == 1:
        return face
    from PIL import Image

    return to_square(Image.fromarray(face), size)


@torch.inference_mode()
def _classify(
    classifier: Classifier, pictures: Sequence[npt.NDArray[np.uint8]], batch_size: int
) -> npt.NDArray[np.float32]:
    device = next((weight.device for weight in classifier.parameters()), torch.device("cpu"))
    answers = [np.empty((0, classifier.classes), np.float32)]
    for first in range(0, len(pictures), batch_size):
        pixels = np.stack(pictures[first : first + batch_size]).astype(np.float32) / 127.5 - 1
        answers.append(classifier(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)).cpu().numpy())
    return np.concatenate(answers)
