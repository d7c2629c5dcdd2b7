"""What a training costs on this machine: parameters counted, real steps timed, their memory measured."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stylex.classifiers import Classifier
from stylex.config import Recipe, RunConfig, StepKind, changed
from stylex.data import ImageSet
from stylex.hardware import (
    Hardware,
    available_memory,
    is_out_of_memory,
    peak_memory,
    release_freed_memory,
    start_peak_memory,
    used_memory,
)
from stylex.networks import build
from stylex.run import Run
from stylex.training.evidence import MOST_IMAGES, time_evidence
from stylex.training.loop import Trainer
from stylex.training.optimisers import parameter_count
from stylex.training.schedule import Phase, evidence_kimg, phases, total_images

SAFE_SHARE = 0.8
"""Share of the available memory that a training may fill."""


GRACE_S = 20.0
"""Seconds after which a second round begins whatever the limit: the first, which builds kernels and finds
memory, takes several times as long as others."""

ROUNDS = 6
"""Beyond the first; more would not make the medians better."""


class OutOfMemory(Exception):  # noqa: N818 (what happened; who measures decides what follows)
    """A trial step did not fit the memory."""


@dataclass(frozen=True)
class Size:
    """Of a recipe's networks.

    `parameters` of each part; `searchable` style coordinates of the `styles`; `state_bytes`: weights and
    their gradients, two Adam moments, and the averaged weights of all parts but the discriminator, in fp32.
    """

    parameters: dict[str, int]
    searchable: int
    styles: int
    state_bytes: int


@dataclass(frozen=True)
class StepCost:
    """Seconds and bytes of a step, measured on one batch of `batch_size` images.

    Attributes:
        kinds: seconds of generator and discriminator phase with all that a step has besides, for each kind.
        phases: seconds that "path_length" and "r1" add to a step on which they are due.
        warm_up: seconds of a step in the warm-up; None where the recipe has none.
        activation_bytes: memory above the networks' and optimisers' state at the worst moment.
        base_bytes: what the process held before there were networks.
        asking, evidence_image: where the condition is evidence, seconds to ask the classifier about the
            training images before the first step, and seconds an image that the student learns from.
        rounds: how often each was timed, the first time (which builds kernels) left out if there was another.
        failed_batch: a batch that ran out of memory; None where none did.
    """

    batch_size: int
    kinds: Mapping[StepKind, float]
    phases: Mapping[str, float]
    warm_up: float | None
    activation_bytes: int
    base_bytes: int
    rounds: int
    failed_batch: int | None = None
    asking: float = 0.0
    evidence_image: float = 0.0

    @property
    def round_seconds(self) -> float:
        """Seconds that every sort of step takes once."""
        first = next(iter(self.kinds.values()))
        return (
            sum(self.kinds.values())
            + sum(first + more for more in self.phases.values())
            + (self.warm_up or 0)
        )

    def seconds(self, recipe: Recipe, begin_images: int = 0, *, prepared: bool = False) -> float:
        """Seconds from `begin_images` to the recipe's total: every phase weighted by its interval.

        The time of a step is taken as proportional to its images. What comes before the first step is counted
        unless it has been `prepared`; checkpoints and samples are left out.
        """
        loss, schedule = recipe.loss, recipe.training.schedule
        end = total_images(recipe)
        start = min(end, loss.adversarial_start_kimg * 1000)
        full_step = sum(self.kinds[kind] for kind in schedule) / len(schedule)
        total = max(0.0, start - begin_images) * (self.warm_up or full_step)
        total += max(0.0, end - max(start, begin_images)) * full_step
        for phase in phases(recipe):
            if phase.name in self.phases:
                due = max(0.0, end - max(phase.start_images, begin_images)) / phase.interval
                total += due * self.phases[phase.name]
        return total / self.batch_size + (0.0 if prepared else self.preparation(recipe))

    def preparation(self, recipe: Recipe) -> float:
        """Seconds before the first step."""
        return self.asking + self.evidence_image * 1000 * evidence_kimg(recipe)

    def peak_bytes(self, size: Size, batch_size: int) -> int:
        """Memory of a training with batches of `batch_size`: base, state, and activations in proportion."""
        return int(self.base_bytes + size.state_bytes + self.activation_bytes * batch_size / self.batch_size)

    def ran_out(self, batch_size: int) -> bool:
        """Whether a batch no larger than this one ran out of memory."""
        return self.failed_batch is not None and batch_size >= self.failed_batch

    def shared(self, processes: int) -> StepCost:
        """What a process costs of several that have `processes` times as many images between them at once.

        The same seconds and bytes, of a batch so many times as large; what comes before the first step is
        the work of one. What the processes say to each other is not in it.
        """
        failed = None if self.failed_batch is None else self.failed_batch * processes
        return replace(self, batch_size=self.batch_size * processes, failed_batch=failed)


def measure_size(recipe: Recipe, resolution: int, classes: int) -> Size:
    """Count parameters and coordinates of networks that are never given memory (on the meta device)."""
    with torch.device("meta"):
        networks = build(recipe, resolution, classes)
    parameters = {name: parameter_count(part) for name, part in networks.parts().items()}
    layout = networks.generator.synthesis.layout
    trained = sum(parameters.values())
    return Size(
        parameters,
        searchable=sum(place.channels for place in layout if place.kind == "conv"),
        styles=networks.generator.synthesis.style_size,
        state_bytes=4 * (5 * trained - parameters["discriminator"]),
    )


def measure_step(
    config: RunConfig,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    *,
    training_images: int | None = None,
    limit_s: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> StepCost:
    """Time real training steps and measure their memory; nothing is written.

    Steps with a batch of two images come first. Where they foretell that the full batch does not fit the
    memory, or that two rounds of it take longer than the limit, half of it is tried, and half of that;
    likewise where a batch runs out of memory, with `failed_batch` set. Figures are of the largest batch that
    was timed, and without its first round unless that alone took longer than `GRACE_S` and the limit.

    Args:
        config: the settings; the run that they would make is not touched.
        images: some images of the run's resolution, as many as a batch if possible; repeated if fewer.
        classifier: what would be explained; it is moved to the hardware.
        training_images: how many there are in all; by default those given.
        limit_s: no third round of steps begins after so many seconds.

    Raises:
        DataError, ConfigError: as for `train`.
        OutOfMemory: not even two images fit.
    """
    cost = _measure_batches(config, images, classifier, hardware, limit_s, clock)
    if config.recipe.network.condition != "evidence":
        return cost
    asked, learned = time_evidence(images, classifier, hardware, clock=clock)
    count = min(MOST_IMAGES, len(images) if training_images is None else training_images)
    return replace(cost, asking=asked * count, evidence_image=learned)


def _measure_batches(
    config: RunConfig,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    limit_s: float,
    clock: Callable[[], float],
) -> StepCost:
    """As `measure_step`, without what comes before the first step."""
    begin = clock()
    full = config.recipe.training.batch_size
    few = _with_batch(config, min(2, full))
    if full <= 2:
        return _measure(few, images, classifier, hardware, limit_s, clock)
    cost = _measure(few, images, classifier, hardware, limit_s / 5, clock)
    size = measure_size(config.recipe, config.resolution, classifier.classes)
    free = available_memory(hardware.device)
    failed = None
    for batch in _halves(full):
        # What the process holds already is not in the free memory any more.
        fits = free is None or cost.peak_bytes(size, batch) - cost.base_bytes < SAFE_SHARE * free
        left = limit_s - (clock() - begin)
        if not fits or 2 * cost.round_seconds * batch / cost.batch_size > left:
            continue
        try:
            found = _measure(_with_batch(config, batch), images, classifier, hardware, left, clock)
        except OutOfMemory:
            failed = batch
        else:
            return replace(found, failed_batch=failed)
    return replace(cost, failed_batch=failed)


def _halves(batch: int) -> list[int]:
    """The batch and its halves, those of more than two images.

    >>> _halves(24)
    [24, 12, 6, 3]
    """
    return [] if batch <= 2 else [batch, *_halves(batch // 2)]


def _with_batch(config: RunConfig, batch_size: int) -> RunConfig:
    return changed(config, {"recipe.training.batch_size": batch_size, "recipe.training.accumulate": 1})


def _measure(
    config: RunConfig,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    limit_s: float,
    clock: Callable[[], float],
) -> StepCost:
    """As `_measure_steps`; OutOfMemory, with all that was built let go, where the memory does not suffice."""
    try:
        return _measure_steps(config, images, classifier, hardware, limit_s, clock)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        batch, reason = config.recipe.training.batch_size, str(error).splitlines()
    # Only here, with the error and the frames that it held gone, can their memory be given back.
    gc.collect()
    release_freed_memory()
    raise OutOfMemory(
        f"a step with {batch} images at {config.resolution} px ran out of memory "
        f"({(reason or ['no reason given'])[0][:120]})"
    )


def _measure_steps(
    config: RunConfig,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    limit_s: float,
    clock: Callable[[], float],
) -> StepCost:
    """Rounds over all sorts of steps, at least one, two within `GRACE_S`; see `measure_step`."""
    recipe, device = config.recipe, hardware.device
    gc.collect()
    release_freed_memory()
    base = used_memory(device)
    images = _at_least_two(images)
    trainer = Trainer(Run(Path("not-written"), config), images, classifier, hardware, images)
    size = measure_size(recipe, config.resolution, classifier.classes)
    start_peak_memory(device)
    sorts = _sorts(recipe)
    times: dict[str, list[float]] = {name: [] for name in sorts}
    begin = clock()
    for number in range(1 + ROUNDS):
        if number and clock() - begin >= (limit_s if number > 1 else max(limit_s, GRACE_S)):
            break
        for name, sort in sorts.items():
            times[name].append(_time(trainer, sort, clock))
    activations = max(0, peak_memory(device) - base - size.state_bytes)
    rounds = len(times["first"])
    found = {name: statistics.median(values[1:] or values) for name, values in times.items()}
    kinds: dict[StepKind, float] = {sort.kind: found[name] for name, sort in sorts.items() if sort.is_kind}
    first = found["first"]
    extra: dict[str, float] = {
        name: max(0.0, found[name] - first) for name in ("path_length", "r1") if name in found
    }
    del trainer
    gc.collect()
    return StepCost(
        recipe.training.batch_size,
        kinds,
        extra,
        found.get("warm_up"),
        activations,
        base,
        max(1, rounds - 1),
    )


@dataclass(frozen=True)
class _Sort:
    """A sort of step: kind, phases, images seen before it; `is_kind`: it stands for all steps of its kind."""

    kind: StepKind
    position: int
    phases: tuple[Phase, ...]
    images: int
    is_kind: bool = False


def _sorts(recipe: Recipe) -> dict[str, _Sort]:
    """Every kind with generator and discriminator, the regularisers each on the first kind, the warm-up."""
    loss, schedule = recipe.loss, recipe.training.schedule
    due = {phase.name: replace(phase, interval=1, start_images=0.0) for phase in phases(recipe)}
    basic = (due["generator"], due["discriminator"])
    after = int((loss.adversarial_start_kimg + loss.adversarial_ramp_kimg) * 1000) + 1
    sorts: dict[str, _Sort] = {"first": _Sort(schedule[0], 0, basic, after, is_kind=True)}
    for kind in dict.fromkeys(schedule):
        if kind != schedule[0]:
            sorts[f"kind {kind}"] = _Sort(kind, schedule.index(kind), basic, after, is_kind=True)
    if "path_length" in due:
        ordered = (due["generator"], due["path_length"], due["discriminator"])
        sorts["path_length"] = _Sort(schedule[0], 0, ordered, after)
    if "r1" in due:
        sorts["r1"] = _Sort(schedule[0], 0, (*basic, due["r1"]), after)
    if loss.adversarial_start_kimg > 0:
        sorts["warm_up"] = _Sort("encode", 0, basic[:1], 0)
    return sorts


def _time(trainer: Trainer, sort: _Sort, clock: Callable[[], float]) -> float:
    """Seconds of one step of a sort. Every phase is due on a step whose number is in the schedule's place."""
    trainer.phases = list(sort.phases)
    trainer.state.step, trainer.state.images = sort.position, sort.images
    _wait(trainer.hardware)
    begin = clock()
    trainer.step()
    _wait(trainer.hardware)
    return clock() - begin


