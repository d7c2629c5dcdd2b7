"""The machine: what is chosen, why, and that a busy machine does not fool the probe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from stylex import hardware
from stylex.errors import ConfigError
from stylex.hardware import Hardware, bf16_speedup, choose, keep_freed_memory, place, usable_cores
from stylex.networks import Encoder


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_was_asked_for_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, precision: hardware.Precision, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: pytest.fail("measured"))
    chosen = choose("cpu", precision, threads=1)
    assert (chosen.dtype, chosen.precision, chosen.threads) == (dtype, precision, 1)
    assert torch.get_num_threads() == 1
    assert str(chosen) == f"CPU, 1 threads, {precision} (asked for)"


@pytest.mark.parametrize(
    ("ratio", "precision"), [(0.0, "fp32"), (0.02, "fp32"), (1.9, "bf16"), (8.0, "bf16")]
)
def test_auto_takes_bf16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float, precision: str
) -> None:
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: ratio)
    chosen = choose("cpu", threads=1)
    assert chosen.precision == precision
    assert f"{ratio:.1f}×" in chosen.reason


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus", "mps:3"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match="--device auto"):
        choose(device)


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="fp16"):
        choose("cpu", "fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threads"):
        choose("cpu", "fp32", threads=0)


def test_the_probe_measures_both_formats_in_turn_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which the machine is busy now and then: bf16 takes 1 tick and fp32 3, or 50 more."""
    now = 0.0
    calls: list[torch.dtype] = []

    def convolve(images: torch.Tensor, weight: torch.Tensor, padding: int) -> None:
        nonlocal now
        calls.append(images.dtype)
        busy = 50.0 if len(calls) % 5 else 0.0
        now += (1.0 if images.dtype == torch.bfloat16 else 3.0) + busy

    monkeypatch.setattr(hardware.F, "conv2d", convolve)
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    threads = torch.get_num_threads()
    assert bf16_speedup.__wrapped__() == 3.0
    assert calls[::2] == [torch.float32] * 13
    assert calls[1::2] == [torch.bfloat16] * 13
    assert torch.get_num_threads() == threads


def test_the_probe_on_this_machine_is_quick_and_positive() -> None:
    assert bf16_speedup.__wrapped__(3) > 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", 8), ("150000 100000\n", 2), ("50000 100000\n", 1), ("9900000 100000\n", 8), ("", 8)],
)
def test_cores_respect_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, expected: int
) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert usable_cores(file) == expected
    assert usable_cores(tmp_path / "missing") == 8


def test_memory_setting_answers_whether_it_took_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(keep_freed_memory(), bool)
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    assert keep_freed_memory.__wrapped__() is False


def test_place_sets_format_and_layout_of_every_part() -> None:
    encoder = Encoder(8, {4: 4, 8: 4}, 3)
    network = nn.ModuleList([encoder, nn.Conv2d(3, 4, 3)])
    place(network, Hardware(torch.device("cpu"), torch.bfloat16, 1, "test"))
    assert encoder.compute_dtype == torch.bfloat16
    weights = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    assert all(weight.dtype == torch.float32 for weight in weights)
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert encoder(torch.zeros(1, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("said", "threads"), [("3", 3), ("", None), ("0", None), ("many", None), (None, None)]
)
def test_threads_that_the_environment_asks_for(
    said: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs that share a machine's cores must not each take all of them and wait for each other."""
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert hardware.asked_threads() == threads
    assert choose("cpu", "fp32").threads == (threads or usable_cores())
    assert choose("cpu", "fp32", 1).threads == 1
