"""Counterfactuals: the fewest attributes that flip an image, each moved no farther than needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind import Attribute
from stylex.attfind.attributes import in_class
from stylex.attfind.effects import Activation, log_odds
from stylex.model import Model
from stylex.stylespace import DIRECTIONS, DirectedCoordinate, StyleSpace

Judge = Callable[
    [list[dict[DirectedCoordinate, float]]], tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]
]
"""Sets of changes → the target's log-odds and whether the image counts as the target, one entry a set."""

BISECTION_STEPS = 6
"""Halvings of an attribute's way; the last one leaves 1/64 of it."""


@dataclass(frozen=True)
class Change:
    """One attribute in a counterfactual and how far it was moved: 0 not at all, 1 to the end of its range."""

    attribute: Attribute
    amount: float

    def __str__(self) -> str:
        return (
            f"{DIRECTIONS[self.attribute.direction]} {self.attribute.title} by {self.amount:.0%} of its way"
        )


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """What it takes to make the classifier see another class.

    Pictures are uint8 [H, W, 3]; `reconstruction` is the generator's version of `original` (None where the
    latent was sampled), `edited` the reconstruction with `changes` applied. Probabilities are of all classes.
    `flipped` says whether the edited image counts as the target; where it does not, `edited` is as close as
    the attributes get. `reconstruction_keeps_class` is False where the reconstruction alone already changes
    the class (sigmoid classifiers: switches the target label), so that the explanation should not be trusted.
    """

    name: str
    target: str
    class_names: tuple[str, ...]
    original: npt.NDArray[np.uint8] | None
    reconstruction: npt.NDArray[np.uint8]
    edited: npt.NDArray[np.uint8]
    probabilities_original: tuple[float, ...] | None
    probabilities_before: tuple[float, ...]
    probabilities_after: tuple[float, ...]
    changes: tuple[Change, ...]
    flipped: bool
    already: bool
    reconstruction_keeps_class: bool

    @property
    def answer(self) -> str:
        """One honest sentence."""
        index = self.class_names.index(self.target)
        before, after = self.probabilities_before[index], self.probabilities_after[index]
        if self.already:
            return f"{self.name} already counts as '{self.target}' ({before:.0%}); nothing was changed."
        if not self.flipped:
            return (
                f"Nothing found flips {self.name} to '{self.target}': with {len(self.changes)} attributes "
                f"changed, its probability goes from {before:.0%} to {after:.0%}."
            )
        what = "; ".join(str(change) for change in self.changes)
        return f"{self.name} becomes '{self.target}' ({before:.0%} → {after:.0%}): {what}."

    @property
    def warning(self) -> str | None:
        """What to know before trusting it, or None."""
        if self.reconstruction_keeps_class:
            return None
        return (
            f"the classifier sees another class in the reconstruction of {self.name} than in the image; "
            "this explanation is about the reconstruction and should not be trusted"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the pictures."""
        return {
            "name": self.name,
            "target": self.target,
            "class_names": list(self.class_names),
            "flipped": self.flipped,
            "already_target": self.already,
            "reconstruction_keeps_class": self.reconstruction_keeps_class,
            "answer": self.answer,
            "warning": self.warning,
            "probabilities": {
                "original": None
                if self.probabilities_original is None
                else list(self.probabilities_original),
                "reconstruction": list(self.probabilities_before),
                "counterfactual": list(self.probabilities_after),
            },
            "changes": [{"amount": change.amount, **change.attribute.to_json()} for change in self.changes],
        }

    def _repr_html_(self) -> str:
        """For notebooks."""
        from stylex.report.notebook import counterfactual_html

        return counterfactual_html(self)

    def save(self, path: str | Path) -> None:
        """Write .png (original, reconstruction, edited, side by side), .gif (flicker) or .json, by suffix.

        Raises:
            ConfigError: another suffix.
        """
        from stylex.report.counterfactuals import save_counterfactual

        save_counterfactual(self, Path(path))


def explain_styles(
    model: Model,
    space: StyleSpace,
    attributes: Sequence[Attribute],
    styles: Tensor,
    target: str,
    *,
    image: Tensor | None = None,
    name: str = "image",
) -> Counterfactual:
    """Search a counterfactual for one image of the generator.

    Greedy: of all attributes not used yet, the one that raises the target's log-odds most is moved to its end
    (one that flips the image before one that does not), until the class flips; then attributes that turned
    out not to be needed are taken back, weakest first; then each is moved back by bisection as far as the
    flip lasts, weakest first.

    Args:
        attributes: candidates for this target, best first.
        styles: [1, T].
        image: the original [1, 3, R, R], or None where the latent was sampled.
    """
    index = model.class_names.index(target)
    activation = model.classifier.activation

    def judge(
        candidates: list[dict[DirectedCoordinate, float]],
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        moved = torch.cat([space.shift(styles, changes) for changes in candidates])
        logits = model.classify(model.synthesise(moved)).cpu().numpy()
        return log_odds(logits, activation)[:, index], in_class(logits, index, activation)

    start_odds, start_in = judge([{}])
    used: dict[DirectedCoordinate, float] = {}
    flipped = already = bool(start_in[0])
    odds = float(start_odds[0])
    while not flipped:
        open_ = [
            entry.change
            for entry in attributes
            if entry.coordinate not in {coordinate for _, coordinate in used}
        ]
        if not open_:
            break
        gains, reached = judge([{**used, change: 1.0} for change in open_])
        best = int(np.where(reached, gains, -np.inf if reached.any() else gains).argmax())
        if gains[best] <= odds and not reached[best]:
            break
        used[open_[best]], odds = 1.0, float(gains[best])
        # By itself once more: near the boundary the rounding of a larger batch may decide.
        flipped = bool(reached[best]) and bool(judge([used])[1][0])
    if flipped and used:
        used = _without_needless(used, judge)
        used = _no_farther_than_needed(used, judge)
    by_change = {entry.change: entry for entry in attributes}
    # One at a time, as the flip was found: bisection ends so near the boundary that rounding counts.
    images = torch.cat([model.synthesise(styles), model.synthesise(space.shift(styles, used))])
    logits = torch.cat([model.classify(images[:1]), model.classify(images[1:])]).cpu()
    probabilities = model.classifier.probabilities(logits)
    original_logits = None if image is None else model.classify(image).cpu()
    return Counterfactual(
        name=name,
        target=target,
        class_names=model.class_names,
        original=None if image is None else to_picture(image[0]),
        reconstruction=to_picture(images[0]),
        edited=to_picture(images[1]),
        probabilities_original=None
        if original_logits is None
        else tuple(model.classifier.probabilities(original_logits)[0].tolist()),
        probabilities_before=tuple(probabilities[0].tolist()),
        probabilities_after=tuple(probabilities[1].tolist()),
        changes=tuple(Change(by_change[change], amount) for change, amount in used.items()),
        flipped=flipped,
        already=already,
        reconstruction_keeps_class=original_logits is None
        or same_class(original_logits[0].numpy(), logits[0].numpy(), index, activation),
    )


def same_class(before: npt.NDArray[Any], after: npt.NDArray[Any], label: int, activation: Activation) -> bool:
    """Whether logits [K] before and after give the same class; sigmoid: the same answer to `label`."""
    if activation == "sigmoid":
        return bool(in_class(before, label, activation) == in_class(after, label, activation))
    return bool(before.argmax() == after.argmax())


def _without_needless(used: dict[DirectedCoordinate, float], judge: Judge) -> dict[DirectedCoordinate, float]:
    """Take back every change whose absence keeps the flip, the last chosen (weakest) first."""
    for change in reversed(list(used)):
        fewer = {other: amount for other, amount in used.items() if other != change}
        if fewer and judge([fewer])[1][0]:
            used = fewer
    return used


def _no_farther_than_needed(
    used: dict[DirectedCoordinate, float], judge: Judge
) -> dict[DirectedCoordinate, float]:
    """Bisect each change's amount, weakest first, to the least that keeps the flip."""
    for change in reversed(list(used)):
        enough, short = used[change], 0.0
        for _ in range(BISECTION_STEPS):
            middle = (enough + short) / 2
            if judge([{**used, change: middle}])[1][0]:
                enough = middle
            else:
                short = middle
        used = {**used, change: enough}
    return used


def to_picture(image: Tensor) -> npt.NDArray[np.uint8]:
    """One image [3, H, W] in [-1, 1] → uint8 [H, W, 3]."""
    pixels = (image.detach().float().clamp(-1, 1).permute(1, 2, 0).cpu() + 1) * 127.5
    return pixels.round().to(torch.uint8).numpy()
