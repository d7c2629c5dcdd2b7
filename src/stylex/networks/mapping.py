"""The mapping network z → w of StyleGAN2."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from stylex.networks.layers import EqualLinear


class Mapping(nn.Module):
    """z [N, z_features] → w [N, w_features], with a running mean of w for truncation.

    z is normalised to unit second moment; every layer learns at 0.01 of the common rate (Karras et al. 2020,
    appendix B).
    """

    mean_w: Tensor

    def __init__(self, z_features: int, w_features: int, *, layers: int = 8, rate: float = 0.01) -> None:
        super().__init__()
        sizes = [z_features] + [w_features] * layers
        self.layers = nn.ModuleList(
            EqualLinear(before, after, rate=rate, activate=True)
            for before, after in itertools.pairwise(sizes)
        )
        self.z_features = z_features
        self.w_features = w_features
        self.register_buffer("mean_w", torch.zeros(w_features))

    def forward(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """z [N, z_features], standard normal, and truncation in [0, 1] (1 = none) → w [N, w_features]."""
        features = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            features = layer(features)
        return features if truncation == 1.0 else self.mean_w.lerp(features, truncation)

    @torch.no_grad()
    def update_mean(self, w: Tensor, decay: float = 0.995) -> None:
        """Move the running mean towards the mean of w [N, w_features]."""
        self.mean_w.copy_(w.detach().float().mean(dim=0).lerp(self.mean_w, decay))
