"""`stylex bench scale`: what a training on many GPUs takes, counted on paper; nothing is given memory or run.

Networks, classifier and perceptual network are built on torch's meta device and every phase is run there:
shapes, and so operations and what backward keeps, are the real ones, numbers do not exist. What a step costs
on hardware must be measured; `measure` does that for this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stylex.benchmarks.machine import Machine, describe
from stylex.benchmarks.profiling import FlopCounter
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import build as build_classifier
from stylex.classifiers.architectures import default_options
from stylex.config import Recipe, RunConfig, StepKind, changed
from stylex.data.images import ImageSet
from stylex.hardware import Hardware, place
from stylex.networks import Networks, build
from stylex.parallel import check_shares
from stylex.perceptual import random_lpips
from stylex.training.costs import StepCost, measure_size, measure_step
from stylex.training.losses import Batch, StylexLoss
from stylex.training.randomness import StepRandom
from stylex.training.schedule import Phase, phases

ARCHITECTURE = "mobilenet_v2"
"""Of the classifier that stands for the one to be explained."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class PhaseCost:
    """Of one phase and, with forward and backward, one image.

    Attributes:
        flops: of convolutions and matrix products; a multiplication and an addition count as two.
        kept_bytes: of tensors kept for the backward pass, parameters left out; classifier and perceptual
            network keep theirs in float32.
        gradient_bytes: what the processes average when the phase has run, a step and not an image.
    """

    flops: float
    kept_bytes: float
    gradient_bytes: int


@dataclass(frozen=True)
class ScalePlan:
    """A training on paper. Bytes are of one process, FLOPs of one image, all of a step on average.

    Attributes:
        parameters: of each part.
        phases: costs by "kind/phase"; see `PhaseCost`.
        flops_an_image: every phase weighted by its interval and by the kinds' turns.
        state_bytes: weights, gradients, Adam's moments, averages.
        kept_bytes: for backward, of the phase that keeps most, times the images of a process.
        gradient_bytes: averaged in a step.
        sent_bytes: by each process in a step, in a ring: 2 (R − 1) / R of them.
        noise_numbers: random numbers that one synthesis of an image takes.
    """

    recipe: str
    resolution: int
    gpus: int
    batch_size: int
    precision: str
    total_kimg: float
    parameters: Mapping[str, int]
    phases: Mapping[str, PhaseCost]
    flops_an_image: float
    state_bytes: int
    kept_bytes: float
    gradient_bytes: float
    sent_bytes: float
    noise_numbers: int

    @property
    def total_flops(self) -> float:
        """Of the whole training."""
        return self.flops_an_image * self.total_kimg * 1000

    def hours(self, tflops: float, gigabytes_a_second: float) -> tuple[float, float]:
        """Hours of computing and, not overlapped, of averaging gradients, at assumed rates of each GPU."""
        computing = self.total_flops / (self.gpus * tflops * 1e12)
        steps = self.total_kimg * 1000 / self.batch_size
        return computing / 3600, steps * self.sent_bytes / (gigabytes_a_second * 1e9) / 3600

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return content | {"total_flops": self.total_flops}


def plan_scale(
    recipe: Recipe, resolution: int, gpus: int, *, batch_size: int, precision: str = "bf16", classes: int = 2
) -> ScalePlan:
    """Count a training on `gpus` processes.

    The perceptual network is LPIPS on VGG16 where the recipe uses one, the classifier a MobileNetV2.

    Raises:
        ConfigError: the batch does not divide among the processes.
    """
    recipe = changed(recipe, {"training.batch_size": batch_size})
    check_shares(recipe, gpus)
    loss = _on_paper(recipe, resolution, classes, precision)
    found: dict[str, PhaseCost] = {}
    kinds = list(dict.fromkeys(recipe.training.schedule))
    for kind in kinds:
        found |= {f"{kind}/{name}": cost for name, cost in _phase_costs(loss, kind, resolution).items()}
    size = measure_size(recipe, resolution, classes)
    flops = gradients = 0.0
    for phase in phases(recipe):
        for kind in kinds:
            share = recipe.training.schedule.count(kind) / len(recipe.training.schedule) / phase.interval
            cost = found[f"{kind}/{phase.name}"]
            part = 1.0 / recipe.loss.path_length_batch_shrink if phase.name == "path_length" else 1.0
            flops += share * part * cost.flops
            gradients += share * cost.gradient_bytes
    sizes = loss.networks.generator.synthesis.noise_shapes()
    return ScalePlan(
        recipe.name,
        resolution,
        gpus,
        batch_size,
        precision,
        recipe.training.total_kimg,
        size.parameters,
        found,
        flops,
        size.state_bytes,
        max(cost.kept_bytes for cost in found.values()) * batch_size / gpus,
        gradients,
        2 * (gpus - 1) / gpus * gradients,
        sum(side**2 for side in sizes) if recipe.training.noise == "random" else 0,
    )


