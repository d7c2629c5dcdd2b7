"""FID, KID, precision and recall against closed forms and slow definitions written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from stylex.errors import DataError
from stylex.evaluation.distributions import fid, kid, precision_recall, realism


def cloud(count: int, features: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated normal features."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(features, features)) / features**0.5
    return torch.from_numpy(random.normal(size=(count, features)) @ mixing * scale + shift)


def numpy_fid(reals: Tensor, generated: Tensor) -> float:
    """The definition with a matrix square root, by scipy."""
    one, other = reals.numpy(), generated.numpy()
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    gap = one.mean(axis=0) - other.mean(axis=0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(root))


def slow_kid(reals: Tensor, generated: Tensor) -> float:
    """Unbiased MMD² of the whole sets with the cubic kernel, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return float(x @ y / len(x) + 1) ** 3

    n, m = len(reals), len(generated)
    within = sum(kernel(reals[i], reals[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    others = sum(kernel(generated[i], generated[j]) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(x, y) for x in reals for y in generated) / (n * m)
    return within + others / (m * (m - 1)) - 2 * between


def slow_precision(reals: Tensor, generated: Tensor, k: int) -> float:
    """Share of generated points in any real ball, by loops."""
    points = reals.numpy()
    radii = [sorted(float(np.linalg.norm(x - y)) for y in points)[k] for x in points]
    inside = [
        any(np.linalg.norm(z - x) <= radius for x, radius in zip(points, radii, strict=True))
        for z in generated.numpy()
    ]
    return float(np.mean(inside))


def test_fid_equals_the_matrix_root_of_scipy() -> None:
    reals, generated = cloud(60, 8, 0), cloud(45, 8, 1, shift=0.4, scale=1.3)
    assert fid(reals, generated) == pytest.approx(numpy_fid(reals, generated), rel=1e-6)
    assert fid(reals, generated) == pytest.approx(fid(generated, reals), rel=1e-6)
    assert fid(reals, reals) == pytest.approx(0, abs=1e-6)


def test_fid_of_a_shift_is_its_square() -> None:
    reals = cloud(60, 8, 0)
    assert fid(reals, reals + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)


def test_fid_with_fewer_images_than_features() -> None:
    reals, generated = cloud(10, 16, 0), cloud(12, 16, 1, shift=0.2)
    assert fid(reals, generated) == pytest.approx(numpy_fid(reals, generated), rel=1e-3)


def test_kid_over_subsets_means_the_slow_one_of_the_whole() -> None:
    reals, generated = cloud(24, 4, 0), cloud(20, 4, 1, shift=1.5)
    found = kid(reals, generated, subsets=3000)
    assert (found.subsets, found.subset_size) == (3000, 10)
    standard_error = found.std / 3000**0.5
    assert found.mean == pytest.approx(slow_kid(reals, generated), abs=4 * standard_error)
    assert found.mean > 10 * standard_error


def test_kid_depends_on_its_seed_alone() -> None:
    reals, generated = cloud(24, 4, 0), cloud(20, 4, 1)
    torch.manual_seed(5)
    first = kid(reals, generated, subsets=3, seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))  # the global state was not moved
    torch.manual_seed(6)
    assert kid(reals, generated, subsets=3, seed=1) == first
    assert kid(reals, generated, subsets=3, seed=2) != first


def test_precision_and_recall_equal_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylex.evaluation.distributions._ROWS", 7)  # several batches
    reals, generated = cloud(40, 3, 0), cloud(30, 3, 1, shift=0.6, scale=0.7)
    for k in (1, 3):
        precision, recall = precision_recall(reals, generated, k)
        assert precision == pytest.approx(slow_precision(reals, generated, k))
        assert recall == pytest.approx(slow_precision(generated, reals, k))
        assert 0 < recall < precision < 1


def test_precision_and_recall_by_hand() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # radii to the nearest neighbour: 1, 1, 1, 8
    near = torch.tensor([[0.5], [0.6], [2.5], [18.5]])
    assert precision_recall(line, near, 1) == (0.75, 0.75)  # 18.5 outside; radii 0.1, 0.1, 1.9, 16: 0 outside
    assert precision_recall(line, line + 100, 1) == (0.0, 0.0)
    assert precision_recall(line, line, 1) == (1.0, 1.0)


def test_realism_says_what_it_rests_on() -> None:
    found = realism("cloud", cloud(20, 4, 0), cloud(15, 4, 1)).to_json()
    assert (found["extractor"], found["neighbours"]) == ("cloud", 3)
    assert (found["reals"], found["generated"]) == (20, 15)
    assert found["kid"]["subset_size"] == 7


def test_bad_features() -> None:
    good = cloud(8, 3, 0)
    with pytest.raises(DataError, match="3 generated images are too few: at least 4"):
        kid(good, good[:3])
    with pytest.raises(DataError, match="1 real images"):
        fid(good[:1], good)
    with pytest.raises(DataError, match="D alike"):
        fid(good, cloud(8, 4, 0))
    with pytest.raises(DataError, match="NaN"):
        precision_recall(good, good.clone().fill_(float("nan")))
