"""Random numbers and data order that follow from seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stylex.parallel import World
from stylex.training.randomness import DataOrder, StepRandom, derive_seed

CPU = torch.device("cpu")


def draws(random: StepRandom) -> list[torch.Tensor]:
    large = random.normal(2, 1, 256, 256)
    return [random.normal(3, 4), random.uniform(5), random.permutation(6), large]


def test_a_steps_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    expected = draws(StepRandom(7, 100, 1, CPU))
    torch.manual_seed(3)
    for step in range(100):
        draws(StepRandom(7, step, 1, CPU))
    torch.rand(10)
    for found, value in zip(draws(StepRandom(7, 100, 1, CPU)), expected, strict=True):
        assert bool((found == value).all())


@pytest.mark.parametrize("other", [(8, 100, 1), (7, 101, 1), (7, 100, 2), (71, 0, 1), (7, 10, 11)])
def test_seed_step_and_part_all_count(other: tuple[int, int, int]) -> None:
    one = StepRandom(7, 100, 1, CPU).normal(50)
    assert float((one - StepRandom(*other, CPU).normal(50)).abs().max()) > 0.1


def test_large_draws_are_normal_and_differ_from_image_to_image_and_draw_to_draw() -> None:
    random = StepRandom(0, 3, 0, CPU)
    first, second = random.normal(3, 256, 256), random.normal(3, 256, 256)
    rows = torch.cat([first, second]).flatten(1)
    assert rows.mean(dim=1).abs().max() < 0.02
    assert (rows.std(dim=1) - 1).abs().max() < 0.02
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 0.02


def test_a_large_draw_costs_a_process_its_own_share() -> None:
    """Only its rows are drawn: of 64 processes one draws 2 images of 128, not all."""
    drawn: list[int] = []
    normal = torch.Tensor.normal_

    def counting(self: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        drawn.append(self.numel())
        return normal(self, *arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", counting)
        StepRandom(0, 0, 0, CPU, World(rank=5, size=64)).normal(2, 1, 256, 256)
    assert drawn == [256 * 256] * 2


def test_draws_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    draws(StepRandom(0, 0, 0, CPU))
    assert bool((torch.get_rng_state() == before).all())


def test_seeds_are_the_same_everywhere() -> None:
    """The first eight bytes of sha256("0/epoch/1") as sha256sum gives them, halved."""
    assert derive_seed(0, "epoch", 1) == 0x036F31EF7A7AF52B // 2
    assert derive_seed(0, "epoch", 2) != derive_seed(0, "epoch", 1) != derive_seed(1, "epoch", 1)


@pytest.mark.parametrize("count", [2, 7, 64])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_every_epoch_holds_every_image_once_and_batches_run_on_across_epochs(count: int, batch: int) -> None:
    order = DataOrder(count, 5)
    epochs = 3
    seen = np.concatenate([order.indices(first, batch) for first in range(0, count * epochs + batch, batch)])
    for epoch in range(epochs):
        part = seen[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))
    if count == 64:
        assert (seen[:64] != seen[64:128]).any()


def test_the_place_in_the_data_is_only_a_number() -> None:
    order = DataOrder(10, 0)
    everything = order.indices(0, 100)
    for first in (0, 37, 3, 99):
        fresh = DataOrder(10, 0).indices(first, 1)
        assert fresh[0] == order.indices(first, 1)[0] == everything[first]
    assert (DataOrder(10, 1).indices(0, 100) != everything).any()


def test_half_of_the_images_are_mirrored_and_always_the_same() -> None:
    order = DataOrder(10, 0)
    flips = np.concatenate([order.mirrored(first, 16) for first in range(0, 3200, 16)])
    assert abs(flips.mean() - 0.5) < 0.05
    assert (DataOrder(10, 0).mirrored(16, 16) == flips[16:32]).all()
