"""Attributes: the coordinates that AttFind selects for a target class, with their effects, ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stylex.attfind.class_effects import blocks, class_effects
from stylex.attfind.effects import Activation
from stylex.attfind.selection import (
    EffectsArray,
    merge_two_classes,
    select_independent,
    select_removal,
    select_subset,
    unstable_images,
)
from stylex.config import AttFindSettings
from stylex.errors import DataError
from stylex.stylespace import DirectedCoordinate, StyleSpace


@dataclass(frozen=True)
class Attribute:
    """A style coordinate and a direction that move images towards a target class.

    `effect` is the mean change of the target's log-odds (or logit, see AttFindSettings.effect) over the
    `images` searched, `effect_std` its standard deviation over them, `flipped` the share of them that this
    change alone sends to the target class. `rank` counts from 1. `name` is what a person called it. `repeats`
    is the rank of the attribute of the same target that stands for all that do the same (see `likeness`);
    None for one that is distinct, and where they were not compared. `pick` is its place among the picks of
    the selection, from 1; None in files that were written before ranks had another order.
    """

    target: str
    rank: int
    direction: int
    coordinate: int
    layer: str
    resolution: int
    channel: int
    effect: float
    effect_std: float
    flipped: float
    images: int
    name: str | None = None
    repeats: int | None = None
    pick: int | None = None

    @property
    def change(self) -> DirectedCoordinate:
        return self.direction, self.coordinate

    @property
    def title(self) -> str:
        """The name, or a neutral one."""
        return self.name or f"attribute {self.rank} ({self.layer} channel {self.channel})"

    def named(self, name: str | None) -> Attribute:
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Ranking(tuple[Attribute, ...]):
    """Attributes, best first: a tuple that a notebook shows as a table."""

    __slots__ = ()

    @property
    def distinct(self) -> Ranking:
        """Without those that repeat another; ranks stay."""
        return Ranking(entry for entry in self if entry.repeats is None)

    def _repr_html_(self) -> str:
        from stylex.report.notebook import attributes_html

        return attributes_html(self)


@dataclass(frozen=True)
class ScreenedStage:
    """What a stage of a screened search left open.

    Attributes:
        images: how many it was judged by.
        first_order: whether by first-order effects alone.
        changes_left: of 2 · S.
        sure: share of selections from resampled images that lie among these; None by first-order effects,
            and where everything stayed.
    """

    images: int
    first_order: bool
    changes_left: int
    sure: float | None


@dataclass(frozen=True)
class Findings:
    """What one search found: attributes by target class, and how many images it stood on.

    `merged` is one list for two classes: towards the first of them, the inverse towards the second; empty for
    more classes and for labels that do not exclude each other. `unstable` images were left out. `screening`
    has the stages of a screened search; it is empty for an exact one.
    """

    attributes: dict[str, tuple[Attribute, ...]]
    merged: tuple[DirectedCoordinate, ...]
    images: int
    unstable: int
    coordinates: int
    settings: AttFindSettings
    screening: tuple[ScreenedStage, ...] = ()

    @property
    def confidence(self) -> float | None:
        """Of a screened search: the lowest of its stages' `sure`; None where effects gave nothing up."""
        return min((stage.sure for stage in self.screening if stage.sure is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as attributes.json holds them."""
        return {
            "images": self.images,
            "unstable_images": self.unstable,
            "coordinates": self.coordinates,
            "settings": self.settings.model_dump(mode="json"),
            "attributes": {
                target: [attribute.to_json() for attribute in found]
                for target, found in self.attributes.items()
            },
            "merged": [list(change) for change in self.merged],
            "screening": [asdict(stage) for stage in self.screening],
            "confidence": self.confidence,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Findings:
        """The inverse of `to_json`."""
        return cls(
            {
                target: tuple(Attribute(**entry) for entry in found)
                for target, found in content["attributes"].items()
            },
            tuple((int(direction), int(coordinate)) for direction, coordinate in content["merged"]),
            content["images"],
            content["unstable_images"],
            content["coordinates"],
            # Files that were written before attributes were compared, or put in order, say nothing of it.
            AttFindSettings(**({"alike": None, "order": "selection"} | content["settings"])),
            tuple(ScreenedStage(**stage) for stage in content.get("screening", ())),
        )


def find_attributes(
    before: npt.NDArray[np.float32],
    after: EffectsArray,
    space: StyleSpace,
    class_names: Sequence[str],
    settings: AttFindSettings,
    activation: Activation = "softmax",
    accept: Callable[[int, int], bool] | None = None,
    *,
    targets: Sequence[int] | None = None,
    effects: EffectsArray | None = None,
    unstable: npt.NDArray[np.bool_] | None = None,
) -> Findings:
    """Select and rank attributes for every target class (facts of the method, items 3 to 7).

    For a target, the images of all other classes are searched (two classes: of the other one; more:
    one-vs-all). The class of an image is the argmax on its reconstruction; of a sigmoid classifier, whether
    the label is on.

    Args:
        before: [N, K] logits of the unchanged reconstructions.
        after: [N, 2, S, K] logits after each change, from `sweep`; an array or a reader such as `Shards`.
        accept: accept(target, coordinate), a filter such as the discriminator's.
        targets: the class indices to select for; by default those `sought`. With fewer nothing is merged; the
            others have no attributes.
        effects: what `class_effects` made of the logits, if it has been asked before.
        unstable: images [N] to leave out; by default as the settings and all effects say.

    Raises:
        DataError: no stable image is of another class than some target.
    """
    if effects is None:
        with class_effects(before, after, settings, activation) as measured:
            return find_attributes(
                before,
                after,
                space,
                class_names,
                settings,
                activation,
                accept,
                targets=targets,
                effects=measured,
                unstable=unstable,
            )
    keep = np.ones(len(before), bool)
    if unstable is not None:
        keep = ~unstable
    elif settings.unstable_threshold is not None:
        keep = ~unstable_images(effects, settings.unstable_threshold, settings.unstable_max_share)
    picks: dict[int, list[DirectedCoordinate]] = {}
    searched: dict[int, npt.NDArray[np.bool_]] = {}
    if targets is None:
        targets = sought(before, activation) or range(len(class_names))
    for target in targets:
        name = class_names[target]
        others = ~in_class(before, target, activation)
        images = others & keep
        if not others.any():
            raise DataError(
                f"every image counts as '{name}', so nothing can be sent there; search more or other images"
            )
        if not images.any():
            raise DataError(
                f"all {others.sum()} images outside '{name}' are unstable, moved by nearly every coordinate; "
                "train longer, or switch the filter off with --set unstable_threshold=null"
            )
        picks[target] = select(effects, target, settings, images, accept)
        searched[target] = images
    asked = {target: (target, searched[target], picks[target]) for target in picks}
    flips = flip_shares(after, asked, activation)
    found: dict[str, tuple[Attribute, ...]] = dict.fromkeys(class_names, ())
    found |= {
        name: tuple(
            describe(
                space,
                name,
                rank,
                change,
                np.asarray(effects[:, change[0], change[1], target])[searched[target]],
                flips[target][change],
            )
            for rank, change in enumerate(picks[target], 1)
        )
        for target, name in enumerate(class_names)
        if target in picks
    }
    merged: list[DirectedCoordinate] = []
    if len(class_names) == 2 and len(picks) == 2 and activation == "softmax":
        merged = merge_two_classes(effects, picks[0], picks[1], images=keep)
    return Findings(found, tuple(merged), len(before), int((~keep).sum()), space.size, settings)


def in_class(logits: npt.NDArray[np.float32], target: int, activation: Activation) -> npt.NDArray[np.bool_]:
    """Whether logits [..., K] count as a class, bool [...].

    Softmax: the argmax, of equal ones the first, so that an image is in exactly one class. Sigmoid: the
    label's logit is above 0.
    """
    if activation == "sigmoid":
        return np.asarray(logits[..., target] > 0)
    return np.asarray(logits.argmax(axis=-1) == target)


def sought(logits: npt.NDArray[np.float32], activation: Activation) -> list[int]:
    """Classes [N, K] that some image counts as and some does not: what there is something to find about."""
    found = []
    for target in range(logits.shape[1]):
        inside = in_class(logits, target, activation)
        if inside.any() and not inside.all():
            found.append(target)
    return found


def select(
    effects: EffectsArray,
    target: int,
    settings: AttFindSettings,
    images: npt.NDArray[np.bool_],
    accept: Callable[[int, int], bool] | None,
) -> list[DirectedCoordinate]:
    """Up to `count` coordinates, each once.

    *Subset* and *removal* end when every image is explained, which strong coordinates do after a few picks.
    Then another round begins with what is left and all images unexplained again, so that a ranking is as long
    as was asked for; the published result is its first round. Of a coordinate that is selected in both
    directions, the first pick counts.
    """
    chosen: dict[int, DirectedCoordinate] = {}

    def open_(coordinate: int) -> bool:
        return coordinate not in chosen and (accept is None or accept(target, coordinate))

    if settings.method == "independent":
        found = select_independent(
            effects,
            target,
            2 * settings.count,
            settings.independent_threshold,
            settings.independent_min_share,
            images=images,
            accept=open_,
        )
        for change in found:
            chosen.setdefault(change[1], change)
        return list(chosen.values())[: settings.count]
    choose = select_subset if settings.method == "subset" else select_removal
    while len(chosen) < settings.count:
        limit = settings.count - len(chosen)
        found = choose(effects, target, limit, settings.max_image_effect, images=images, accept=open_)
        if not found:
            break
        for change in found:
            chosen.setdefault(change[1], change)
    return list(chosen.values())


Key = TypeVar("Key")


def flip_shares(
    after: EffectsArray,
    asked: Mapping[Key, tuple[int, npt.NDArray[np.bool_], Sequence[DirectedCoordinate]]],
    activation: Activation,
) -> dict[Key, dict[DirectedCoordinate, float]]:
    """For each (target, images [N], picks), the share of the images that each pick alone sends to the target.

    `after` [N, 2, S, K] is read once, block by block.
    """
    counts = {key: np.zeros(len(picks)) for key, (_, _, picks) in asked.items()}
    for block in blocks(after.shape):
        logits = after[block]
        for key, (target, images, picks) in asked.items():
            if picks:
                directions, coordinates = np.array(picks).T
                rows = np.flatnonzero(images[block])[:, None]
                alone = logits[rows, directions, coordinates]
                counts[key] += in_class(alone, target, activation).sum(axis=0)
    return {
        key: dict(zip(picks, (counts[key] / images.sum()).tolist(), strict=True))
        for key, (_, images, picks) in asked.items()
    }


def describe(
    space: StyleSpace,
    target: str,
    rank: int,
    change: DirectedCoordinate,
    effects: npt.NDArray[np.floating],
    flipped: float,
) -> Attribute:
    """An attribute with its figures, from the effects of its change on the images searched, [n].

    Its rank is its pick; `mark_repeats` puts attributes into another order.
    """
    direction, coordinate = change
    place, channel = space.layer(coordinate)
    values = effects.astype(np.float64)
    return Attribute(
        target=target,
        rank=rank,
        direction=direction,
        coordinate=coordinate,
        layer=place.name,
        resolution=place.resolution,
        channel=channel,
        effect=float(values.mean()),
        effect_std=float(values.std()),
        flipped=flipped,
        images=len(values),
        pick=rank,
    )
