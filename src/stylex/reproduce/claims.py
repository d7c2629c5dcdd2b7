"""The study's three claims, each with a verdict that rests on figures, not on pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stylex.errors import DataError
from stylex.evaluation.intervals import Interval, wilson
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import STYLEGAN2, Workshop

Word = Literal["supported", "not supported", "undecided"]

KEPT = 0.9
"""Share of reconstructions that must keep their class for claim 1."""

COORDINATES = 10

CONFIRMED = 0.5
"""Share of flips that an independent classifier must see too for claims 2 and 3."""


@dataclass(frozen=True)
class Verdict:
    """A claim, the word on it, and why."""

    claim: str
    word: Word
    evidence: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"claim": self.claim, "verdict": self.word, "evidence": list(self.evidence)}


def make(shop: Workshop) -> Item:
    """Evaluate both recipes by both protocols where that has not been done, and judge."""
    own: Any = shop.evaluation(shop.stylex_recipe)
    theirs: Any = shop.study_result(shop.stylex_recipe)
    plain: Any = shop.study_result(STYLEGAN2)
    verdicts = (reconstruction(own["agreement"]), attributes(own["methods"]), comparison(theirs, plain))
    lines = [f"## Claims: {shop.experiment.title}", ""]
    for number, verdict in enumerate(verdicts, 1):
        lines += [f"{number}. {verdict.claim} **{verdict.word.capitalize()}.**"]
        lines += [f"   - {line}" for line in verdict.evidence]
    lines += [
        "",
        f"Recipe {shop.stylex_recipe}, seed {shop.seed}; figures: table-2, figure-2 and evaluation.json.",
    ]
    content = {"claims": [verdict.to_json() for verdict in verdicts]}
    return Item("claims", shop.experiment.name, "\n".join(lines), content)


def reconstruction(agreement: dict[str, Any] | None) -> Verdict:
    """Claim 1: supported where the interval of the share that keeps its class lies above KEPT.

    Args:
        agreement: of evaluation.json; None of a recipe without an encoder.
    """
    claim = "StylEx reconstructs images with what the classifier sees in them."
    if agreement is None:
        return Verdict(claim, "undecided", ("the recipe reconstructs no images",))
    low, high = agreement["low"], agreement["high"]
    word: Word = "supported" if low >= KEPT else "not supported" if high < KEPT else "undecided"
    return Verdict(
        claim,
        word,
        (
            f"{agreement['estimate']:.1%} of {agreement['n']} test images keep their class ({low:.1%} to "
            f"{high:.1%}); {KEPT:.0%} are asked for",
        ),
    )


def attributes(methods: list[dict[str, Any]]) -> Verdict:
    """Claim 2: supported where, towards every class, AttFind's interval lies above that of random coordinates
    and most of its flips are confirmed (undecided where no classifier has judged them).

    Raises:
        DataError: nothing was measured towards any class.
    """
    by_target: dict[str, dict[str, dict[str, Any]]] = {}
    for method in methods:
        by_target.setdefault(method["target"], {})[method["method"]] = method
    evidence: list[str] = []
    words: list[Word] = []
    for target, found in by_target.items():
        ours, chance = (_point(found[name]) for name in ("AttFind", "random"))
        confirmed = ours["confirmed"]
        words.append(
            _word(ours["low"] > chance["high"], worse=ours["high"] <= chance["high"], confirmed=confirmed)
        )
        evidence.append(
            f"towards '{target}' the first {ours['k']} attributes flip {ours['rate']:.1%} "
            f"({ours['low']:.1%} to {ours['high']:.1%}), random coordinates {chance['rate']:.1%} "
            f"(up to {chance['high']:.1%}); {_judged(confirmed)}"
        )
    if not words:
        raise DataError("no test image is outside any class, so attributes cannot be judged")
    return Verdict(
        "AttFind finds coordinates that matter to the classifier and make counterfactual explanations.",
        _together(words),
        (
            *evidence,
            "whether people can name them: see the user study; whether they are true: evaluate --truth",
        ),
    )


def comparison(stylex: dict[str, Any], stylegan2: dict[str, Any]) -> Verdict:
    """Claim 3: supported where AttFind with StylEx flips more than Wu et al., the intervals apart, and most
    of its flips are confirmed (undecided where no classifier has judged them).

    Args:
        stylex, stylegan2: study.json of the two recipes.
    """
    found = {
        "AttFind with StylEx": _Figure.of(stylex, "AttFind"),
        "Wu et al. with StyleGAN2": _Figure.of(stylegan2, "Wu et al."),
        "AttFind with StyleGAN2": _Figure.of(stylegan2, "AttFind"),
    }
    evidence = [
        f"{name} could not be ranked" if each is None else f"{name} flips {each.said()}"
        for name, each in found.items()
    ]
    ours, wu = found["AttFind with StylEx"], found["Wu et al. with StyleGAN2"]
    word: Word = "undecided"
    if ours is not None and wu is not None:
        one, other = ours.interval, wu.interval
        word = _word(one.low > other.high, worse=one.high < other.low, confirmed=ours.confirmed)
    return Verdict(
        "StylEx flips the classifier more often than the method of Wu et al.",
        word,
        (*evidence, "intervals over distinct images (protocol study)"),
    )


@dataclass(frozen=True)
class _Figure:
    """One figure of a study.json.

    `directions` is the share of flips away from each class, None where no image was of it; `confirmed` the
    share of all flips that an independent classifier sees too, None where it could judge none.
    """

    interval: Interval
    directions: dict[str, float | None]
    confirmed: float | None

    @classmethod
    def of(cls, result: dict[str, Any], method: str) -> _Figure | None:
        for each in result["figures"]:
            if each["method"] == method:
                whole, judged = each["interval"], each["confirmed"]
                return cls(
                    wilson(round(whole["estimate"] * whole["n"]), whole["n"]),
                    dict(zip(result["class_names"], each["by_class"], strict=True)),
                    None if judged is None else judged["share"],
                )
        return None

    def said(self) -> str:
        """The rate, both directions apart, and how much of it is confirmed."""
        apart = ", ".join(
            f"away from '{name}' {'–' if share is None else format(share, '.1%')}"
            for name, share in self.directions.items()
        )
        whole = self.interval
        return (
            f"{whole.estimate:.1%} ({whole.low:.1%} to {whole.high:.1%}; {apart}); {_judged(self.confirmed)}"
        )


def _word(better: bool, *, worse: bool, confirmed: float | None) -> Word:
    """On flips clearly more, or clearly no more, than others; flips that are refuted support nothing."""
    if worse:
        return "not supported"
    if not better or confirmed is None:
        return "undecided"
    return "supported" if confirmed >= CONFIRMED else "not supported"


def _judged(confirmed: float | None) -> str:
    if confirmed is None:
        return "none of the flips could be judged independently"
    return f"{confirmed:.0%} of the flips confirmed independently"


def _point(method: dict[str, Any]) -> dict[str, Any]:
    """The curve at COORDINATES, or at its last point before."""
    curve = method["curve"]
    place = max((i for i, k in enumerate(curve["k"]) if k <= COORDINATES), default=0)
    confirmed = None if method["confirmed"] is None else method["confirmed"][place]["share"]
    return {**{key: curve[key][place] for key in ("k", "rate", "low", "high")}, "confirmed": confirmed}


def _together(words: list[Word]) -> Word:
    if "not supported" in words:
        return "not supported"
    return "undecided" if "undecided" in words else "supported"
