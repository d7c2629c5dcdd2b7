"""Explanations by subgroup: does the classifier look at the same things in all of them, and where it errs?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from statsmodels.stats.multitest import multipletests

from stylex.attfind import Attribute, effects_of, find_attributes, load_logits
from stylex.attfind.attributes import in_class
from stylex.attfind.likeness import mark_repeats
from stylex.classifiers import Classifier
from stylex.config import AttFindSettings
from stylex.data import ImageSet
from stylex.errors import DataError, RunError
from stylex.evaluation.coverage import LEAST_IMAGES, Coverage
from stylex.evaluation.intervals import Interval, bootstrap
from stylex.explainer import Explainer
from stylex.questions.hypothesis import welch

COUNT = 5
"""Attributes given for each group and class."""

SIGNIFICANCE = 0.05

_LEAST_HALVED = 4  # each half has two images, fewer have no interval


@dataclass(frozen=True)
class GroupAttribute:
    """An attribute found in one group, beside what it does in the other images.

    Attributes:
        attribute: as AttFind selects and ranks it on one half of the group's images, with its figures there.
        effect: mean change of the target's log-odds in the other half, which did not choose it.
        elsewhere: mean effect of the same change in the other images; None where there are none.
        difference: (estimate, low, high) of those two (Welch, 95 %); None of fewer than two images on a side.
        p: of no difference, adjusted over all attributes asked about (Holm).
    """

    attribute: Attribute
    effect: Interval
    elsewhere: float | None
    difference: tuple[float, float, float] | None
    p: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        difference = None
        if self.difference is not None:
            difference = dict(zip(("estimate", "low", "high"), self.difference, strict=True))
        return {
            **self.attribute.to_json(),
            "interval": self.effect.to_json(),
            "elsewhere": self.elsewhere,
            "difference": difference,
            "p": self.p,
            "differs": self.p <= SIGNIFICANCE,
        }


@dataclass(frozen=True)
class GroupFinding:
    """One group: how many discovery images it has, its attributes by class, and why a class is missing.

    `coverage` is of the test images of the group; None where it has none.
    """

    group: str
    images: int
    attributes: dict[str, tuple[GroupAttribute, ...]]
    missing: dict[str, str]
    coverage: Coverage | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "group": self.group,
            "images": self.images,
            "attributes": {
                name: [each.to_json() for each in found] for name, found in self.attributes.items()
            },
            "missing": self.missing,
            "coverage": None if self.coverage is None else self.coverage.to_json(),
        }


def explain_groups(
    explainer: Explainer,
    groups: Sequence[str],
    covered: Sequence[Coverage] = (),
    *,
    count: int = COUNT,
    least: int = LEAST_IMAGES,
    seed: int = 0,
) -> tuple[GroupFinding, ...]:
    """Select attributes anew on the discovery images of every group, from the effects measured already.

    One half of a group's images outside the class, drawn at random, selects; the other half is compared with
    the images elsewhere. What was selected for being large in some images is large in them by luck too, so
    that in the very same images it would differ from elsewhere where groups do not differ at all.

    Args:
        groups: which group each discovery image of the run belongs to, in its order.
        covered: coverage of the groups' test images.
        least: images outside a class that a group must have for attributes towards it, at least four.
        seed: of the halves, and of the intervals.

    Raises:
        DataError: not one group an image, one group only, or no group with enough images.
        RunError: the run holds no effects.
    """
    discovery, findings, model = explainer.discovery, explainer.findings, explainer.model
    labels = np.asarray(groups)
    if labels.shape != (len(discovery.names),):
        raise DataError(
            f"{len(labels)} groups for {len(discovery.names)} discovery images: give one an image"
        )
    kinds = sorted(set(labels.tolist()))
    if len(kinds) < 2:
        raise DataError(f"all discovery images are in one group ({', '.join(kinds)}): nothing to compare")
    before, activation = discovery.logits.numpy(), model.classifier.activation
    after = load_logits(explainer.run, model, discovery, findings.settings)[:]
    # As many as the run's search selected: the order by effect is of all of them, the first are shown.
    settings = findings.settings.model_copy(update={"count": max(count, findings.settings.count)})
    effects = effects_of(before, after, settings, activation)
    known = {entry.group: entry for entry in covered}
    raw: list[tuple[str, str, Attribute, npt.NDArray[Any], npt.NDArray[Any]]] = []
    missing: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    random = np.random.default_rng(seed)
    for kind in kinds:
        own = labels == kind
        for target, name in enumerate(model.class_names):
            outside = ~in_class(before, target, activation)
            number = int((own & outside).sum())
            if number < max(least, _LEAST_HALVED):
                missing[kind][name] = (
                    f"{number} discovery images are outside '{name}', {max(least, _LEAST_HALVED)} are needed"
                )
                continue
            selecting, testing = _halves(own & outside, random)
            found = _towards(selecting, before, after, explainer, settings, name)
            for entry in found[:count]:
                values = effects[:, entry.direction, entry.coordinate, target].astype(np.float64)
                raw.append((kind, name, entry, values[testing], values[outside & ~own]))
    if not raw:
        reasons = "; ".join(f"{kind}: {next(iter(why.values()))}" for kind, why in missing.items() if why)
        raise DataError(f"no group has enough discovery images ({reasons}); search more images")
    p = _adjusted([_p(inside, other) for *_, inside, other in raw])
    found_groups = []
    for kind in kinds:
        attributes: dict[str, tuple[GroupAttribute, ...]] = {}
        for (group, name, entry, inside, other), each in zip(raw, p, strict=True):
            if group != kind:
                continue
            shown = GroupAttribute(
                entry,
                bootstrap(inside, np.mean, resamples=999, seed=seed),
                float(other.mean()) if len(other) else None,
                welch(inside, other) if min(len(inside), len(other)) > 1 else None,
                each,
            )
            attributes[name] = (*attributes.get(name, ()), shown)
        images = int((labels == kind).sum())
        found_groups.append(GroupFinding(kind, images, attributes, missing[kind], known.get(kind)))
    return tuple(found_groups)


def groups_from_column(explainer: Explainer, images: ImageSet, column: str, source: str) -> list[str]:
    """The group of each discovery image of the run: the value of a metadata column.

    Raises:
        RunError: the run stands on sampled images, which no table knows.
        DataError: no such column, or an image that the table does not name, or whose cell is empty.
    """
    if explainer.model.encoder is None:
        raise RunError(
            f"{explainer.run.path}: its images are sampled, so no table says which group they are of"
        )
    if column not in images.factors:
        raise DataError(
            f"{source}: no column '{column}'; there are {', '.join(images.factors) or 'no columns'}"
        )
    values = dict(zip(images.names, images.factors[column], strict=True))
    for name in explainer.discovery.names:
        if not values.get(name):
            what = f"has no row for {name}" if name not in values else f"row of {name}: '{column}' is empty"
            raise DataError(f"{source}: {what}; fill it in, or search again with these images")
    return [values[name] for name in explainer.discovery.names]


def right_or_wrong(classifier: Classifier, images: ImageSet, source: str, batch_size: int = 64) -> list[str]:
    """Whether the classifier's class of each image is its label: "right" or "wrong".

    Raises:
        DataError: images without labels, or labels of other classes; labels that do not exclude each other.
    """
    if classifier.activation == "sigmoid":
        raise DataError("errors are asked for by class; this classifier's labels do not exclude each other")
    if images.labels is None or images.class_names is None:
        raise DataError(f"{source}: the images have no labels, so nothing says where the classifier errs")
    if set(images.class_names) - set(classifier.class_names):
        raise DataError(
            f"{source}: its classes are {', '.join(images.class_names)}, "
            f"those of the classifier are {', '.join(classifier.class_names)}"
        )
    device = next((weight.device for weight in classifier.parameters()), None)
    found = []
    for first in range(0, len(images), batch_size):
        batch = images.batch(slice(first, first + batch_size))
        answers = classifier(batch if device is None else batch.to(device)).argmax(dim=1).tolist()
        labels = images.labels[first : first + batch_size]
        for answer, label in zip(answers, labels, strict=True):
            right = classifier.class_names[answer] == images.class_names[int(label)]
            found.append("right" if right else "wrong")
    return found


def _halves(
    rows: npt.NDArray[np.bool_], random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The positions of the marked images in two random halves; of an odd number the second has one more."""
    shuffled = random.permutation(np.flatnonzero(rows).astype(np.int64))
    middle = len(shuffled) // 2
    return np.sort(shuffled[:middle]), np.sort(shuffled[middle:])


