"""How far apart two sets of images are: FID, KID, precision and recall, in given features."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stylex.errors import DataError

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""As Bińkowski et al. 2018 have them."""

NEIGHBOURS = 3
"""k of precision and recall, as Kynkäänniemi et al. 2019 have it."""

_ROWS = 1024  # of a matrix of distances held at once


@dataclass(frozen=True)
class Kid:
    """Kernel distance over subsets: `mean` and `std` of `subsets` draws of `subset_size` images a side."""

    mean: float
    std: float
    subsets: int
    subset_size: int


@dataclass(frozen=True)
class Realism:
    """How far generated images are from real ones as a distribution.

    Attributes:
        extractor: the name of the features; part of every figure here.
        reals, generated: how many images of each. FID falls with their number: compare at equal counts only.
        fid: Fréchet distance (Heusel et al. 2017).
        kid: kernel distance (Bińkowski et al. 2018), free of that bias.
        precision, recall: Kynkäänniemi et al. 2019, with `neighbours` neighbours.
    """

    extractor: str
    reals: int
    generated: int
    fid: float
    kid: Kid
    precision: float
    recall: float
    neighbours: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def realism(extractor: str, reals: Tensor, generated: Tensor, seed: int = 0) -> Realism:
    """All figures of generated features [M, D] against real ones [N, D]; `extractor` is their name."""
    precision, recall = precision_recall(reals, generated)
    return Realism(
        extractor,
        len(reals),
        len(generated),
        fid(reals, generated),
        kid(reals, generated, seed=seed),
        precision,
        recall,
        NEIGHBOURS,
    )


def fid(reals: Tensor, generated: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of features [N, D] and [M, D] (Heusel et al. 2017, equation 6).

    By torchmetrics, in double precision, which is given the features in place of images. Estimated from N
    images it is too large by roughly a constant over N (Bińkowski et al. 2018, section 4).

    Raises:
        DataError: fewer than two images on a side, or features that do not fit or are not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check(reals, generated, 2)
    metric = FrechetInceptionDistance(feature=_Given(reals.shape[1])).set_dtype(torch.float64)
    metric.update(reals.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kid(
    reals: Tensor,
    generated: Tensor,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> Kid:
    """Squared MMD with the kernel (x·y / D + 1)³, unbiased, over random subsets (Bińkowski et al. 2018).

    By torchmetrics, in double precision. Subsets have at most half of the smaller set, so that they differ
    and `std` means something; the estimate is unbiased at any size. The global random state is left alone.

    Raises:
        DataError: fewer than four images on a side, or features that do not fit or are not finite.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _check(reals, generated, 4)
    size = min(subset_size, len(reals) // 2, len(generated) // 2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all features
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=_Given(reals.shape[1]), subsets=subsets, subset_size=size
        ).set_dtype(torch.float64)
        metric.update(reals.double(), real=True)
        metric.update(generated.double(), real=False)
        mean, std = metric.compute()
    return Kid(float(mean), float(std), subsets, size)


def precision_recall(reals: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of generated images among the real ones, and of real images among the generated ones.

    An image is among others where it lies within the distance of any of them to its own k-th neighbour in its
    own set (Kynkäänniemi et al. 2019, equations 1 and 2, k = 3). Distances are Euclidean between features
    [N, D] and [M, D]. Their 50,000 images a side make other figures than a few hundred do: state the counts.

    Raises:
        DataError: not more than `neighbours` images on a side, or features that do not fit.
    """
    _check(reals, generated, neighbours + 1)
    real, fake = reals.double(), generated.double()
    return _share_within(real, fake, neighbours), _share_within(fake, real, neighbours)


def _share_within(manifold: Tensor, points: Tensor, neighbours: int) -> float:
    """Share of `points` inside any ball around a row of `manifold` through that row's k-th neighbour."""
    # The nearest of a row's distances within its own set is its own, 0: the k-th neighbour is number k + 1.
    radii = torch.cat(
        [
            torch.kthvalue(_distances(part, manifold), neighbours + 1, dim=1).values
            for part in torch.split(manifold, _ROWS)
        ]
    )
    inside = [(_distances(part, manifold) <= radii).any(dim=1) for part in torch.split(points, _ROWS)]
    return float(torch.cat(inside).double().mean())


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


class _Given(nn.Module):
    """In place of an extractor: passes on features that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check(reals: Tensor, generated: Tensor, least: int) -> None:
    for name, features in (("real", reals), ("generated", generated)):
        if features.ndim != 2 or features.shape[1] != reals.shape[-1]:
            raise DataError(f"{name} features of shape {list(features.shape)}: give [N, D], D alike")
        if len(features) < least:
            raise DataError(f"{len(features)} {name} images are too few: at least {least} are needed")
        if not bool(features.isfinite().all()):
            raise DataError(f"{name} features are NaN or infinite: look at the images")
