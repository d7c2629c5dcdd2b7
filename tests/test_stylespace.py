from __future__ import annotations

import pytest
import torch

import problems
from stylex.errors import ConfigError, DataError
from stylex.stylespace import StyleSpace, searchable_positions


def test_searchable_are_the_styles_of_convolutions() -> None:
    assert searchable_positions(problems.LAYOUT).tolist() == [0, 1, 2, 5, 6, 7]
    model = problems.tiny_model()
    layout = model.generator.synthesis.layout
    named = [
        (place.name, channel)
        for place in layout
        if "rgb" not in place.name
        for channel in range(place.channels)
    ]
    space = StyleSpace.from_styles(layout, torch.zeros(2, model.generator.synthesis.style_size))
    assert [(space.layer(i)[0].name, space.layer(i)[1]) for i in range(space.size)] == named


def test_ranges_are_minimum_and_maximum() -> None:
    styles = problems.linear_styles([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 1, 9, 1, 1, 1]])
    space = StyleSpace.from_styles(problems.LAYOUT, styles)
    assert space.low.tolist() == [0, 1, 2, 1, 1, 0]
    assert space.high.tolist() == [5, 4, 9, 3, 4, 5]
    assert space.end(0) is space.low
    assert space.end(1) is space.high


@pytest.mark.parametrize("quantile", [0.01, 0.05, 0.25, 0.4])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_ranges_can_be_quantiles(count: int, quantile: float) -> None:
    styles = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    space = StyleSpace.from_styles(problems.LAYOUT, styles, quantile)
    searchable = styles[:, searchable_positions(problems.LAYOUT)]
    torch.testing.assert_close(space.low, torch.quantile(searchable, quantile, dim=0))
    torch.testing.assert_close(space.high, torch.quantile(searchable, 1 - quantile, dim=0))


def test_shift_moves_one_coordinate_and_leaves_its_argument() -> None:
    styles = problems.linear_styles([[0.5, 0, 0, 0, 0, 0]] * 2)
    kept = styles.clone()
    moved = problems.unit_space().shift(styles, [(0, 0), (1, 3)])
    assert torch.equal(styles, kept)
    assert moved[0].tolist() == [-1, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("amount", "expected"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0), (2.0, 1.5)])
def test_amounts_are_shares_of_the_way(amount: float, expected: float) -> None:
    styles = problems.linear_styles([[0.5, 0, 0, 0, 0, 0]])
    space = problems.unit_space()
    assert space.shift(styles, {(1, 0): amount})[0, 0] == expected
    assert space.shift(styles, [(1, 0)], by=amount)[0, 0] == expected


def test_later_direction_counts() -> None:
    styles = problems.linear_styles([[0.5, 0, 0, 0, 0, 0]])
    assert problems.unit_space().shift(styles, {(1, 0): 1.0, (0, 0): 1.0})[0, 0] == -1


def test_describe_and_bad_coordinates() -> None:
    space = problems.unit_space()
    assert space.describe((1, 4)) == {
        "coordinate": 4,
        "direction": 1,
        "layer": "8px.conv0",
        "resolution": 8,
        "channel": 1,
    }
    with pytest.raises(ConfigError, match="coordinate 6 does not exist; there are 6"):
        space.layer(6)
    with pytest.raises(DataError, match="ranges of 5"):
        StyleSpace(problems.LAYOUT, torch.zeros(5), torch.zeros(5))
