"""What `stylex bench` is made of: fair turns, shares, peaks, and the step built from a peer's parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import documentation
from stylex.benchmarks.machine import convolution_peak, describe, interleaved
from stylex.benchmarks.peers import StudyStep, load_peer
from stylex.benchmarks.profiling import Share, shares, times_by_kind
from stylex.benchmarks.training import TrainingBenchmark, _mean_step, _Steps
from stylex.errors import ConfigError
from stylex.hardware import Hardware
from stylex.networks.convolution import convolve_transposed
from training_problems import make_trainer

CPU = Hardware(torch.device("cpu"), torch.float32, 1, "for tests")


def test_pieces_of_work_take_turns_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    clock = {"now": 0.0}
    monkeypatch.setattr("stylex.benchmarks.machine.time.perf_counter", lambda: clock["now"])
    costs = {"a": iter([100.0, 1.0, 3.0, 2.0]), "b": iter([100.0, 8.0, 4.0, 6.0])}

    def work(name: str) -> Any:
        def run() -> None:
            calls.append(name)
            clock["now"] += next(costs[name])

        return run

    rounds: list[int] = []
    found = interleaved({"a": work("a"), "b": work("b")}, CPU, 3, rounds.append)
    assert calls == ["a", "b"] * 4
    assert found == {"a": 2.0, "b": 6.0}
    assert rounds == [0, 1, 2, 3]


def test_shares_add_up_and_name_what_dominates() -> None:
    images, weight = torch.randn(4, 32, 32, 32), torch.randn(32, 32, 3, 3)
    found = shares(lambda: [F.conv2d(images, weight) for _ in range(5)])
    assert sum(entry.share for entry in found) == pytest.approx(1)
    assert found[0].kind == "convolution, forward"
    assert found[0].share > 0.5


def test_convolutions_are_told_apart_by_their_kernels() -> None:
    images, colours = torch.randn(8, 32, 32, 32), torch.randn(8, 1, 32, 32)
    kernels = {size: torch.randn(32, 32, size, size) for size in (1, 3)}
    single, first = torch.randn(32, 1, 4, 4), torch.randn(32, 1, 3, 3)
    up = torch.randn(32, 16, 3, 3)
    works: dict[str, Callable[[], object]] = {
        "convolution 3 × 3": lambda: (F.conv2d(images, kernels[3]), F.conv2d(colours, first)),
        "convolution 1 × 1": lambda: F.conv2d(images, kernels[1]),
        "depthwise convolution": lambda: F.conv2d(images, single, groups=32),
        "transposed convolution": lambda: convolve_transposed(images, up),
    }
    for name, work in works.items():
        with torch.inference_mode():
            times = times_by_kind(work, by_kernel=True)
        assert {kind for kind in times if "convolution " in kind or " convolution" in kind} == {name}
        assert times[name] > 0


def test_the_peak_counts_multiplications_and_additions() -> None:
    """As PyTorch's own counter does, but for the borders, where it counts as if nothing were cut off."""
    peak = convolution_peak(CPU, channels=4, size=8, count=3, repeats=2)
    assert peak.flops == 2 * 2 * 3 * 64 * 16 * 9
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        peak.work.__wrapped__()  # type: ignore[attr-defined]
    assert counter.get_total_flops() == peak.flops


def test_the_machine_is_named() -> None:
    machine = describe(CPU)
    assert machine.processor
    assert (machine.precision, machine.threads) == ("fp32", 1)
    assert machine.torch == torch.__version__
    assert set(machine.to_json()) >= {"processor", "device", "threads", "precision", "amx", "torch", "date"}


def test_a_folder_that_holds_no_peer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a copy of rosinality"):
        load_peer(tmp_path)


def test_a_peer_is_imported_without_compiling(tmp_path: Path) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "model.py").write_text(
        "from torch.utils.cpp_extension import load\nbuilt = load('x', sources=['none.cpp'])\nname = 'peer'\n"
    )
    assert load_peer(tmp_path).name == "peer"


class Peer:
    """Networks with the interfaces of the peer's, a few numbers each."""

    class ConvLayer(nn.Conv2d):
        def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
            super().__init__(inputs, outputs, kernel, padding=1)

    class EqualLinear(nn.Linear):
        def __init__(self, inputs: int, outputs: int, activation: str | None = None) -> None:
            super().__init__(inputs, outputs)

    class Discriminator(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.convs = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, 512, 1), nn.Softplus())
            self.score = nn.Linear(512, 1)

        def forward(self, images: Tensor) -> Tensor:
            score: Tensor = self.score(self.convs(images).mean(dim=(2, 3)))
            return score

    class Generator(nn.Module):
        def __init__(self, size: int, style_dim: int, layers: int) -> None:
            super().__init__()
            self.draw = nn.Linear(style_dim, 3 * size * size)
            self.size = size

        def forward(self, styles: list[Tensor], input_is_latent: bool, return_latents: bool = False) -> Any:
            assert input_is_latent
            wide = styles[0][:, None].repeat(1, 2, 1)
            images = torch.tanh(self.draw(wide.square().mean(dim=1))).reshape(-1, 3, self.size, self.size)
            return images, (wide if return_latents else None)


def test_a_step_of_the_study_changes_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).requires_grad_(False)
    seen: list[int] = []

    def perceptual(one: Tensor, other: Tensor) -> Tensor:
        seen.append(len(one))
        return (one - other).square().mean(dim=(1, 2, 3))

    step = StudyStep(Peer, classifier, perceptual, torch.rand(4, 3, 8, 8) * 2 - 1, 2)  # type: ignore[arg-type]
    parts = {"encoder": step.encoder, "generator": step.generator, "discriminator": step.discriminator}
    before = {name: [value.clone() for value in part.state_dict().values()] for name, part in parts.items()}
    updates: list[float] = []
    update = step._update

    def counted(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        updates.append(float(loss.detach()))
        update(optimiser, loss)

    monkeypatch.setattr(step, "_update", counted)
    step.step(with_r1=False)
    assert len(updates) == 3
    assert seen == [4]
    for name, part in parts.items():
        after = list(part.state_dict().values())
        assert any(not torch.equal(a, b) for a, b in zip(before[name], after, strict=True)), name
    step.step(with_r1=True)
    assert len(updates) == 7
    assert float(step.path_length_mean) > 0


def test_steps_are_run_at_the_stage_that_is_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", "fast")
    kinds: list[tuple[int, float]] = []
    trainer.step = lambda: kinds.append((trainer.state.step, trainer.state.images)) or {}  # type: ignore
    _Steps(trainer, 5000).run(16, 2)
    assert kinds == [(16, 5000), (16, 5000)]


def test_regularisation_is_shared_out_over_its_interval() -> None:
    assert _mean_step(2.0, 10.0) == 2.5
    found = TrainingBenchmark(describe(CPU), 1, 2.5, 50.0, 30.0, 40.0, 80.0, 2e12, 1e12, [])
    assert found.speedup == 20
    assert found.to_json()["share_of_convolution_peak"] == 0.5
    timed = replace(found, where_the_time_goes=[Share("convolution, forward", 1.0)])
    documentation.names_all(timed.to_json(), "bench train")
    assert TrainingBenchmark(describe(CPU), 1, 2.5, None, 1.0, 1.0, 1.0, 1.0, 1.0, []).speedup is None
