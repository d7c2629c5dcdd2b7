"""A student in place of a classifier without gradients: a small network that answers as it does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylex.classifiers.architectures import build, default_options
from stylex.classifiers.classifier import Classifier
from stylex.classifiers.training import augment, channel_statistics, predict_logits
from stylex.errors import ClassifierError, DataError, TrainingDiverged

if TYPE_CHECKING:
    from stylex.data.images import ImageSet
    from stylex.hardware import Hardware

LEARNING_RATE = 0.002
"""Peak of AdamW at a batch of 64."""

FEWEST_STEPS = 300
"""Small data sets are seen more often, so that a student takes at least so many steps."""

GOOD_AGREEMENT = 0.9
"""Under this share of held-out images with the teacher's class a student is a poor stand-in."""


@dataclass(frozen=True)
class Distillation:
    """How well a student stands in for its teacher.

    `agreement` is the share of held-out images that both count as the same class (of labels, for sigmoid
    classifiers); `divergence` the mean KL(teacher ‖ student) on them.
    """

    architecture: str
    images: int
    held_out: int
    agreement: float
    divergence: float
    epochs: int

    @property
    def warning(self) -> str | None:
        if self.agreement >= GOOD_AGREEMENT:
            return None
        return (
            f"the student agrees with the classifier on only {self.agreement:.0%} of {self.held_out} other "
            "images; what the generator learns of the classes is that uncertain. Add images."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "images": self.images,
            "held_out": self.held_out,
            "agreement": self.agreement,
            "divergence": self.divergence,
            "epochs": self.epochs,
        }


def distil(
    teacher: Classifier,
    training: ImageSet,
    held_out: ImageSet,
    *,
    architecture: str = "small_cnn",
    epochs: int = 15,
    batch_size: int = 64,
    seed: int = 0,
    hardware: Hardware | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Classifier, Distillation]:
    """Train a network to give the teacher's probabilities (Hinton et al. 2015, at temperature 1).

    The teacher answers once on every image; labels are not used. Images are shifted by up to 1/16 and
    mirrored, the teacher's answer kept. The epoch with the smallest divergence on held-out images is taken.

    Args:
        training, held_out: images; without held-out images the training images are measured on.
        on_progress: called with steps done and steps in all.

    Returns:
        The student, frozen and on the CPU, of the teacher's classes and activation; and how well it does.

    Raises:
        DataError: no images to train on. ClassifierError: the teacher fails on some.
    """
    if len(training) < 2:
        raise DataError(f"{len(training)} images to distil a student on; at least 2 are needed")
    device = hardware.device if hardware else torch.device("cpu")
    measured = held_out if len(held_out) else training
    targets = _answers(teacher, training)
    wanted = _answers(teacher, measured)
    batch = min(batch_size, len(training))
    steps = len(training) // batch
    epochs = max(epochs, math.ceil(FEWEST_STEPS / steps))
    student = untrained(teacher, training, architecture, seed).to(device)
    student.compute_dtype = hardware.dtype if hardware else torch.float32
    optimiser = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE * batch / 64, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * epochs)
    random = np.random.default_rng(seed)
    best: tuple[float, float, dict[str, Tensor]] | None = None
    for epoch in range(epochs):
        student.train()
        order = random.permutation(len(training))
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            images = augment(training.batch(rows), random, mirror=True, shift=1 / 16).to(device)
            loss = divergence(student(images), targets[rows].to(device), teacher.activation)
            if not math.isfinite(float(loss.detach())):
                raise TrainingDiverged(
                    f"the student's loss became {float(loss.detach())} in epoch {epoch + 1}"
                )
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward((loss,))
            optimiser.step()
            schedule.step()
            if on_progress is not None:
                on_progress(epoch * steps + step + 1, steps * epochs)
        logits = predict_logits(student, measured)
        found = float(divergence(logits, wanted, teacher.activation))
        if best is None or found < best[0]:
            best = (
                found,
                float(agreement(logits, wanted, teacher.activation)),
                copy.deepcopy(student.network.state_dict()),
            )
    assert best is not None
    student.network.load_state_dict(best[2])
    student.compute_dtype = torch.float32
    student.to("cpu")
    report = Distillation(architecture, len(training), len(held_out), best[1], best[0], epochs)
    student.report = {"student": report.to_json()}
    return student.freeze(), report


def untrained(
    teacher: Classifier, images: ImageSet, architecture: str = "small_cnn", seed: int = 0
) -> Classifier:
    """A student with random weights: its costs are those of a trained one."""
    size = int(images.images.shape[1])
    options = default_options(architecture, size)
    mean, std = channel_statistics(images)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build(architecture, teacher.classes, options)
    return Classifier(
        network,
        class_names=teacher.class_names,
        input_size=size,
        mean=mean,
        std=std,
        activation=teacher.activation,
        architecture=architecture,
        options=options,
    )


def agreement(logits: Tensor, target_probabilities: Tensor, activation: str) -> Tensor:
    """Share of images of the same class as their target; of labels on the same side, for sigmoid ones."""
    if activation == "softmax":
        return (logits.argmax(dim=1) == target_probabilities.argmax(dim=1)).float().mean()
    return ((logits > 0) == (target_probabilities > 0.5)).float().mean()


def divergence(logits: Tensor, targets: Tensor, activation: str) -> Tensor:
    """KL(targets ‖ classifier), mean over images: logits [N, K], targets [N, K] as probabilities.

    Softmax classifiers: Σₖ pₖ log(pₖ / qₖ). Sigmoid ones: the sum over labels of the Bernoulli divergences.
    """
    if activation == "softmax":
        return F.kl_div(F.log_softmax(logits, dim=1), targets, reduction="batchmean")
    cross = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    entropy = -(torch.xlogy(targets, targets) + torch.xlogy(1 - targets, 1 - targets))
    return (cross - entropy).sum(dim=1).mean()


def _answers(teacher: Classifier, images: ImageSet) -> Tensor:
    """The teacher's probabilities [N, K]."""
    logits = predict_logits(teacher, images)
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(dim=1).sum())
        raise ClassifierError(f"classifier '{teacher.architecture}' gives NaN or infinity on {bad} images")
    return teacher.probabilities(logits)
