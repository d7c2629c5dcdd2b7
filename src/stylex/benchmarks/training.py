"""`stylex bench train`: what a training step costs, where the time goes, and how far a peer is behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stylex.benchmarks.machine import Machine, convolution_peak, describe, interleaved
from stylex.benchmarks.peers import StudyStep, load_peer
from stylex.benchmarks.profiling import FlopCounter, Share, shares
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import build as build_classifier
from stylex.classifiers.architectures import default_options
from stylex.config import RunConfig, load_recipe, validate
from stylex.data.images import ImageSet
from stylex.hardware import Hardware, place
from stylex.perceptual import random_lpips
from stylex.run import Run
from stylex.training.loop import Trainer

RESOLUTION, CLASSES = 64, 2


@dataclass
class TrainingBenchmark:
    """What was measured; all times are medians of rounds in which the works took turns."""

    machine: Machine
    rounds: int
    study_step_seconds: float
    peer_step_seconds: float | None
    wide_images_per_second: float
    fast_images_per_second: float
    fast_warm_up_images_per_second: float
    convolution_peak_flops: float
    achieved_flops: float
    where_the_time_goes: list[Share] = field(default_factory=list)

    @property
    def speedup(self) -> float | None:
        """Of a study step: the peer's seconds over ours."""
        return None if self.peer_step_seconds is None else self.peer_step_seconds / self.study_step_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "rounds": self.rounds,
            "study_step_seconds": self.study_step_seconds,
            "peer_step_seconds": self.peer_step_seconds,
            "speedup": self.speedup,
            "wide_images_per_second": self.wide_images_per_second,
            "fast_images_per_second": self.fast_images_per_second,
            "fast_warm_up_images_per_second": self.fast_warm_up_images_per_second,
            "convolution_peak_tflops": self.convolution_peak_flops / 1e12,
            "achieved_tflops": self.achieved_flops / 1e12,
            "share_of_convolution_peak": self.achieved_flops / self.convolution_peak_flops,
            "where_the_time_goes": [share.to_json() for share in self.where_the_time_goes],
        }


def _images(count: int, seed: int) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, RESOLUTION, RESOLUTION, 3), np.uint8)
    names = tuple(f"{number:04d}" for number in range(count))
    return ImageSet(pixels, names, None, None, {})


def _classifier(architecture: str) -> Classifier:
    options = default_options(architecture, RESOLUTION)
    network = build_classifier(architecture, CLASSES, options)
    return Classifier(
        network, class_names=("a", "b"), input_size=RESOLUTION, architecture=architecture, options=options
    )


