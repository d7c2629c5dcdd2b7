"""Train a classifier on labelled images, and report what it can do."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylex.classifiers.architectures import build, default_options
from stylex.classifiers.classifier import Classifier
from stylex.classifiers.metrics import Labels, Scores, score
from stylex.errors import ConfigError, DataError, TrainingDiverged

if TYPE_CHECKING:
    from stylex.data.images import ImageSet
    from stylex.hardware import Hardware

OptimiserName = Literal["adamw", "sgd"]

LEARNING_RATES: dict[OptimiserName, float] = {"adamw": 0.002, "sgd": 0.05}
"""Peak learning rates at a batch of 64, where none is given."""

STATISTICS_IMAGES = 2000
"""Images, evenly spaced in the training set, that mean and std are taken from."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands; `validation` is set on the last step of an epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    validation: Scores | None


@dataclass(frozen=True)
class ClassifierReport:
    """What was trained, on what, and how well it does on the validation images.

    The epoch kept (`best_epoch`, from 1) and the temperature are chosen on the validation images, so the
    scores are slightly in its favour; `evaluate` on a test set has no such bias.
    """

    architecture: str
    class_names: tuple[str, ...]
    training_images: int
    validation: Scores
    best_epoch: int
    epochs: int
    temperature: float
    seconds: float
    settings: dict[str, Any]
    data_fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types, ready for `json.dumps`."""
        return {
            **asdict(self),
            "class_names": list(self.class_names),
            "validation": self.validation.to_json(),
        }


def train(
    training: ImageSet,
    validation: ImageSet,
    *,
    architecture: str = "small_cnn",
    options: Mapping[str, Any] | None = None,
    epochs: int = 15,
    batch_size: int = 64,
    learning_rate: float | None = None,
    optimiser: OptimiserName = "adamw",
    weight_decay: float = 0.01,
    label_smoothing: float = 0.0,
    mirror: bool = True,
    shift: float = 1 / 16,
    calibrate: bool = False,
    input_size: int | None = None,
    seed: int = 0,
    hardware: Hardware | None = None,
    data_fingerprint: str | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> tuple[Classifier, ClassifierReport]:
    """Train by cross-entropy, the rate falling by a cosine; keep the epoch with the lowest validation loss.

    Same arguments, threads and machine: same weights on the CPU. The global random state is left as it was.

    Args:
        training, validation: labelled images of the same classes.
        architecture, options: see `architectures`; options default to what suits the input size.
        learning_rate: the peak; by default LEARNING_RATES, scaled by batch_size / 64.
        label_smoothing: share of the target spread over all classes.
        mirror, shift: augmentation, a random horizontal flip and translations up to that share of the side;
            False and 0 switch it off.
        calibrate: fit a temperature on the validation images (Guo et al. 2017).
        input_size: pixels along a side; by default the images' own.
        hardware: device and number format; by default the CPU in float32.
        data_fingerprint: of the data set, recorded in report and file.
        on_progress: called after every step.

    Returns:
        The classifier, frozen and on the CPU, and the report.

    Raises:
        DataError: no labels, one class only, or sets that do not fit together.
        ConfigError: a setting out of range. TrainingDiverged: the loss became NaN or infinite.
    """
    class_names = _class_names(training, validation)
    _check_settings(epochs, batch_size, learning_rate, optimiser, weight_decay, label_smoothing, shift)
    assert training.labels is not None
    size = input_size or int(training.images.shape[1])
    chosen = dict(default_options(architecture, size) if options is None else options)
    rate = learning_rate or LEARNING_RATES[optimiser] * batch_size / 64
    device = hardware.device if hardware else torch.device("cpu")
    mean, std = channel_statistics(training)
    begin = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = Classifier(
            build(architecture, len(class_names), chosen),
            class_names=class_names,
            input_size=size,
            mean=mean,
            std=std,
            architecture=architecture,
            options=chosen,
            data_fingerprint=data_fingerprint,
        )
        _place(classifier, device, hardware.dtype if hardware else torch.float32)
        weights, best, best_epoch = _fit(
            classifier,
            training,
            validation,
            optimiser=_optimiser(classifier, optimiser, rate, weight_decay),
            epochs=epochs,
            batch_size=batch_size,
            label_smoothing=label_smoothing,
            mirror=mirror,
            shift=shift,
            random=np.random.default_rng(seed),
            on_progress=on_progress,
        )
    classifier.network.load_state_dict(weights)
    classifier.freeze()
    if calibrate:
        classifier.temperature = fit_temperature(predict_logits(classifier, validation), _labels(validation))
        best = evaluate(classifier, validation)
    _place(classifier, torch.device("cpu"), torch.float32)
    report = ClassifierReport(
        architecture=architecture,
        class_names=class_names,
        training_images=len(training),
        validation=best,
        best_epoch=best_epoch,
        epochs=epochs,
        temperature=classifier.temperature,
        seconds=round(time.monotonic() - begin, 1),
        settings={
            "options": chosen,
            "input_size": size,
            "batch_size": batch_size,
            "learning_rate": rate,
            "optimiser": optimiser,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
            "mirror": mirror,
            "shift": shift,
            "calibrate": calibrate,
            "seed": seed,
            "precision": hardware.precision if hardware else "fp32",
        },
        data_fingerprint=data_fingerprint,
    )
    classifier.report = report.to_json()
    return classifier, report


def evaluate(classifier: Classifier, images: ImageSet, batch_size: int = 256) -> Scores:
    """Scores of a classifier on labelled images.

    Raises:
        DataError: no images or no labels, or labels of other classes than the classifier's.
    """
    labels = _labels(images)
    if len(labels) == 0:
        raise DataError("there are no images to evaluate the classifier on")
    if images.class_names is not None and images.class_names != classifier.class_names:
        raise DataError(
            f"the images have the classes {', '.join(images.class_names)}, the classifier "
            f"{', '.join(classifier.class_names)}; evaluate on data of the same classes, in order"
        )
    logits = predict_logits(classifier, images, batch_size)
    return score(classifier.probabilities(logits).double().numpy(), labels)


def predict_logits(classifier: Classifier, images: ImageSet, batch_size: int = 256) -> Tensor:
    """Logits [N, K] of a whole set, on the CPU, in the classifier's evaluation mode."""
    was_training = classifier.training
    classifier.eval()
    device = classifier.scale.device
    parts = [torch.empty(0, classifier.classes)]
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images.batch(slice(start, start + batch_size)).to(device)
            parts.append(classifier(batch).cpu())
    classifier.train(was_training)
    return torch.cat(parts)


