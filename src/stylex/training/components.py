"""Principal components of the training images, for encoders with a place for them (`networks.Encoder`)."""

from __future__ import annotations

import numpy as np
import torch

from stylex.data import ImageSet
from stylex.networks import Encoder
from stylex.networks.residual import shrunk

SAMPLE = 2048
"""Images of which components are taken; all of them where there are fewer."""

NEGLIGIBLE = 1e-6
"""Components with a smaller share of the variance are left out: they would be noise, made large."""


@torch.no_grad()
def fit_components(encoder: Encoder, images: ImageSet, deviation: float, seed: int) -> float:
    """Set the encoder's component_mean and component_weight from a sample of the images.

    Rows of the weight are principal axes, largest variance first, scaled such that each component has the
    standard deviation `deviation` over the sample. Rows that the images do not fill stay 0. The same images
    and seed give the same components. Sign of a row: its largest entry is positive.

    Args:
        encoder: with `components` > 0.
        images: training images of the encoder's resolution.

    Returns:
        Share of the images' variance, at the size of the components, that the components hold.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:SAMPLE])
    rows = torch.cat([shrunk(images.batch(part)) for part in np.array_split(chosen, -(-len(chosen) // 256))])
    mean = rows.mean(dim=0)
    centred = (rows - mean).double()
    # Of the products between images, not between pixels: 2,048 images at most are fewer than 3,072 pixels.
    variances, vectors = torch.linalg.eigh(centred @ centred.T / len(rows))
    variances, vectors = variances.flip(0), vectors.flip(1)
    whole = float(variances.clamp(min=0).sum())
    count = min(encoder.components, int((variances > NEGLIGIBLE * whole).sum()))
    variances, vectors = variances[:count], vectors[:, :count]
    axes = (centred.T @ vectors / (variances * len(rows)).sqrt()).T
    largest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    encoder.component_mean.copy_(mean)
    encoder.component_weight.zero_()
    encoder.component_weight[:count] = (axes / variances.sqrt()[:, None] * deviation).float()
    return float(variances.sum()) / whole if whole > 0 else 1.0