@contextmanager
def _trainer(
    recipe: str, assignments: list[str], classifier: Classifier, hardware: Hardware, seed: int
) -> Iterator[Trainer]:
    """A real trainer on random images; its run lies in a folder that is removed."""
    settings = {
        "experiment": "bench",
        "data": "random",
        "classifier": classifier.architecture,
        "resolution": RESOLUTION,
        "seed": seed,
        "recipe": load_recipe(recipe, assignments).model_dump(),
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", validate(RunConfig, settings, "bench"))
        images = _images(64, seed)
        yield Trainer(run, images, classifier, hardware, images.select(range(2)))


class _Steps:
    """Steps of one trainer, any number of them from the first of a cycle on."""

    def __init__(self, trainer: Trainer, images_seen: int) -> None:
        self.trainer = trainer
        self.images_seen = images_seen

    def run(self, first: int, count: int) -> None:
        """Steps number `first` to `first + count − 1`, at the stage of training that is measured."""
        self.trainer.state.step = first
        self.trainer.state.images = self.images_seen
        for _ in range(count):
            self.trainer.step()


def bench_training(
    hardware: Hardware,
    *,
    rounds: int = 3,
    seed: int = 0,
    peer: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainingBenchmark:
    """Measure training on this machine, with random images and fresh networks.

    The study's step: recipe `study` (512 channels, batch 4, path length at every step, R1 at every 16th)
    with MobileNetV2 and LPIPS on a VGG16 of random weights, ours and, with `peer`, the peer's in turn; a
    step costs its plain time plus a sixteenth of what R1 adds. `wide`: recipe `stylex` with 128 channels in
    every layer and batch 16. `fast`: the recipe as it is, its warm-up apart. Both over a cycle of 16 steps.

    Args:
        rounds: how often each is measured, after one round that is not counted.
        peer: folder of the peer's code (`peers.load_peer`).
        on_progress: told the rounds done and the rounds in all.

    Raises:
        ConfigError: the peer's folder holds something else.
    """
    module = None if peer is None else load_peer(peer)
    wide = ["network.channel_base=1048576", "network.channel_max=128", "loss.perceptual_network=classifier"]
    wide += ["network.latent_features=128", "network.z_features=128"]
    random = ["loss.perceptual_network=none"]  # replaced below by one of random weights
    works: dict[str, Callable[[], object]] = {}
    with (
        torch.random.fork_rng(devices=[]),
        _trainer("study", random, _classifier("mobilenet_v2"), hardware, seed) as study,
        _trainer("stylex", wide, _classifier("small_cnn"), hardware, seed) as broad,
        _trainer("fast", ["sparsity.start_kimg=0"], _classifier("small_cnn"), hardware, seed) as fast,
    ):
        perceptual = random_lpips("vgg")
        study.loss.perceptual = _placed(random_lpips("vgg"), hardware)
        steps = {"study": _Steps(study, 0), "wide": _Steps(broad, 0)}
        begun = int(fast.recipe.loss.adversarial_start_kimg * 1000) + 16
        steps |= {"fast": _Steps(fast, begun), "warm-up": _Steps(fast, 0)}
        works["study"] = lambda: steps["study"].run(1, 1)
        works["study, R1"] = lambda: steps["study"].run(16, 1)
        if module is not None:
            batch = study.images.batch(slice(0, study.recipe.training.batch_size)).to(hardware.device)
            judge = _fp32(_classifier("mobilenet_v2")).to(hardware.device)
            theirs = StudyStep(module, judge, perceptual.to(hardware.device), batch, CLASSES)
            works["peer"] = lambda: theirs.step(with_r1=False)
            works["peer, R1"] = lambda: theirs.step(with_r1=True)
        for name in ("wide", "fast", "warm-up"):
            works[name] = _cycle(steps[name])
        peak = convolution_peak(hardware)
        works["peak"] = peak.work
        found = interleaved(
            works, hardware, rounds, None if on_progress is None else lambda done: on_progress(done, rounds)
        )
        for trainer in (broad, fast):
            trainer.programs = None  # what is replayed is not seen operation by operation
        with FlopCounter() as counter:
            steps["wide"].run(0, 16)
        places = shares(lambda: steps["fast"].run(0, 16))
    cycle = 16 * broad.images_per_step
    return TrainingBenchmark(
        machine=describe(hardware),
        rounds=rounds,
        study_step_seconds=_mean_step(found["study"], found["study, R1"]),
        peer_step_seconds=None if module is None else _mean_step(found["peer"], found["peer, R1"]),
        wide_images_per_second=cycle / found["wide"],
        fast_images_per_second=cycle / found["fast"],
        fast_warm_up_images_per_second=cycle / found["warm-up"],
        convolution_peak_flops=peak.flops / found["peak"],
        achieved_flops=counter.total / found["wide"],
        where_the_time_goes=places,
    )


def _cycle(steps: _Steps) -> Callable[[], None]:
    return lambda: steps.run(0, 16)


def _mean_step(plain: float, with_r1: float) -> float:
    return plain + (with_r1 - plain) / 16


def _placed(network: nn.Module, hardware: Hardware) -> nn.Module:
    place(network, hardware)
    return network


def _fp32(classifier: Classifier) -> nn.Module:
    return classifier.eval().requires_grad_(False)