def _towards(
    rows: npt.NDArray[np.int64],
    before: npt.NDArray[np.float32],
    after: npt.NDArray[np.float32],
    explainer: Explainer,
    settings: AttFindSettings,
    name: str,
) -> tuple[Attribute, ...]:
    """Attributes towards one class, compared and ranked as a search does; none where all are unstable.

    Args:
        rows: the images to stand on, all of them outside the class.
    """
    model, discovery, names = explainer.model, explainer.discovery, explainer.class_names
    space, activation = discovery.space, model.classifier.activation
    logits = before[rows]
    try:
        found = find_attributes(
            logits, after[rows], space, names, settings, activation, targets=(names.index(name),)
        )
    except DataError:
        return ()
    found = mark_repeats(model, space, discovery.styles[rows], torch.from_numpy(logits), found)
    return found.attributes[name]


def _p(inside: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    from scipy import stats

    if len(inside) < 2 or len(other) < 2:
        return 1.0
    if inside.std() == 0 and other.std() == 0:
        return 1.0 if inside.mean() == other.mean() else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are nearly all the same
        return float(stats.ttest_ind(inside, other, equal_var=False).pvalue)


def _adjusted(values: Sequence[float]) -> list[float]:
    """Holm's adjustment, so that of many attributes asked about few differ by luck."""
    return [float(each) for each in multipletests(values, method="holm")[1]]