def fit_temperature(logits: Tensor, labels: Labels) -> float:
    """The T > 0 that minimises the cross-entropy of logits / T, by golden-section search on ln T in [-3, 3].

    Guo et al. 2017, section 4.2. The loss is convex in 1/T, hence unimodal in ln T.
    """
    scores, targets = logits.double(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(scores / math.exp(log_temperature), targets))

    ratio = (math.sqrt(5) - 1) / 2
    low, high = -3.0, 3.0
    while high - low > 1e-5:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the three channels on the [0, 1] scale; std is at least 0.05."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), STATISTICS_IMAGES)).astype(np.int64)
    pixels = images.images[chosen].reshape(-1, 3)
    mean = pixels.mean(axis=0, dtype=np.float64) / 255
    std = np.maximum(pixels.std(axis=0, dtype=np.float64) / 255, 0.05)
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def augment(images: Tensor, random: np.random.Generator, *, mirror: bool, shift: float) -> Tensor:
    """Flip and translate each image by itself: [N, 3, H, W] → the same shape, edges repeated.

    Args:
        shift: largest translation along each axis, as a share of the side.
    """
    count, _, height, width = images.shape
    if not mirror and shift == 0:
        return images
    reach_y, reach_x = int(height * shift), int(width * shift)
    down = torch.from_numpy(random.integers(-reach_y, reach_y, count, endpoint=True))
    right = torch.from_numpy(random.integers(-reach_x, reach_x, count, endpoint=True))
    flip = torch.from_numpy(random.random(count) < 0.5) if mirror else torch.zeros(count, dtype=torch.bool)
    rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    pixels = images.permute(0, 2, 3, 1)
    moved = pixels[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _fit(
    classifier: Classifier,
    training: ImageSet,
    validation: ImageSet,
    *,
    optimiser: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    label_smoothing: float,
    mirror: bool,
    shift: float,
    random: np.random.Generator,
    on_progress: Callable[[TrainingProgress], None] | None,
) -> tuple[dict[str, Tensor], Scores, int]:
    device = classifier.scale.device
    labels = torch.from_numpy(_labels(training))
    batch = min(batch_size, len(training))
    steps = len(training) // batch  # the images left over take part in another epoch's order
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_cosine(steps * epochs))
    best: tuple[dict[str, Tensor], Scores, int] | None = None
    for epoch in range(1, epochs + 1):
        classifier.train()
        order = random.permutation(len(training))
        begin = time.monotonic()
        for step in range(1, steps + 1):
            indices = order[(step - 1) * batch : step * batch]
            images = augment(training.batch(indices), random, mirror=mirror, shift=shift).to(device)
            logits = classifier(images)
            loss = F.cross_entropy(logits, labels[indices].to(device), label_smoothing=label_smoothing)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"the classifier's loss became {value} in epoch {epoch}, step {step}; "
                    f"lower the learning rate"
                )
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward((loss,))
            optimiser.step()
            schedule.step()
            scores = None
            speed = step * batch / max(time.monotonic() - begin, 1e-9)
            if step == steps:
                scores = evaluate(classifier, validation)
                if best is None or scores.log_loss < best[1].log_loss:
                    best = copy.deepcopy(classifier.network.state_dict()), scores, epoch
            if on_progress is not None:
                on_progress(TrainingProgress(epoch, epochs, step, steps, value, speed, scores))
    assert best is not None
    return best


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """Share of the peak rate: up over the first twentieth, then half a cosine down to 0."""
    warm = max(1, steps // 20)

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return share


def _optimiser(
    classifier: Classifier, name: OptimiserName, rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    decayed = [weight for weight in classifier.parameters() if weight.ndim > 1]
    free = [weight for weight in classifier.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def _place(classifier: Classifier, device: torch.device, dtype: torch.dtype) -> None:
    classifier.to(device)
    classifier.compute_dtype = dtype


def _labels(images: ImageSet) -> Labels:
    if images.labels is None:
        raise DataError(
            "the images have no labels; put each class in its own folder or give a CSV with labels"
        )
    return np.asarray(images.labels, dtype=np.int64)


def _class_names(training: ImageSet, validation: ImageSet) -> tuple[str, ...]:
    labels, others = _labels(training), _labels(validation)
    if len(labels) == 0 or len(others) == 0:
        raise DataError(f"{len(labels)} images to train on and {len(others)} to validate on; both need some")
    top = int(max(labels.max(), others.max()))
    names = training.class_names or tuple(str(index) for index in range(top + 1))
    if validation.class_names is not None and validation.class_names != names:
        raise DataError(
            f"training has the classes {', '.join(names)}, validation {', '.join(validation.class_names)}; "
            f"they must be the same, in the same order"
        )
    if min(labels.min(), others.min()) < 0 or top >= len(names):
        raise DataError(f"labels must be from 0 to {len(names) - 1}, the {len(names)} classes; found {top}")
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            f"all {len(labels)} training images are of one class, '{names[int(present[0])]}'; "
            f"a classifier needs two or more"
        )
    return names


def _check_settings(
    epochs: int,
    batch_size: int,
    learning_rate: float | None,
    optimiser: str,
    weight_decay: float,
    label_smoothing: float,
    shift: float,
) -> None:
    if epochs < 1 or batch_size < 2:
        raise ConfigError(f"epochs is {epochs} and batch_size {batch_size}; at least 1 and 2")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate is {learning_rate}; give a number greater than 0")
    if optimiser not in LEARNING_RATES:
        raise ConfigError(f"optimiser is '{optimiser}'; choose from {', '.join(LEARNING_RATES)}")
    if weight_decay < 0 or not 0 <= label_smoothing < 1 or not 0 <= shift < 0.5:
        raise ConfigError(
            f"weight_decay {weight_decay}, label_smoothing {label_smoothing} and shift {shift} must be "
            f"at least 0, in [0, 1) and in [0, 0.5)"
        )
