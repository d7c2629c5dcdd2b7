"""A training so small that a step takes milliseconds: 16 px, few channels, random pictures and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylex.classifiers import Classifier
from stylex.classifiers.architectures import SmallCNN
from stylex.config import Recipe, RunConfig, load_recipe
from stylex.data.images import ImageSet
from stylex.hardware import Hardware
from stylex.networks import Encoder
from stylex.networks.evidence import TOLD
from stylex.run import Run
from stylex.training.loop import Trainer, TrainingResult, train

torch.set_num_threads(
    1
)  # tests run beside each other; threads that wait for each other cost more than they give

RESOLUTION = 16

HARDWARE = Hardware(torch.device("cpu"), torch.float32, 1, "for tests")

RECIPES = ("fast", "evidence", "study", "stylegan2", "stylex", "vdv")

TINY = (
    "network.channel_base=128",
    "network.channel_max=8",
    "network.encoder_channel_base=null",
    "network.encoder_channel_max=8",
    "network.encoder_hidden=null",
    "network.discriminator_channel_base=null",
    "network.latent_features=8",
    "network.z_features=8",
    "network.mapping_layers=2",
    "loss.adversarial_start_kimg=0",
    "loss.adversarial_ramp_kimg=0",
    "training.batch_size=4",
    "training.evidence_kimg=0.1",
    "training.log_kimg=0.008",
    "training.sample_kimg=0.02",
    "training.checkpoint_kimg=0.016",
    "training.total_kimg=0.04",
)


BY_CLASS = ("network.condition=probabilities", "loss.evidence=0")
"""What makes a condition of the class, as in the published recipes, of recipe `fast`'s."""


def recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe, with tiny networks; the classifier's features stand in for what is downloaded.

    Here `evidence` is recipe `fast`, and `fast` is that recipe told the class: most of what is tested of a
    training needs no evidence, which would have to be found first.
    """
    perceptual = () if name == "stylegan2" else ("loss.perceptual_network=classifier",)
    told = BY_CLASS if name == "fast" else ()
    name = "fast" if name == "evidence" else name
    return load_recipe(name, [*TINY, *perceptual, *told, *assignments])


def images(count: int = 12, resolution: int = RESOLUTION, seed: int = 0) -> ImageSet:
    """Blobs of two colours on noise."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 80, (count, resolution, resolution, 3), dtype=np.uint8)
    for number in range(count):
        pixels[number, 2 : 2 + resolution // 2, 3 : 3 + resolution // 2, number % 2] = 230
    names = tuple(f"{number}.png" for number in range(count))
    return ImageSet(images=pixels, names=names, labels=None, class_names=None, factors={})


def classifier(seed: int = 0, **options: Any) -> Classifier:
    """A small convolutional network with random weights, frozen; its logits differ from image to image."""
    torch.manual_seed(seed)
    about = {"class_names": ("a", "b"), "input_size": RESOLUTION} | options
    network = SmallCNN(len(about["class_names"]), (4, 4, 8, 8)).eval()
    explained = Classifier(network, architecture="small_cnn", **about).freeze()
    with torch.no_grad():
        logits = explained(torch.cat([images().batch(range(12)), torch.rand(12, 3, RESOLUTION, RESOLUTION)]))
        network.head.weight.mul_(2 / logits.std(dim=0)[:, None])
        network.head.bias.mul_(2 / logits.std(dim=0)).sub_(logits.mean(dim=0) * 2 / logits.std(dim=0))
    return explained


def some_evidence(encoder: Encoder | None) -> None:
    """Give an encoder evidence with random numbers, every component in use, where it has any at all.

    Until it is fitted all components are 0: what is told of an image would be the same for all.
    """
    if encoder is not None and encoder.evidence is not None:
        for name, buffer in encoder.evidence.named_buffers():
            if name not in TOLD:
                buffer.normal_(std=0.1, generator=torch.Generator().manual_seed(buffer.numel()))


def make_run(path: Path, name: str, assignments: Sequence[str] = (), *, resolution: int = RESOLUTION) -> Run:
    """A new run directory for a tiny recipe."""
    config = RunConfig(
        experiment="test",
        data="none",
        classifier="none",
        resolution=resolution,
        recipe=recipe(name, assignments),
    )
    return Run.create(path, config)


def make_trainer(path: Path, name: str, assignments: Sequence[str] = (), **options: Any) -> Trainer:
    """A trainer of a new run, not yet begun."""
    explained = options.pop("classifier", None) or classifier()
    return Trainer(make_run(path, name, assignments), images(), explained, HARDWARE, images(3))


def train_on(run: Run, watched: int = 3) -> TrainingResult:
    """Train a run of tiny images to its end, or go on with it."""
    return train(Run.open(run.path), images(), classifier(), HARDWARE, watch=images(watched))
