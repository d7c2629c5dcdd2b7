"""Whether training is still sound: losses that explode, an encoder that collapses, and the way back, once.

Losses are compared with their running median whenever they are logged; encoder and reconstructions are looked
at whenever a checkpoint is due, with the averaged weights on the watched images. On trouble training returns
to the last good checkpoint and goes on with half the learning rate and other random numbers; the second time
it stops. Everything here follows from the checkpoint, metrics.jsonl and stability.json, so that a run that is
killed and continued decides as an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import statistics
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylex.classifiers import Classifier
from stylex.classifiers.distillation import agreement
from stylex.conditions import told
from stylex.data import ImageSet
from stylex.errors import CheckpointError, RunError, TrainingDiverged
from stylex.hardware import Hardware
from stylex.networks import Encoder
from stylex.parallel import ALONE, World
from stylex.run import PARTIAL, Run, read_json, read_tensors, write_atomically, write_json
from stylex.training.checkpoint import TrainingState
from stylex.training.losses import join
from stylex.training.randomness import derive_seed

log = logging.getLogger("stylex")

LIMITS = {"l1": 3.0, "perceptual": 3.0, "discriminator": 10.0, "adversarial": 20.0}
"""How many times its running median a loss may be. L1 of images in [-1, 1] cannot grow much: a low bound."""

HISTORY, ENOUGH, PATIENCE = 50, 10, 3
"""Log lines in the median, lines before it counts, and lines in a row over the limit that are trouble."""

CHECKS = 2
"""Checks of encoder and reconstructions in a row that must fail before it is trouble."""

COLLAPSED = 0.01
"""Share of its variance across inputs at the start under which the encoder counts as collapsed."""


class Trouble(Exception):  # noqa: N818 (what happened; the loop decides whether it is an error)
    """Training is no longer sound: at which step, and why in words."""

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"{cause} at step {step}")
        self.step, self.cause = step, cause


class LossWatch:
    """Notices losses that stay far over their running median."""

    def __init__(self) -> None:
        self._history: dict[str, deque[float]] = {key: deque(maxlen=HISTORY) for key in LIMITS}
        self._streak = dict.fromkeys(LIMITS, 0)

    @property
    def suspects(self) -> bool:
        """Whether a loss was over its limit in the last line."""
        return any(self._streak.values())

    def add(self, statistics_: Mapping[str, float]) -> str | None:
        """Note a log line. Returns the cause in words when it makes the trouble certain."""
        for key, limit in LIMITS.items():
            if key not in statistics_:
                continue
            value, history = float(f"{statistics_[key]:.6g}"), self._history[key]  # as metrics.jsonl keeps it
            median = statistics.median(history) if len(history) >= ENOUGH else math.inf
            if value <= limit * median:
                history.append(value)
                self._streak[key] = 0
                continue
            self._streak[key] += 1
            if self._streak[key] >= PATIENCE:
                return f"{key} was {value:.3g}, over {limit:g} times its running median of {median:.3g}"
        return None


@torch.no_grad()
def measure_health(
    state: TrainingState, images: Tensor, classifier: Classifier, condition_kind: str
) -> dict[str, Tensor]:
    """How the averaged encoder and generator do on images [N, 3, R, R]; {} without encoder.

    Returns scalars:
        health/encoder_variance: of what the encoder's network finds, across inputs, mean over its features
            (without principal components, which cannot collapse).
        health/l1: of the reconstructions.
        health/l1_share: that over the L1 of the best single image (the median of all); at 1 reconstruction
            is worth no more than a constant image.
        health/agreement: share of reconstructions of the image's class (sigmoid: labels on the same side).
        health/agreement_over_chance: (agreement − chance) / (1 − chance), chance being what classes as
            frequent but drawn at random would reach (Cohen's kappa, 1960); left out where chance is 1.
    """
    if "encoder" not in state.averages or len(images) < 2:
        return {}
    logits = classifier(images)
    probabilities = classifier.probabilities(logits)
    encoder = state.averages["encoder"]
    assert isinstance(encoder, Encoder)
    condition = told(condition_kind, classifier, logits, images, encoder)
    w, learned = encoder.latents(images)
    fake = state.averages["generator"](join(w, condition))
    constant = images.median(dim=0, keepdim=True).values
    l1 = (fake - images).abs().mean()
    fake_logits = classifier(fake)
    found = {
        "health/encoder_variance": learned.var(dim=0).mean(),
        "health/l1": l1,
        "health/l1_share": l1 / (constant - images).abs().mean().clamp_min(1e-12),
        "health/agreement": agreement(fake_logits, probabilities, classifier.activation),
    }
    if classifier.activation == "softmax":
        shares = [
            torch.nn.functional.one_hot(given.argmax(dim=1), given.shape[1]).float().mean(dim=0)
            for given in (logits, fake_logits)
        ]
        chance = (shares[0] * shares[1]).sum()
    else:
        p, q = ((given > 0).float().mean(dim=0) for given in (logits, fake_logits))
        chance = (p * q + (1 - p) * (1 - q)).mean()
    if float(chance) < 1:
        found["health/agreement_over_chance"] = (found["health/agreement"] - chance) / (1 - chance)
    return found


@dataclass
class HealthRecord:
    """What the checks have seen so far; lies in every checkpoint."""

    variance_at_start: float | None = None
    lowest_l1_share: float = math.inf
    highest_over_chance: float = -math.inf
    failed_checks: int = 0
    best_step: int | None = None
    best_agreement: float = 0.0
    best_l1: float = 0.0
    suspect: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain types; what has not been seen yet is None."""
        return {
            key: None if isinstance(value, float) and math.isinf(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> HealthRecord:
        """What `to_json` gave, or a fresh record."""
        given = {key: value for key, value in (content or {}).items() if value is not None}
        return cls(**{key: value for key, value in given.items() if key in cls.__dataclass_fields__})

    def failures(self, found: Mapping[str, float], share_done: float) -> tuple[list[str], list[str]]:
        """What is wrong, in words: (certain trouble if it lasts, only worth a warning).

        Certain is what was there and has gone: reconstruction better than 0.7 of a constant image's L1, then
        no better than it; agreement of 0.5 over chance, then 0.1; a variance of E(x) under a hundredth of
        the start, with reconstructions no better than a constant image.
        """
        wrong: list[str] = []
        notable: list[str] = []
        l1_share = found["health/l1_share"]
        over_chance = found.get("health/agreement_over_chance")
        useless = l1_share >= 1
        if self.variance_at_start is not None:
            variance = found["health/encoder_variance"]
            if variance < COLLAPSED * self.variance_at_start:
                words = (
                    f"the encoder gives nearly the same latent for every image (variance {variance:.2g}, "
                    f"{self.variance_at_start:.2g} at the start)"
                )
                (wrong if useless else notable).append(words)
        if useless and self.lowest_l1_share <= 0.7:
            wrong.append("reconstructions have become no better than one constant image")
        elif useless and share_done > 0.2:
            notable.append("reconstructions are no better than one constant image")
        if over_chance is not None and over_chance <= 0.1:
            if self.highest_over_chance >= 0.5:
                wrong.append("the class agreement of reconstructions has fallen to chance")
            elif share_done > 0.2:
                notable.append("reconstructions keep their class no more often than by chance")
        return wrong, notable

    def add(self, found: Mapping[str, float]) -> None:
        """Note the extremes of a check."""
        self.lowest_l1_share = min(self.lowest_l1_share, found["health/l1_share"])
        over = found.get("health/agreement_over_chance")
        if over is not None:
            self.highest_over_chance = max(self.highest_over_chance, over)


class Stability:
    """Watches one training; the loop asks it for rate and seed, and tells it what it logs and saves."""

    def __init__(
        self, run: Run, images: ImageSet, classifier: Classifier, hardware: Hardware, world: World = ALONE
    ) -> None:
        self.run, self.classifier, self.world = run, classifier, world
        self._images = images.batch(np.arange(len(images))).to(hardware.device)
        self._kind = run.config.recipe.network.condition
        self._warned: set[str] = set()
        self.record = HealthRecord()
        self.losses = LossWatch()
        self.events: list[dict[str, Any]] = []

    @property
    def best_file(self) -> Path:
        return self.run.checkpoints / "best.safetensors"

    @property
    def rate(self) -> float:
        """The learning rate as a share of the recipe's: 1, or 0.5 after a return."""
        return 0.5 ** len(self.events)

    @property
    def seed(self) -> int:
        """Of the random numbers of steps: the run's, or after a return another."""
        seed = self.run.config.seed
        return derive_seed(seed, "return", len(self.events)) if self.events else seed

    def restore(self, header: Mapping[str, Any], step: int) -> None:
        """Take up what a checkpoint's header, stability.json and metrics.jsonl up to its step say.

        Raises:
            RunError: stability.json is damaged.
        """
        file = self.run.path / "stability.json"
        self.events = read_json(file)["returns"] if file.exists() else []
        self.record = HealthRecord.from_json(header.get("health"))
        self.losses = LossWatch()
        metrics = self.run.metrics_file
        for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []:
            self.losses.add(json.loads(line))
        if self.world.first and self.record.best_step == step and self._step_of_best() != step:
            self.keep_best(step)  # killed between the checkpoint and its second name

    def begin(self, state: TrainingState) -> None:
        """Measure what later checks are compared with; before the first step."""
        found = measure_health(state, self._images, self.classifier, self._kind)
        if found:
            self.record.variance_at_start = float(found["health/encoder_variance"])

    def watch_losses(self, step: int, logged: Mapping[str, float]) -> None:
        """Look at a log line. Raises Trouble when a loss has exploded."""
        cause = self.losses.add(logged)
        if cause is not None:
            raise Trouble(step, cause)

    def check(self, state: TrainingState, share_done: float) -> dict[str, Tensor]:
        """Measure encoder and reconstructions, `share_done` of the training being over; returns statistics.

        Raises:
            Trouble: what worked before no longer works, twice in a row.
        """
        tensors = measure_health(state, self._images, self.classifier, self._kind)
        if not tensors:
            return {}
        # What the first process finds counts: all must decide alike.
        found = self.world.share({key: float(value) for key, value in tensors.items()})[0]
        if not all(map(math.isfinite, found.values())):
            return tensors  # the loop finds numbers that are not finite itself
        wrong, notable = self.record.failures(found, share_done)
        self.record.add(found)
        self.record.failed_checks = self.record.failed_checks + 1 if wrong else 0
        for words in wrong + notable:
            self._warn(state.step, words)
        if self.record.failed_checks >= CHECKS:
            raise Trouble(state.step, " and ".join(wrong))
        record = self.record
        better = (found["health/agreement"], -found["health/l1"]) > (record.best_agreement, -record.best_l1)
        if not wrong and not self.losses.suspects and (record.best_step is None or better):
            record.best_step = state.step
            record.best_agreement, record.best_l1 = found["health/agreement"], found["health/l1"]
        return tensors

    def note(self) -> dict[str, Any]:
        """For the header of a checkpoint."""
        self.record.suspect = self.record.failed_checks > 0 or self.losses.suspects
        return self.record.to_json()

    def keep_best(self, step: int) -> None:
        """Give the checkpoint just written a second name if it is the best so far.

        The best is the one whose averaged weights keep the class of most watched images, then the one with
        the lowest L1. A hard link where the file system has them, else a copy; the old one goes at once.
        """
        if self.record.best_step == step:
            _duplicate(self.run.checkpoints / f"step-{step:08d}.safetensors", self.best_file)

    def last_good(self) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
        """The newest checkpoint that was written without suspicion, else the best; later ones are deleted."""
        files = self.run.checkpoint_files()
        for file in reversed([self.best_file, *files]):
            try:
                tensors, header = read_tensors(file)
            except CheckpointError:
                continue
            if (header.get("health") or {}).get("suspect"):
                continue
            if file == self.best_file and self.world.first:
                file = self.run.checkpoints / f"step-{header['step']:08d}.safetensors"
                _duplicate(self.best_file, file)
            for later in files if self.world.first else ():
                if later > file:
                    later.unlink(missing_ok=True)
            return tensors, header, file
        return None

    def settle(self, trouble: Trouble, good_step: int | None) -> None:
        """Decide what follows trouble, training being back at `good_step`: half the rate, or the end.

        Raises:
            TrainingDiverged: there was trouble before, or there is nothing to return to.
        """
        if good_step is None or self.events:
            kept = (
                "no checkpoint had been written yet"
                if good_step is None
                else f"the checkpoint of step {good_step} is good and was kept"
            )
            before = (
                f", and the rate has been halved already, after step {self.events[-1]['step']} "
                f"({self.events[-1]['cause']})"
                if self.events
                else ""
            )
            raise TrainingDiverged(
                f"{self.run.path}: {trouble}; {kept}{before}. Try a lower rate "
                "(--set training.learning_rate=…) or fp32 (--precision fp32) in a new run"
            )
        self.events.append({"step": trouble.step, "cause": trouble.cause, "returned_to": good_step})
        if self.world.first:
            record = {"returns": self.events, "learning_rate_share": self.rate}
            write_json(self.run.path / "stability.json", record)
        log.warning(
            "%s: %s; returned to the checkpoint of step %d, going on with half the learning rate",
            self.run.path,
            trouble,
            good_step,
        )

    def _warn(self, step: int, words: str) -> None:
        kind = words.partition("(")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s: %s at step %d", self.run.path, words, step)

    def _step_of_best(self) -> int | None:
        try:
            return int(read_tensors(self.best_file)[1]["step"])
        except CheckpointError:
            return None


def _duplicate(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, at once: a hard link, or a copy where there are none.

    Raises:
        RunError: the disk is full or the directory cannot be written; the old target is untouched.
    """
    link = target.with_name(f".{target.name}.link{PARTIAL}")
    with suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(source, link)
    except OSError:
        try:
            with source.open("rb") as original:
                write_atomically(target, lambda file: shutil.copyfileobj(original, file))
        except OSError as error:
            raise RunError(f"{source}: could not be read ({error.strerror})") from None
        return
    os.replace(link, target)
    # Where both names are of one file already, rename does nothing and the other name stays.
    link.unlink(missing_ok=True)