def _on_paper(recipe: Recipe, resolution: int, classes: int, precision: str) -> StylexLoss:
    """The losses of networks without memory."""
    meta = torch.device("meta")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hardware = Hardware(meta, dtype, 1, "on paper")
    with meta:
        networks = build(recipe, resolution, classes)
    options = default_options(ARCHITECTURE, resolution)
    network = build_classifier(ARCHITECTURE, classes, options).to(meta)
    names = tuple(f"class {number}" for number in range(classes))
    classifier = Classifier(
        network, class_names=names, input_size=resolution, architecture=ARCHITECTURE, options=options
    ).freeze()
    perceptual = random_lpips("vgg").to(meta) if recipe.perceives else None
    for part in networks.parts().values():
        place(part, hardware)
    plain = Hardware(meta, torch.float32, 1, "on paper")  # there is no autocast for tensors without memory
    for frozen in (classifier, perceptual):
        if frozen is not None:
            place(frozen, plain)
    return StylexLoss(networks, classifier, perceptual, recipe)


def _phase_costs(loss: StylexLoss, kind: StepKind, resolution: int) -> dict[str, PhaseCost]:
    """Of every phase on a batch of one kind, with as many images as a group of the minibatch deviation."""
    count = max(2, loss.recipe.network.deviation_group)
    images = torch.empty(count, 3, resolution, resolution, device="meta")
    batch = Batch(images, kind, StepRandom(0, 0, 0, torch.device("meta")))
    part = changed(loss.recipe, {"loss.path_length_batch_shrink": 1, "loss.path_length_in_turn": False})
    loss.recipe = part  # path length on as many images as the others
    found: dict[str, PhaseCost] = {}
    for phase in phases(part):
        _require(loss.networks, phase)
        kept = _Kept([*loss.networks.parts().values(), loss.classifier, loss.perceptual])
        with FlopCounter() as counter, kept:
            loss.accumulate_gradients(phase, batch)
        gradients = 0
        for module in loss.networks.parts().values():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    gradients += parameter.numel() * FLOAT_BYTES
                    parameter.grad = None
        found[phase.name] = PhaseCost(counter.total / count, kept.bytes / count, gradients)
    return found


def _require(networks: Networks, phase: Phase) -> None:
    for name, module in networks.parts().items():
        module.requires_grad_((name == "discriminator") == (phase.optimiser == "discriminator"))


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts bytes of storages that autograd keeps, each once, those of given modules' parameters not."""

    def __init__(self, modules: list[nn.Module | None]) -> None:
        self.bytes = 0
        self._seen = {
            value.untyped_storage()._cdata
            for module in modules
            if module is not None
            for value in (*module.parameters(), *module.buffers())
        }
        self._held: list[Tensor] = []  # or a later storage could be taken for an earlier one
        super().__init__(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor


@dataclass(frozen=True)
class Measured:
    """Real steps on the machine at hand, two images at once: seconds by kind and phase, memory."""

    machine: Machine
    resolution: int
    cost: StepCost

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "resolution": self.resolution,
            **asdict(self.cost),
        }


def measure(recipe: Recipe, resolution: int, hardware: Hardware, limit_s: float = 60.0) -> Measured:
    """Time steps of the recipe on this machine: random images, fresh networks, the classifier's features.

    Raises:
        OutOfMemory: two images do not fit.
    """
    options = default_options(ARCHITECTURE, resolution)
    network = build_classifier(ARCHITECTURE, 2, options)
    classifier = Classifier(
        network, class_names=("a", "b"), input_size=resolution, architecture=ARCHITECTURE, options=options
    )
    recipe = changed(recipe, {"training.batch_size": 2})
    if recipe.perceives:
        recipe = changed(recipe, {"loss.perceptual_network": "classifier"})
    pixels = np.random.default_rng(0).integers(0, 256, (2, resolution, resolution, 3), np.uint8)
    images = ImageSet(pixels, ("a", "b"), None, None, {})
    config = RunConfig(
        experiment="bench", data="random", classifier=ARCHITECTURE, resolution=resolution, recipe=recipe
    )
    cost = measure_step(config, images, classifier, hardware, limit_s=limit_s)
    return Measured(describe(hardware), resolution, cost)