def _wait(hardware: Hardware) -> None:
    """Until an accelerator has done what it was told."""
    if hardware.device.type == "cuda":
        torch.cuda.synchronize(hardware.device)
    elif hardware.device.type == "mps":
        torch.mps.synchronize()


def _at_least_two(images: ImageSet) -> ImageSet:
    return images if len(images) > 1 else images.select([0] * 2)


@dataclass(frozen=True)
class Estimate:
    """What a training will take: see `estimate`. Bytes and seconds; None where it could not be measured.

    `ran_out`: a trial step with the recipe's batch, or fewer images, ran out of memory. `preparation`: of the
    `seconds`, those before the first step.
    """

    size: Size
    cost: StepCost | None
    peak_bytes: int
    available_bytes: int | None
    images: int
    images_done: int
    steps: int
    seconds: float | None
    preparation: float = 0.0
    ran_out: bool = False

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, as far as is known."""
        if self.ran_out:
            return False
        return self.available_bytes is None or self.peak_bytes < self.available_bytes

    def content(self) -> dict[str, object]:
        """As JSON."""
        cost = self.cost
        left = self.images - self.images_done
        return {
            "parameters": self.size.parameters,
            "coordinates": {"searchable": self.size.searchable, "styles": self.size.styles},
            "memory": {
                "state_bytes": self.size.state_bytes,
                "activation_bytes": None if cost is None else cost.activation_bytes,
                "base_bytes": None if cost is None else cost.base_bytes,
                "peak_bytes": self.peak_bytes,
                "available_bytes": self.available_bytes,
                "measured_batch": None if cost is None else cost.batch_size,
            },
            "time": {
                "images": self.images,
                "images_done": self.images_done,
                "steps": self.steps,
                "seconds": self.seconds,
                "images_per_second": left / self.seconds if self.seconds else None,
                "step_seconds": None if cost is None else dict(cost.kinds),
                "phase_seconds": None if cost is None else dict(cost.phases),
                "warm_up_step_seconds": None if cost is None else cost.warm_up,
                "preparation_seconds": self.preparation,
            },
        }


def estimate(
    config: RunConfig,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    *,
    images_done: int = 0,
    prepared: bool = False,
    training_images: int | None = None,
    limit_s: float = 20.0,
    cost: StepCost | None = None,
) -> Estimate:
    """Size, memory and time of a training on this machine; writes nothing.

    Networks whose state alone (weights, gradients, Adam, averages) exceeds the memory are counted, not built.

    Args:
        config: the settings.
        images: a few training images, for real steps.
        classifier: what would be explained.
        hardware: where training would run.
        images_done: training images that an existing run has seen.
        prepared: it has a checkpoint, which holds what comes before the first step.
        training_images: how many there are in all; by default those given.
        limit_s: seconds that the measurement may take, about.
        cost: of this recipe, where it has been measured already; nothing is timed then.

    Raises:
        DataError, ConfigError: as for `train`.
    """
    recipe = config.recipe
    size = measure_size(recipe, config.resolution, classifier.classes)
    free = available_memory(hardware.device)
    batch_size = recipe.training.batch_size
    ran_out = cost is not None and cost.ran_out(batch_size)
    if cost is None and (free is None or size.state_bytes < SAFE_SHARE * free):
        try:
            cost = measure_step(
                config, images, classifier, hardware, training_images=training_images, limit_s=limit_s
            )
            ran_out = cost.ran_out(batch_size)
        except OutOfMemory:
            ran_out = True
    base = 0 if cost is None else cost.base_bytes
    total = total_images(recipe)
    per_step = batch_size * recipe.training.accumulate
    return Estimate(
        size,
        cost,
        peak_bytes=size.state_bytes if cost is None else cost.peak_bytes(size, batch_size),
        # The process's own share counts as available: training would be this process.
        available_bytes=None if free is None else free + base,
        images=total,
        images_done=images_done,
        steps=-(-(total - images_done) // per_step),
        seconds=None if cost is None else cost.seconds(recipe, images_done, prepared=prepared),
        preparation=0.0 if cost is None or prepared else cost.preparation(recipe),
        ran_out=ran_out,
    )
