"""The golden networks: state dicts in two public layouts, and what the originals made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4


def load(name: str) -> dict[str, Tensor]:
    """Every tensor of one file; keys `G.…` and `D.…` are state-dict entries."""
    with np.load(Path(__file__).parent / "data" / f"{name}_tiny.npz", allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def conditional(entries: dict[str, Tensor], classes: int, seed: int = 0) -> dict[str, Tensor]:
    """Entries `mapping.…` of a StyleGAN2-ADA network, and those by which it is told of classes; random."""
    random = torch.Generator().manual_seed(seed)
    weight = entries["mapping.fc0.weight"]
    width = len(weight)
    reads_label = torch.randn(width, width, generator=random) * weight.std()
    return entries | {
        "mapping.embed.weight": torch.randn(width, classes, generator=random),
        "mapping.embed.bias": torch.randn(width, generator=random),
        "mapping.fc0.weight": torch.cat([weight, reads_label], dim=1),
    }


def assert_equal(value: Tensor, expected: Tensor) -> None:
    """Equal to the tolerance that the project promises, absolute."""
    torch.testing.assert_close(value, expected, rtol=0, atol=TOLERANCE)
