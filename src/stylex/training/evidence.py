"""Fits `networks.Evidence`: a student with local evidence, then the causes in its maps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.attfind.effects import log_odds
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import Block
from stylex.data import ImageSet
from stylex.errors import DataError
from stylex.hardware import Hardware, place
from stylex.networks.evidence import DEVIATION, LARGEST, MAP_SIZE, TOLD, WIDTHS, Evidence, halvings, reduced
from stylex.training.causes import Causes, find_causes
from stylex.training.randomness import derive_seed

FEWEST = 2
"""Training images; far more are needed for components that mean something."""

MOST_IMAGES = 50_000
"""Training images that the student learns from; of more, these are drawn."""

ASKED_PIXELS = 256 * 64**2
"""Of the images that the classifier is asked about at once."""

BATCH = 64

LEARNING_RATE = 2e-3

SPARSITY = 1e-3
"""Weight of the mean absolute evidence at a place beside the squared error of the log-odds."""

FAIR = 0.8
"""Share of the log-odds' variance below which people are told."""

MOST_MAPS = 20_000
"""Images whose maps components are taken of."""


@dataclass(frozen=True)
class EvidenceFit:
    """How well evidence accounts for a classifier.

    Attributes:
        explained: share of the variance of the log-odds that the student accounts for, on held-out images.
        held: share of the student's variance that the components hold.
        shares: of each component in use, its deviation over that of the student's log-odds, largest first.
        kinds: of each, whether it comes in two kinds and is told as which of them it is; nothing for
            evidence that was found before this was asked.
    """

    explained: float
    held: float
    shares: tuple[float, ...]
    kinds: tuple[bool, ...] = ()

    @property
    def accounted(self) -> float:
        """Share of the variance of the log-odds that the components hold."""
        return max(0.0, self.explained * self.held)

    def __str__(self) -> str:
        kinds = self.kinds or (False,) * len(self.shares)
        shares = ", ".join(
            f"{share:.2f} (of two kinds)" if two else f"{share:.2f}"
            for share, two in zip(self.shares, kinds, strict=True)
        )
        words = (
            f"local evidence accounts for {100 * self.accounted:.1f} % of the classifier's log-odds; "
            f"{len(self.shares)} components, their shares {shares}"
        )
        if self.accounted < FAIR:
            words += (
                "; the components can change only what it accounts for: compare with "
                "--set network.condition=probabilities --set loss.evidence=0"
            )
        return words

    def to_json(self) -> dict[str, Any]:
        """Plain values, as evidence.json holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> EvidenceFit:
        """The inverse of `to_json`."""
        return cls(
            content["explained"], content["held"], tuple(content["shares"]), tuple(content.get("kinds", ()))
        )


def fit_evidence(
    evidence: Evidence,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    seed: int,
    kimg: float,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvidenceFit:
    """Set every number of `evidence` from training images and what a classifier says of them.

    The student is trained on the squared error of the standardised log-odds; `find_causes` takes its maps
    apart into at most `evidence.components` causes, which get mean 0 and deviation 0.5, those that come in
    two kinds as which of the two. Same images, classifier and seed, same numbers, as far as the device's
    convolutions repeat themselves.

    Args:
        evidence: on the device of `hardware`.
        images: training images of the evidence's resolution.
        classifier: placed; gives logits [N, K].
        kimg: thousand images that the student sees, over and over where there are fewer.
        on_progress: called with the images dealt with and their total; what it raises ends the work.

    Raises:
        DataError: fewer than 2 images, or a classifier that says the same of all of them.
    """
    if len(images) < FEWEST:
        raise DataError(f"evidence needs {FEWEST} training images or more, there are {len(images)}")
    chosen = np.arange(len(images))
    if len(chosen) > MOST_IMAGES:
        drawn = np.random.default_rng(derive_seed(seed, "evidence images"))
        chosen = np.sort(drawn.choice(len(images), MOST_IMAGES, replace=False))
    seen = int(kimg * 1000)

    def progress(asked: int, learned: int) -> None:
        if on_progress is not None:
            on_progress(asked + min(learned, seen), len(chosen) + seen)

    small, target = _asked(images, chosen, classifier, hardware, lambda asked: progress(asked, 0))
    deviation = target.std(dim=0)
    if not bool((deviation > 1e-6).any()):
        raise DataError("the classifier says the same of all training images: there is no evidence to find")
    centred = target - target.mean(dim=0)
    with torch.random.fork_rng(devices=[hardware.device] if hardware.device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "evidence"))
        student, explained = _train(
            evidence, small, centred, hardware, seed, seen, lambda learned: progress(len(chosen), learned)
        )
    _fold(student, evidence)
    order = np.random.default_rng(derive_seed(seed, "evidence maps")).permutation(len(small))
    looked_at = np.sort(order[:MOST_MAPS])
    maps = _maps(evidence, small, looked_at, hardware)
    causes = find_causes(
        maps,
        target[torch.from_numpy(looked_at).to(target.device)].cpu().double().numpy(),
        classifier.activation,
        evidence.components,
        seed,
        lambda: progress(len(chosen), max(0, seen - 1)),
    )
    _set(evidence, causes, maps)
    progress(len(chosen), seen)
    kinds = tuple(each is not None for each in causes.kinds)
    return EvidenceFit(explained, causes.held, causes.shares, kinds)


def time_evidence(
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """What `fit_evidence` takes here: seconds an image to ask about, and seconds an image to learn from.

    Left out is the search for causes: about 13 s of a core for two classes, 50 s for ten.
    """
    few = images.select(range(min(8, len(images))))
    begin = clock()
    small, target = _asked(few, np.arange(len(few)), classifier, hardware, _unwatched)
    asked = (clock() - begin) / len(few)
    again = [number % len(few) for number in range(BATCH + 8)]
    small, target = small.select(again), target[again]
    evidence = Evidence(images.images.shape[1], target.shape[1], 1)
    times = []
    with torch.random.fork_rng(devices=[hardware.device] if hardware.device.type == "cuda" else []):
        for steps in (1, 4):  # the first makes ready
            begin = clock()
            _train(evidence, small, target, hardware, 0, steps * BATCH, _unwatched)
            times.append((clock() - begin) / (steps * BATCH))
    return asked, times[-1]


def _unwatched(_: int) -> None:
    pass


@torch.no_grad()
def _asked(
    images: ImageSet,
    chosen: npt.NDArray[np.intp],
    classifier: Classifier,
    hardware: Hardware,
    on_progress: Callable[[int], None],
) -> tuple[ImageSet, Tensor]:
    """The chosen images as the student sees them, and their log-odds [N, K] in the classifier's eyes."""
    log_odds_found, pixels = [], []
    large = images.images.shape[1] > LARGEST
    for part in _parts(chosen, images):
        batch = images.batch(part).to(hardware.device)
        logits = classifier(batch).cpu().double().numpy()
        log_odds_found.append(log_odds(logits, classifier.activation))
        if large:
            scaled = (reduced(batch) + 1) * 127.5
            pixels.append(scaled.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
        on_progress(sum(map(len, log_odds_found)))
    target = torch.from_numpy(np.concatenate(log_odds_found)).float().to(hardware.device)
    if large:
        names = tuple(images.names[number] for number in chosen)
        return ImageSet(np.concatenate(pixels), names, None, None, {}), target
    return (images if len(chosen) == len(images) else images.select(chosen)), target


def _parts(chosen: npt.NDArray[np.intp], images: ImageSet) -> list[npt.NDArray[np.intp]]:
    """The chosen numbers in portions that fit the memory."""
    most = max(1, ASKED_PIXELS // images.images.shape[1] ** 2)
    return np.array_split(chosen, -(-len(chosen) // most))


class _Student(nn.Module):
    """The network of `Evidence` as it is trained: images [N, 3, R, R] → maps [N, K, 16, 16]."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.halvings = halvings(size)
        self.blocks = nn.ModuleList(
            Block(before, width) for before, width in zip((3, *WIDTHS), WIDTHS, strict=False)
        )
        self.head = nn.Conv2d(WIDTHS[-1], outputs, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = reduced(images)
        for block, halve in zip(self.blocks, self.halvings, strict=True):
            maps = block(F.avg_pool2d(maps, 2) if halve else maps)
        found: Tensor = self.head(maps)
        return found


def _train(
    evidence: Evidence,
    images: ImageSet,
    target: Tensor,
    hardware: Hardware,
    seed: int,
    seen: int,
    on_progress: Callable[[int], None],
) -> tuple[_Student, float]:
    """A student whose maps sum to `target` [N, L] after `seen` images; how much of it they account for."""
    random = np.random.default_rng(derive_seed(seed, "evidence order"))
    order = random.permutation(len(images))
    held_out, rest = np.array_split(order, [max(1, min(1000, len(images) // 10))])
    student = _Student(min(evidence.resolution, LARGEST), evidence.outputs)
    place(student, hardware)
    optimiser = torch.optim.Adam(student.parameters(), LEARNING_RATE)
    deviation = target.std(dim=0).clamp_min(1e-6)
    batch = min(BATCH, len(rest))
    steps = max(1, seen // batch)
    position, shuffled = len(rest), rest
    for step in range(steps):
        if position + batch > len(rest):
            position, shuffled = 0, random.permutation(rest)
        chosen = shuffled[position : position + batch]
        position += batch
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        maps = _of(student, images, chosen, hardware)
        error = (
            maps.sum(dim=(2, 3)) / MAP_SIZE - target[torch.from_numpy(chosen).to(target.device)] / deviation
        )
        loss = error.square().mean() + SPARSITY * maps.abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        on_progress((step + 1) * batch)
    student.eval()
    with torch.no_grad():
        # Sums of the student's maps are 16 standardised log-odds; those of `Evidence` are log-odds.
        student.head.weight.mul_(deviation[:, None, None, None] / MAP_SIZE)
        found = torch.cat([_of(student, images, part, hardware) for part in _parts(held_out, images)])
        wanted = target[torch.from_numpy(held_out).to(target.device)]
        error = found.sum(dim=(2, 3)) - wanted
        explained = 1 - float(error.square().mean() / wanted.square().mean().clamp_min(1e-12))
    return student, explained


def _of(student: _Student, images: ImageSet, chosen: npt.NDArray[np.intp], hardware: Hardware) -> Tensor:
    batch = images.batch(chosen).to(hardware.device, memory_format=torch.channels_last)
    with torch.autocast(hardware.device.type, hardware.dtype, enabled=hardware.dtype != torch.float32):
        maps: Tensor = student(batch)
    return maps.float()


@torch.no_grad()
def _fold(student: _Student, evidence: Evidence) -> None:
    """Give `evidence` the student's weights, batch normalisation folded in."""
    for number, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        weight, bias = block.folded()
        evidence.get_buffer(f"weight{number}").copy_(weight)
        evidence.get_buffer(f"bias{number}").copy_(bias)
    evidence.head.copy_(student.head.weight)


@torch.no_grad()
def _maps(
    evidence: Evidence, images: ImageSet, chosen: npt.NDArray[np.intp], hardware: Hardware
) -> npt.NDArray[np.float64]:
    """Maps of evidence [N, L · 16 · 16]."""
    found = [
        evidence.maps(images.batch(part).to(hardware.device)).flatten(1).cpu().double()
        for part in _parts(chosen, images)
    ]
    rows: npt.NDArray[np.float64] = torch.cat(found).numpy()
    return rows


@torch.no_grad()
def _set(evidence: Evidence, causes: Causes, maps: npt.NDArray[np.float64]) -> None:
    """Give `evidence` the causes of maps [N, L · 256]; those of two kinds are told with deviation 0.5 too."""
    used = len(causes.shares)
    evidence.mean.copy_(torch.from_numpy(causes.mean))
    evidence.unmixing.zero_()
    evidence.unmixing[:used] = torch.from_numpy(causes.unmixing * DEVIATION).to(evidence.unmixing)
    for name in TOLD:
        evidence.get_buffer(name).fill_(name == "spread")
    for number, kinds in enumerate(causes.kinds):
        if kinds is None:
            continue
        evidence.middle[number] = kinds.parting * DEVIATION
        evidence.below[number] = kinds.below / DEVIATION
        evidence.above[number] = kinds.above / DEVIATION
        told = kinds.which((maps - causes.mean) @ causes.unmixing[number])
        evidence.centre[number] = float(told.mean())
        evidence.spread[number] = max(float(told.std()), 1e-12) / DEVIATION
