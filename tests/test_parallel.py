"""Two processes equal one with the whole batch: gradients of every phase, and whole trainings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import parallel_process as process
import training_problems as problems
from stylex.errors import ConfigError
from stylex.parallel import World, buckets, check_shares, world_size
from stylex.run import read_json
from stylex.training.randomness import StepRandom

Results = dict[str, dict[str, Tensor]]
Said = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pairs of gloo processes wrote what they found."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, process.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two_processes(folder: Path) -> tuple[Results, Results]:
    """What each of them found of gradients."""
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def exchanges(folder: Path) -> tuple[Said, Said]:
    """What each of them found of everything else."""
    first, second = (read_json(folder / f"rank{rank}.json") for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("case", process.CASES)
def test_gradients_of_two_processes_equal_those_of_one(
    tmp_path: Path, two_processes: tuple[Results, Results], case: str
) -> None:
    expected = process.alone(tmp_path, case)
    largest: dict[str, float] = {}
    for key, value in expected.items():
        phase = key.split("/")[0]
        largest[phase] = max(largest.get(phase, 0.0), float(value.norm()))
    assert {"generator", "path_length", "discriminator", "r1"} <= largest.keys()
    for found in (results[case] for results in two_processes):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # a gradient much smaller than its phase's others is what rounding leaves of large sums
            error = (found[key] - value).norm() / value.norm().clamp(min=largest[key.split("/")[0]] / 5)
            assert error < 2e-5, f"{key}: off by {error:.1e}"


def test_processes_decide_alike(exchanges: tuple[Said, Said]) -> None:
    """Also when only the second one sees the reason; of what it measures itself the first one's counts."""
    for found in exchanges:
        assert found["any"] == [True, False]
        assert found["share"] == [0, 1]
        assert found["means"] == {"rank": 0.5, "same": 3.0}
        assert found["trouble"] == "l1 not finite at step 7"
        assert found["lowest_l1_share"] == 0.5
        assert found["same start"] is None
        assert "do not start from the same weights" in found["other start"]


def test_the_others_wait_while_the_first_works(exchanges: tuple[Said, Said]) -> None:
    """Also for longer than an exchange may take, but not for one that failed."""
    first, second = (found["from first"] for found in exchanges)
    shared = [["by 0", "by 1"], [0, 1]]  # the second one at once
    assert first == ["by 0", [0], shared, "no images"]
    assert second[:3] == ["by 0", [], shared]
    assert "did not answer" in second[3]


def test_the_first_process_alone_writes(exchanges: tuple[Said, Said]) -> None:
    assert [found["checkpoints"] for found in exchanges] == [1, 0]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shape", [(2, 3), (1, 256, 256)])
def test_draws_are_rows_of_the_whole_batch(size: int, shape: tuple[int, ...]) -> None:
    device = torch.device("cpu")
    whole = StepRandom(3, 5, 0, device)
    parts = [StepRandom(3, 5, 0, device, World(rank=rank, size=size)) for rank in range(size)]
    normal, uniform, order = whole.normal(8, *shape), whole.uniform(8, 1), whole.permutation(8)
    second = whole.normal(8, *shape)
    assert not torch.equal(normal, second)
    for rank, part in enumerate(parts):
        assert torch.equal(part.normal(8 // size, *shape), normal[rank::size])
        assert torch.equal(part.uniform(8 // size, 1), uniform[rank::size])
        assert torch.equal(part.permutation(8 // size), order[rank::size])
        assert torch.equal(part.normal(8 // size, *shape), second[rank::size])


def test_a_batch_that_does_not_divide_is_refused() -> None:
    recipe = problems.recipe("fast", ["training.batch_size=12", "loss.path_length_batch_shrink=2"])
    check_shares(recipe, 2)
    with pytest.raises(ConfigError, match=r"batch_size is 12.*multiple of the 8 processes, such as 16"):
        check_shares(recipe, 8)
    with pytest.raises(ConfigError, match=r"path length takes 6 of 12 images.*4 processes"):
        check_shares(recipe, 4)
    check_shares(problems.recipe("fast", ["training.batch_size=12", "loss.path_length=0"]), 4)


def test_a_launcher_that_started_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_size(None, 1) == 1
    assert world_size(4, 2) == 8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert world_size(None, 1) == 2
    with pytest.raises(ConfigError, match="torchrun started 2 processes"):
        world_size(4, 1)


def test_buckets_hold_every_tensor_once_and_no_more_than_asked() -> None:
    tensors = [torch.zeros(count) for count in (3, 1, 9, 2, 2)] + [torch.zeros(1, dtype=torch.float64)]
    found = list(buckets(tensors, 20))
    assert [[tensor.numel() for tensor in bucket] for bucket in found] == [[3, 1], [9], [2, 2], [1]]
    assert [id(tensor) for bucket in found for tensor in bucket] == [id(tensor) for tensor in tensors]
