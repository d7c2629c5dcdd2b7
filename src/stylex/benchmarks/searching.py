"""`stylex bench attfind`: changes a second, one at a time, in batches, by the sweep, and by a peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stylex.attfind import load_discovery
from stylex.attfind.batches import choose_batch
from stylex.attfind.folded import FoldedSynthesis
from stylex.attfind.sweep import rows_of, sweep_image
from stylex.benchmarks.machine import Machine, convolution_peak, describe, interleaved
from stylex.benchmarks.peers import StudyEvaluation, load_peer
from stylex.benchmarks.profiling import Share, as_shares, times_by_kind
from stylex.benchmarks.screening import ScreenedResult, bench_screened
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import build as build_classifier
from stylex.classifiers.architectures import default_options
from stylex.config import load_recipe
from stylex.explainer import demo_folder
from stylex.hardware import Hardware, peak_memory, place, release_freed_memory, start_peak_memory, used_memory
from stylex.model import Model, load_model
from stylex.networks import SynthesisState, build
from stylex.run import Run
from stylex.stylespace import StyleSpace

SizeName = Literal["shipped", "study", "authors"]
SIZES: tuple[SizeName, ...] = ("shipped", "study", "authors")
"""The shipped model; the study's (64 px, 512 channels, MobileNetV2); the authors' at 256 px."""

FEW_LAYERS = 3
"""Layers measured of the authors' model, the first, the last and what lies between; of the others all."""


@dataclass(frozen=True)
class WayResult:
    """One way to measure changes.

    FLOP are those of the synthesis and the classifier behind what has changed; up-sampling in four phases
    multiplies by zeros as well, which do not count. Memory is what it really takes.
    """

    evaluations_per_second: float
    flops_per_second: float
    share_of_convolution_peak: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "evaluations_per_second": self.evaluations_per_second,
            "tflops": self.flops_per_second / 1e12,
            "share_of_convolution_peak": self.share_of_convolution_peak,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


@dataclass(frozen=True)
class SizeResult:
    """What was measured of one model; `layers` of all its convolutions, evenly chosen.

    `convolution_peak_flops` is what convolutions alone reached, in turn with the rest; shares are of it.

    `peer_evaluations_per_second` is the peer's, at the study's size only. `where_the_time_goes` is of the
    operators of the sweep, of the layers measured; on a CPU only.
    """

    name: SizeName
    coordinates: int
    layers: int
    layers_in_all: int
    batch_size: int
    convolution_peak_flops: float
    paths: dict[str, WayResult]
    peer_evaluations_per_second: float | None
    where_the_time_goes: tuple[Share, ...] = ()

    @property
    def speedup(self) -> float | None:
        """The exact sweep's rate over the peer's."""
        peer = self.peer_evaluations_per_second
        return None if peer is None else self.paths["sweep"].evaluations_per_second / peer

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "coordinates": self.coordinates,
            "layers": self.layers,
            "layers_in_all": self.layers_in_all,
            "batch_size": self.batch_size,
            "convolution_peak_tflops": self.convolution_peak_flops / 1e12,
            "paths": {name: path.to_json() for name, path in self.paths.items()},
            "peer_evaluations_per_second": self.peer_evaluations_per_second,
            "speedup": self.speedup,
            "where_the_time_goes": [share.to_json() for share in self.where_the_time_goes],
        }


@dataclass(frozen=True)
class AttFindBenchmark:
    """All sizes, measured in one run on one machine."""

    machine: Machine
    rounds: int
    sizes: list[SizeResult]
    screened: ScreenedResult | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "rounds": self.rounds,
            "sizes": [size.to_json() for size in self.sizes],
            "screened": None if self.screened is None else self.screened.to_json(),
        }


