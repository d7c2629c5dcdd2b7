"""A machine that takes part: it reads the factors of images, and tells attributes apart by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.errors import DataError
from stylex.evaluation.factors import FactorDetector
from stylex.evaluation.intervals import wilson
from stylex.study.answers import answers_csv
from stylex.study.design import Design, Step, make_form

CLEAR = 0.75
"""An attribute that is told from others less often than this, halfway to chance, is flagged."""

NOTICED = 0.1
"""Change of a probability under which a named factor counts as unchanged."""

MACHINE_TIME = "1970-01-01T00:00:00+00:00"
"""In the Timestamp of a machine's answers: no person gives any then."""

Vectors = dict[str, npt.NDArray[np.float64]]
"""Animation → how something that is read of its two frames changes."""


@dataclass(frozen=True)
class Changes:
    """What a detector sees change in each animation.

    Attributes:
        seen: its features, those that its heads read, each in units of its own size over all animations: the
            finest that it can tell apart.
        named: the probability of every value of every factor, changes under NOTICED as none: what it can put
            into words.
        labels: factor and value that the entries of `named` stand for.
    """

    seen: Vectors
    named: Vectors
    labels: tuple[str, ...]


@dataclass(frozen=True)
class MachineAttribute:
    """How a machine did on one attribute.

    Attributes:
        accuracy, low, high: by what it sees, with Wilson's interval.
        named: accuracy by what it can name only. People may do no better.
        reads: the factor that changes most, and by how much of its probability.
        confused_with: the attribute most often taken for it, by either; None where none was.
        flagged: one of the two accuracies is under CLEAR.
    """

    attribute: str
    accuracy: float
    low: float
    high: float
    named: float
    reads: str
    change: float
    confused_with: str | None
    flagged: bool


@dataclass(frozen=True)
class MachineResult:
    """A machine's answers: `choices[p]` are A or B to every question of the study, as the CSV has them."""

    participants: int
    accuracy: float
    attributes: tuple[MachineAttribute, ...]
    questions: tuple[int, ...]
    choices: tuple[tuple[str, ...], ...]

    @property
    def flagged(self) -> tuple[str, ...]:
        return tuple(entry.attribute for entry in self.attributes if entry.flagged)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the single answers."""
        return {
            "participants": self.participants,
            "accuracy": self.accuracy,
            "attributes": [asdict(entry) for entry in self.attributes],
            "flagged": list(self.flagged),
        }

    def csv(self) -> str:
        """The answers in the layout that `analyse` reads."""
        return answers_csv(self.questions, [(MACHINE_TIME, row) for row in self.choices])


def read_changes(detector: FactorDetector, places: dict[str, int], pairs: Tensor) -> Changes:
    """What changes in each animation, as a detector sees it.

    Args:
        places, pairs: of `material.load_pairs`: uint8 [M, 2, S, S, 3].

    Raises:
        DataError: the detector reads images of another size.
    """
    if pairs.shape[2] != detector.size:
        raise DataError(f"the factor detector reads {detector.size} pixels, the study has {pairs.shape[2]}")
    device = detector.heads.weight.device
    frames = (pairs.permute(1, 0, 4, 2, 3).float() / 127.5 - 1).to(device)
    features: list[Tensor] = []
    hook = detector.heads.register_forward_pre_hook(lambda _, given: features.append(given[0].float()))
    try:
        with torch.inference_mode():
            before, after = (
                torch.cat([logits.softmax(dim=1) for logits in detector(part).values()], dim=1)
                for part in frames
            )
    finally:
        hook.remove()
    named = (after - before).double().cpu().numpy()
    named[np.abs(named) < NOTICED] = 0
    seen = (features[1] - features[0]).double().cpu().numpy()
    size = np.sqrt((seen**2).mean(axis=0))
    seen = seen / (size + 1e-3 * np.sqrt((size**2).mean()) + 1e-12)
    labels = tuple(f"{name}: {value}" for name, values in detector.factors.items() for value in values)
    return Changes(
        {name: seen[place] for name, place in places.items()},
        {name: named[place] for name, place in places.items()},
        labels,
    )


def take_part(design: Design, changes: Changes, names: Sequence[str], count: int) -> MachineResult:
    """Have a machine answer the forms of `count` participants.

    It takes the choice in which more changes in the direction of the two references (cosine with their mean
    change). It carries nothing from one question to the next.

    Args:
        names: of the attributes.
    """
    seen = [_Tally() for _ in design.attributes]
    named = [_Tally() for _ in design.attributes]
    choices: list[tuple[str, ...]] = []
    other = {"A": "B", "B": "A"}
    for number in range(1, count + 1):
        row: dict[int, str] = {}
        for step in make_form(design, number):
            if step.kind != "question" or step.question is None or step.attribute is None:
                continue
            choice = _choose(step, changes.seen)
            seen[step.attribute].count(design, step, choice)
            named[step.attribute].count(design, step, _choose(step, changes.named))
            side = design.key[step.question]
            row[step.question] = side if choice == step.right else other[side]
        choices.append(tuple(row[number] for number in design.key))
    found = []
    for place, entry in enumerate(design.attributes):
        share, by_name = (wilson(tally.right, tally.asked) for tally in (seen[place], named[place]))
        mean = np.mean([changes.named[name] for name in entry.shown], axis=0)
        most = int(np.abs(mean).argmax())
        taken_for = (seen[place].taken_for + named[place].taken_for).most_common(1)
        found.append(
            MachineAttribute(
                attribute=names[place],
                accuracy=share.estimate,
                low=share.low,
                high=share.high,
                named=by_name.estimate,
                reads=changes.labels[most] if mean[most] else "nothing",
                change=float(mean[most]),
                confused_with=names[taken_for[0][0]] if taken_for else None,
                flagged=min(share.estimate, by_name.estimate) < CLEAR,
            )
        )
    right, asked = sum(tally.right for tally in seen), sum(tally.asked for tally in seen)
    return MachineResult(count, right / asked, tuple(found), tuple(design.key), tuple(choices))


class _Tally:
    """Right answers about one attribute, and what it was taken for."""

    def __init__(self) -> None:
        self.asked = self.right = 0
        self.taken_for: Counter[int] = Counter()

    def count(self, design: Design, step: Step, choice: str) -> None:
        self.asked += 1
        if choice == step.right:
            self.right += 1
        else:
            self.taken_for[design.owner(str(step.a if choice == "A" else step.b))] += 1


def _choose(step: Step, changes: Vectors) -> str:
    wanted = np.mean([changes[name] for name in step.references], axis=0)
    return "A" if _cosine(wanted, changes[str(step.a)]) >= _cosine(wanted, changes[str(step.b)]) else "B"


def _cosine(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0
