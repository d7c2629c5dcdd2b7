"""The proximal step that makes styles read little of the condition, and each part of it by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def thin_out_condition(
    affine_weight: Tensor,
    condition_features: int,
    threshold: float,
    *,
    sums_to_one: bool = True,
    exclusive: float = 0.0,
    readers: Tensor | None = None,
) -> Tensor:
    """One L1 proximal step on the styles' dependence on the condition, in place. Ours, not the paper's.

    In every row (one style coordinate) of affine_weight [T, D + K], the deviations of the K columns that read
    the condition from their mean are soft-thresholded by `threshold` (stored, not effective, weights: the
    scale on which Adam steps by its learning rate). With two classes the mean stays; with more, what the
    thresholds take from unequal deviations moves it, which shifts the style for all classes alike.

    A coordinate whose deviations are all 0 does not depend on the class, since the condition sums to one.
    Where it does not (logits, or labels that do not exclude each other), the columns themselves are
    thresholded.

    `exclusive` e, 0 to 1, sets the readers of a coordinate against each other. With r, the share of one
    deviation in the row's length (the norm of the deviations plus the norm of the columns that read w), its
    threshold is (1 + e · (1 − 2 r)) · `threshold`, and the columns that read w are thresholded by e times the
    row's largest r: a coordinate comes to read one part of the condition alone, or w alone. A coordinate that
    reads both goes, at the end of its range, where w takes it, which is further than the condition asks for.
    Deviations of K columns that sum to zero have no r above √((K − 1)/K): of two classes they are ± d, with r
    at most 1/√2, and one that reads the class alone still has the threshold (1 − 0.41 e) · `threshold`.

    `readers`, a mask [T], leaves the others without any deviation: what a style reads that is not searched
    (of a toRGB layer) cannot become an attribute, however much the classifier sees of it.

    Returns:
        Share of coordinates that no longer depend on the class, on their device.
    """
    columns = affine_weight[:, -condition_features:]
    mean = columns.mean(dim=1, keepdim=True) if sums_to_one else torch.zeros_like(columns[:, :1])
    deviation = columns - mean
    if exclusive == 0:
        deviation = F.softshrink(deviation, threshold)
    else:
        w = affine_weight[:, :-condition_features]
        length = w.norm(dim=1, keepdim=True) + deviation.norm(dim=1, keepdim=True)
        share = deviation.abs() / length.clamp_min(torch.finfo(length.dtype).tiny)
        deviation = _soft(deviation, threshold * (1 + exclusive * (1 - 2 * share)))
        w.copy_(_soft(w, threshold * exclusive * share.amax(dim=1, keepdim=True)))
    if readers is not None:
        deviation = deviation * readers[:, None]
    columns.copy_(mean + deviation)
    return (deviation == 0).all(dim=1).float().mean()


def _soft(values: Tensor, thresholds: Tensor) -> Tensor:
    """Soft-thresholding by a threshold of its own for every value; `torch` has it for one threshold only."""
    return values.sign() * (values.abs() - thresholds).clamp_min(0)