def bench_attfind(
    hardware: Hardware,
    *,
    sizes: tuple[SizeName, ...] = SIZES,
    rounds: int = 3,
    peer: Path | None = None,
    screened: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> AttFindBenchmark:
    """Measure the search on this machine: three ways to the same effects, in turn within a round.

    One at a time: the whole synthesis for every change, a batch of one. In batches: the whole synthesis for
    the batch that the sweep uses. Sweep: of each layer one batch of changes is timed, and an image's time is
    put together from its layers' numbers of batches, what each layer takes before its first batch, and what
    the image takes before any layer.

    Args:
        sizes: which models; all but the shipped one have random weights.
        rounds: how often each is measured, after one round that is not counted.
        peer: folder of the peer's code (`peers.load_peer`), run beside the study's size.
        screened: with the shipped model, also search all its discovery images once, screened.
        on_progress: told the rounds done and the rounds in all.

    Raises:
        ConfigError: the peer's folder holds something else.
    """
    module = None if peer is None else load_peer(peer)
    found = []
    for number, name in enumerate(sizes):

        def told(done: int, before: int = number * (rounds + 1)) -> None:
            if on_progress is not None:
                on_progress(before + done + 1, len(sizes) * (rounds + 1))

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            theirs = None
            if module is not None and name == "study":
                theirs = StudyEvaluation(
                    module, _classifier(64).eval().requires_grad_(False), 64, 2, hardware.device
                )
            found.append(_measure(name, hardware, rounds, theirs, told))
    spared = None
    if screened and "shipped" in sizes:
        run = Run.open(demo_folder())
        model = load_model(run, hardware)
        discovery = load_discovery(run, model)
        layers = _layers(model, discovery.space, 2, None)
        whole, behind = _flops(model, discovery.styles[:1], layers)
        spared = bench_screened(
            model,
            discovery,
            run.config.attfind,
            run.config.seed,
            image_flops=whole,
            change_flops=np.repeat(behind, [layer.changes // 2 for layer in layers]),
            convolution_peak_flops=found[sizes.index("shipped")].convolution_peak_flops,
        )
    return AttFindBenchmark(describe(hardware), rounds, found, spared)


def make_model(name: SizeName, hardware: Hardware) -> tuple[Model, StyleSpace, Tensor]:
    """A model of a size, the ranges of its coordinates, and styles [N, T]."""
    if name == "shipped":
        run = Run.open(demo_folder())
        model = load_model(run, hardware)
        found = load_discovery(run, model)
        return model, found.space, found.styles
    resolution = 64 if name == "study" else 256
    recipe = load_recipe("study" if name == "study" else "stylex")
    classifier = _classifier(resolution).freeze()
    parts = build(recipe, resolution, classifier.classes)
    generator = parts.generator.eval().requires_grad_(False)
    place(generator, hardware)
    place(classifier, hardware)
    model = Model(generator, None, None, None, classifier, recipe, hardware, 0)
    latents = torch.randn(4, recipe.network.latent_features + generator.condition_features)
    styles = model.styles(latents)
    return model, StyleSpace.from_styles(generator.synthesis.layout, styles), styles


def _classifier(resolution: int) -> Classifier:
    options = default_options("mobilenet_v2", resolution)
    network = build_classifier("mobilenet_v2", 2, options)
    return Classifier(
        network, class_names=("a", "b"), input_size=resolution, architecture="mobilenet_v2", options=options
    )


@dataclass(frozen=True)
class _Layer:
    """A convolution of a model: its changes, in `batches` of `rows` images, and masks [2, S] of some of them.

    `mask` is those of one batch beside the unchanged image, `two` those of that and of another batch; of a
    layer with one batch both are the same.
    """

    number: int
    changes: int
    rows: int
    batches: int
    mask: Tensor
    two: Tensor


def _layers(model: Model, space: StyleSpace, batch_size: int, most: int | None) -> list[_Layer]:
    found, first = [], 0
    for number, layer in enumerate(space.layout):
        if layer.kind != "conv":
            continue
        changes = 2 * layer.channels
        rows = rows_of(changes, batch_size)
        masks = torch.zeros(2, 2, space.size, dtype=torch.bool, device=model.hardware.device)
        for mask, count in zip(masks, (rows - 1, min(2 * rows - 1, changes)), strict=True):
            both = torch.arange(count, device=mask.device)
            mask[both % 2, first + both // 2] = True
        found.append(_Layer(number, changes, rows, -(-(changes + 1) // rows), *masks))
        first += layer.channels
    if most is None or most >= len(found):
        return found
    return [found[round(index * (len(found) - 1) / (most - 1))] for index in range(most)]


def _measure(
    name: SizeName,
    hardware: Hardware,
    rounds: int,
    theirs: StudyEvaluation | None,
    on_round: Callable[[int], None],
) -> SizeResult:
    model, space, styles = make_model(name, hardware)
    style = styles[:1]
    # A coordinate of few styles often lies at an end of its range already: let every change move something.
    space = StyleSpace(space.layout, space.low - 0.1, space.high + 0.1)
    batch_size = choose_batch(model, space, styles, 1.0).batch_size
    layers = _layers(model, space, batch_size, FEW_LAYERS if name == "authors" else None)
    rows = min(batch_size, max(layer.changes for layer in layers))
    convolution = convolution_peak(hardware)
    works: dict[str, Callable[[], object]] = {
        "peak": convolution.work,
        "one at a time": lambda: _whole(model, style),
        "batches": lambda: _whole(model, style.repeat(rows, 1)),
        "image": _bound(model, space, style, batch_size, torch.zeros_like(layers[0].mask)),
    }
    with torch.inference_mode():
        folded = FoldedSynthesis(model.generator.synthesis, style, model.noise)
    for layer in layers:
        works[f"layer {layer.number}"] = _bound(model, space, style, layer.rows, layer.mask)
        works[f"layer {layer.number}, two"] = _bound(model, space, style, layer.rows, layer.two)
        works[f"layer {layer.number} prepared"] = _prepared(folded, layer.number)
    if theirs is not None:
        works["peer"] = theirs.evaluate
    seconds = interleaved(works, hardware, rounds, on_round)
    memory = {key: _memory(works[key], hardware) for key in ("one at a time", "batches")}
    memory["sweep"] = max(_memory(works[f"layer {layer.number}"], hardware) for layer in layers)
    peak = convolution.flops / seconds["peak"]
    whole, behind = _flops(model, style, layers)
    changes = sum(layer.changes for layer in layers)
    image = _of_an_image(seconds, layers)
    rates = {
        "one at a time": (1 / seconds["one at a time"], whole),
        "batches": (rows / seconds["batches"], whole),
        "sweep": (
            changes / image,
            sum(layer.changes * work for layer, work in zip(layers, behind, strict=True)) / changes,
        ),
    }
    paths = {
        key: WayResult(rate, rate * work, rate * work / peak, memory[key])
        for key, (rate, work) in rates.items()
    }
    in_all = sum(layer.kind == "conv" for layer in space.layout)
    peer = None if theirs is None else 1 / seconds["peer"]
    cpu = hardware.device.type == "cpu"  # elsewhere operators only order what is done
    places = as_shares(_times(works, layers)) if cpu else []
    return SizeResult(name, space.size, len(layers), in_all, batch_size, peak, paths, peer, tuple(places))


def _times(works: Mapping[str, Callable[[], object]], layers: Sequence[_Layer]) -> dict[str, float]:
    """Seconds of an image's sweep by kind of operation, put together as its time is; of one profile each."""

    def of(name: str) -> dict[str, float]:
        return times_by_kind(works[name], by_kernel=True)

    names = [
        "image",
        *(f"layer {layer.number}{what}" for layer in layers for what in ("", ", two", " prepared")),
    ]
    profiles = {name: of(name) for name in names}
    kinds = {kind for profile in profiles.values() for kind in profile}
    times = {
        kind: _of_an_image({name: profile.get(kind, 0.0) for name, profile in profiles.items()}, layers)
        for kind in kinds
    }
    return {kind: seconds for kind, seconds in times.items() if seconds > 0}


def _of_an_image(seconds: Mapping[str, float], layers: Sequence[_Layer]) -> float:
    """Seconds of an image's whole sweep, from those of a few batches of every layer.

    What a first batch takes beyond another one is done once an image, for all layers behind it: transforming
    weights (`networks.winograd`).
    """
    whole, once = seconds["image"], [0.0]
    for layer in layers:
        prepared, first = seconds[f"layer {layer.number} prepared"], seconds[f"layer {layer.number}"]
        batch = seconds[f"layer {layer.number}, two"] - first
        if layer.batches == 1:
            batch = first - seconds["image"] - prepared
        whole += prepared + layer.batches * max(0.0, batch)
        once.append(first - seconds["image"] - prepared - batch)
    return whole + max(once)


def _bound(
    model: Model, space: StyleSpace, style: Tensor, batch_size: int, mask: Tensor
) -> Callable[[], object]:
    """An image's exact sweep, of a space in which the changes of a mask alone move a coordinate.

    Not a sweep of what is wanted: that one has other batches, on some machines without an unchanged image.
    """
    values = space.searchable(style)[0]
    low, high = (
        torch.where(moving, end, values) for moving, end in zip(mask, (space.low, space.high), strict=True)
    )
    only = StyleSpace(space.layout, low, high)
    return lambda: _sweep(model, only, style, batch_size)


def _prepared(folded: FoldedSynthesis, number: int) -> Callable[[], object]:
    return torch.inference_mode()(lambda: folded.layer(number))


@torch.inference_mode()
def _sweep(model: Model, space: StyleSpace, style: Tensor, batch_size: int) -> Tensor:
    return sweep_image(model, space, style, 1.0, batch_size)


@torch.inference_mode()
def _whole(model: Model, styles: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.generator.synthesis(styles, model.noise).clamp(-1, 1))
    return logits


def _flops(model: Model, style: Tensor, layers: list[_Layer]) -> tuple[float, list[float]]:
    """Arithmetic of one whole evaluation, and of what lies behind each layer; the counter knows no fused one.

    The changed layer itself is left out: its share of the work is what the closed form saves.
    """
    synthesis = model.generator.synthesis
    with torch.no_grad():
        states: list[SynthesisState] = list(synthesis.states(style, model.noise))
    images = torch.zeros(1, 3, synthesis.resolution, synthesis.resolution, device=style.device)

    def counted(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter, torch.enable_grad():
            work()
        return float(counter.get_total_flops())

    classify = counted(lambda: model.classifier(images))
    whole = counted(lambda: synthesis(style, model.noise)) + classify
    behind = [
        counted(lambda layer=layer: synthesis.finish(states[layer.number + 1], style, model.noise)) + classify  # type: ignore[misc]
        for layer in layers
    ]
    return whole, behind


def _memory(work: Callable[[], object], hardware: Hardware) -> int:
    """Bytes that a piece of work takes above what the process holds."""
    release_freed_memory()
    held = used_memory(hardware.device)
    start_peak_memory(hardware.device)
    work()
    return max(0, peak_memory(hardware.device) - held)
