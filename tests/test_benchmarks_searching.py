"""`stylex bench attfind`: what is counted, how an image's time is put together, the peer's evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import documentation
import problems
import training_problems
from stylex.attfind.discovery import discover
from stylex.benchmarks import searching
from stylex.benchmarks.machine import Peak
from stylex.benchmarks.peers import StudyEvaluation
from stylex.benchmarks.screening import ScreenedResult, bench_screened
from stylex.config import AttFindSettings
from stylex.hardware import Hardware
from stylex.stylespace import StyleSpace

CPU = Hardware(torch.device("cpu"), torch.float32, 1, "for tests")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    model = problems.tiny_model()
    styles = model.styles(problems._latents(model)[:3])
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    monkeypatch.setattr(searching, "make_model", lambda name, hardware: (model, space, styles))
    monkeypatch.setattr(searching, "convolution_peak", lambda hardware: Peak(lambda: None, 10**11))
    return model, space, styles


def test_rates_are_put_together_from_layers(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, space, _ = tiny
    monkeypatch.setattr(searching, "choose_batch", lambda *_: searching_choice(8))

    def turns(works: Any, *_: Any) -> dict[str, float]:
        for work in works.values():
            work()
        known = {"peak": 0.1, "one at a time": 0.1, "batches": 0.4, "image": 1.0}
        known |= {name: 2.2 for name in works if name.endswith("two")}
        return {name: 0.2 if "prepared" in name else known.get(name, 1.8) for name in works}

    monkeypatch.setattr(searching, "interleaved", turns)
    found = searching.bench_attfind(CPU, sizes=("shipped",), rounds=1, screened=False)
    (size,) = found.sizes
    layers = searching._layers(model, space, 8, None)
    assert size.layers == size.layers_in_all == len(layers)
    assert sum(layer.changes for layer in layers) == 2 * space.size
    ways = size.paths
    assert ways["one at a time"].evaluations_per_second == pytest.approx(10)
    assert ways["batches"].evaluations_per_second == pytest.approx(20)
    assert min(layer.batches for layer in layers) > 1
    seconds = 1.0 + sum(0.2 + 0.4 * layer.batches for layer in layers) + 0.2  # the last once an image
    assert ways["sweep"].evaluations_per_second == pytest.approx(2 * space.size / seconds)
    for way in ways.values():
        assert way.share_of_convolution_peak == pytest.approx(way.flops_per_second / 1e12)
    work = {name: way.flops_per_second / way.evaluations_per_second for name, way in ways.items()}
    assert work["sweep"] < work["batches"] == work["one at a time"]
    assert size.speedup is None
    json.dumps(found.to_json(), allow_nan=False)
    spared = ScreenedResult(
        images=2,
        changes=8,
        measured=4,
        seconds=0.5,
        flops=1e12,
        convolution_peak_flops=8e12,
        peak_memory_bytes=5,
    )
    assert spared.to_json() == {
        "images": 2,
        "changes": 8,
        "measured": 4,
        "seconds": 0.5,
        "evaluations_per_second": 16,
        "tflops": 2,
        "share_of_convolution_peak": 0.25,
        "peak_memory_bytes": 5,
    }
    documentation.names_all(replace(found, screened=spared).to_json(), "bench attfind")


def test_where_the_time_goes_is_put_together_from_layers(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, space, _ = tiny
    layers = searching._layers(model, space, 8, None)
    known = {
        "image": {"a": 1.0},
        "prepared": {"a": 0.25, "b": 0.5},
        "layer": {"a": 2.25, "b": 0.75, "c": 4.5},
        "two": {"a": 3.25, "b": 1.0, "c": 8.5},
    }

    def profiled(work: str, *, by_kernel: bool) -> dict[str, float]:
        assert by_kernel
        return known[work]

    monkeypatch.setattr(searching, "times_by_kind", profiled)
    works: Any = {"image": "image"}
    for layer in layers:
        works |= {f"layer {layer.number}": "layer", f"layer {layer.number} prepared": "prepared"}
        works[f"layer {layer.number}, two"] = "two"
    batches, number = sum(layer.batches for layer in layers), len(layers)
    assert batches > number
    assert searching._times(works, layers) == pytest.approx(
        {"a": 1 + 0.25 * number + batches, "b": 0.5 * number + 0.25 * batches, "c": 4.0 * batches + 0.5}
    )


def searching_choice(batch_size: int) -> Any:
    from stylex.attfind.batches import BatchChoice

    return BatchChoice(batch_size, "for tests")


def counted(forward: Any, rows: list[int]) -> Any:
    """A classifier's forward that notes how many images it is given."""

    def noting(images: Tensor) -> Tensor:
        rows.append(len(images))
        result: Tensor = forward(images)
        return result

    return noting


@pytest.mark.parametrize("batch_size", [8, 9, 20])
def test_one_batch_and_two_of_one_layer_are_timed_full(
    tiny: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has no unchanged image in front, and is as large as the first: those of an exact sweep."""
    model, space, styles = tiny
    wide = StyleSpace(space.layout, space.low - 0.1, space.high + 0.1)
    rows: list[int] = []
    monkeypatch.setattr(model.classifier, "forward", counted(model.classifier.forward, rows))
    before = model.classify(model.synthesise(styles[:1]))[0]
    exact = searching._sweep(model, wide, styles[:1], batch_size)
    assert len(rows) == 2 + sum(layer.batches for layer in searching._layers(model, wide, batch_size, None))
    for layer in searching._layers(model, wide, batch_size, None):
        for mask, batches in ((layer.mask, 1), (layer.two, 2)):
            rows.clear()
            found = searching._bound(model, wide, styles[:1], layer.rows, mask)()
            assert rows == [1] + [layer.rows] * min(batches, layer.batches)
            assert isinstance(found, Tensor)
            torch.testing.assert_close(found[mask], exact[mask], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[~mask], before.expand_as(found[~mask]), rtol=1e-5, atol=1e-5)
        assert int(layer.mask.sum()) == layer.rows - 1
        assert int(layer.two.sum()) == min(2 * layer.rows - 1, layer.changes)
    some = searching._layers(model, wide, 8, 3)
    numbers = [layer.number for layer in searching._layers(model, wide, 8, None)]
    assert [some[0].number, some[-1].number] == [numbers[0], numbers[-1]]
    assert len(some) == 3


def test_arithmetic_behind_a_layer_is_less_than_all(tiny: Any) -> None:
    model, space, styles = tiny
    whole, behind = searching._flops(model, styles[:1], searching._layers(model, space, 8, None))
    assert whole > behind[0] > behind[-1] > 0
    assert behind == sorted(behind, reverse=True)


def test_the_real_measurement_runs(tiny: Any) -> None:
    told: list[int] = []
    found = searching.bench_attfind(
        CPU, sizes=("shipped",), rounds=1, screened=False, on_progress=lambda done, total: told.append(done)
    )
    assert told == [1, 2]
    assert all(way.evaluations_per_second > 0 for way in found.sizes[0].paths.values())


def test_a_screened_search_is_measured_whole() -> None:
    model = problems.tiny_model()
    settings = AttFindSettings(images_per_class=40, count=2)
    found = discover(model, training_problems.images(120), settings)
    told: list[int] = []
    each = np.arange(found.space.size) + 1.0
    result = bench_screened(
        model,
        found,
        settings,
        0,
        image_flops=1e12,
        change_flops=each,
        convolution_peak_flops=1e12,
        on_progress=lambda done, total: told.append(done),
    )
    assert result.images == len(found.styles) > 40
    assert result.changes == 2 * found.space.size * result.images
    first = 8 * 2 * 2 * found.space.size  # eight images of either class have everything measured
    assert first < result.measured <= result.changes
    assert max(told) == result.images
    there_and_back = 3e12 * result.images  # for two classes
    assert result.measured < result.flops - there_and_back < found.space.size * result.measured
    assert result.peak_memory_bytes > 0
    assert result.evaluations_per_second == pytest.approx(result.changes / result.seconds)
    json.dumps(result.to_json(), allow_nan=False)


def test_a_screened_search_is_told_what_changes_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    size = searching.SizeResult("shipped", 544, 1, 1, 8, 5e11, {}, None)
    monkeypatch.setattr(searching, "_measure", lambda *_: size)
    told: dict[str, Any] = {}
    monkeypatch.setattr(searching, "bench_screened", lambda *_, **more: told.update(more))
    searching.bench_attfind(CPU, sizes=("shipped",), rounds=1)
    assert told["convolution_peak_flops"] == 5e11
    each = told["change_flops"]
    assert each.shape == (544,)
    assert told["image_flops"] > each[0] > each[-1] > 0
    assert (np.diff(each) <= 0).all(), "the later the layer, the less lies behind it"


def test_the_sizes_are_the_published_ones() -> None:
    model, space, styles = searching.make_model("study", CPU)
    assert space.size == 4608
    assert styles.shape == (4, model.generator.synthesis.style_size)


def test_the_peers_evaluation_moves_a_bias_and_puts_it_back() -> None:
    seen: list[float] = []

    class Generator(nn.Module):
        def __init__(self, size: int, style_dim: int, layers: int) -> None:
            super().__init__()
            self.conv1 = nn.Module()
            self.conv1.conv = nn.Module()
            self.conv1.conv.modulation = nn.Linear(style_dim, 4)
            self.size = size

        def forward(self, latents: list[Tensor], input_is_latent: bool, randomize_noise: bool) -> Any:
            seen.append(float(self.conv1.conv.modulation.bias[0]))
            return torch.zeros(1, 3, self.size, self.size), None

    class Peer:
        pass

    Peer.Generator = Generator  # type: ignore[attr-defined]
    step = StudyEvaluation(Peer, nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)), 8, 2, torch.device("cpu"))
    before = float(step.generator.conv1.conv.modulation.bias[0])
    assert step.evaluate().shape == (1, 2)
    assert seen == [pytest.approx(before + 1)]
    assert float(step.generator.conv1.conv.modulation.bias[0]) == before
