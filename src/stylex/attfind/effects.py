"""What counts as an effect: the change of the classifier's output, in log-odds or in raw logits.

The authors' notebook measures effects on raw logits, where a change that lifts every logit alike looks like
an effect although no probability moves. Log-odds are the default here: they see probabilities only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from stylex.errors import ClassifierError

Activation = Literal["softmax", "sigmoid"]
FloatArray = npt.NDArray[np.floating]


def log_odds(logits: npt.ArrayLike, activation: Activation = "softmax") -> FloatArray:
    """Log-odds log(p_k / (1 - p_k)) of every class, from logits, without going through probabilities.

    Softmax: z_k - log Σ_{j≠k} exp z_j, which for two classes is z_0 - z_1 and its negative, exactly.
    Sigmoid (every label by itself): z_k.

    Args:
        logits: [..., K], finite. Softmax needs K >= 2; a single logit z counts as the pair [-z/2, z/2], whose
            log-odds are -z and z.
        activation: how the classifier turns logits into probabilities.

    Returns:
        [..., K]; float64 for float64 (or integer) logits, else float32.

    Raises:
        ClassifierError: logits that are not finite, of the wrong shape, or an unknown activation.
    """
    given = np.asarray(logits)
    z = _checked(given, "logits")
    if activation == "sigmoid":
        return _like(z, given)
    if activation != "softmax":
        raise ClassifierError(f"activation {activation!r} is unknown: give 'softmax' or 'sigmoid'")
    classes = z.shape[-1]
    if classes < 2:
        raise ClassifierError(
            "softmax over a single logit is always 1: give the pair [-z/2, z/2] in its place"
        )
    if classes == 2:
        return _like(z - z[..., ::-1], given)
    return _like(z - _log_sum_exp_of_others(z), given)


def log_odds_effects(
    logits_before: npt.ArrayLike, logits_after: npt.ArrayLike, activation: Activation = "softmax"
) -> FloatArray:
    """Effects in log-odds: log-odds after the change minus log-odds before it.

    Adding one number to all logits of an image changes no softmax probability and is no effect.

    Args:
        logits_before: [N, K], of the unchanged images.
        logits_after: [N, ..., K], of the changed ones; [N, 2, S, K] for a whole sweep, or any batch of it.
        activation: how the classifier turns logits into probabilities.

    Returns:
        Of the shape of `logits_after`; float64 where that is float64, else float32.

    Raises:
        ClassifierError: shapes that do not belong together, or logits that are not finite.
    """
    after = np.asarray(logits_after)
    before = _aligned(np.asarray(logits_before), after)
    return _like(log_odds(_wide(after), activation) - log_odds(_wide(before), activation), after)


def raw_effects(logits_before: npt.ArrayLike, logits_after: npt.ArrayLike) -> FloatArray:
    """Effects on raw logits, as the authors' notebook has them; shapes as for `log_odds_effects`."""
    after = np.asarray(logits_after)
    before = _aligned(np.asarray(logits_before), after)
    return _like(_checked(after, "logits after the change") - _checked(before, "logits before it"), after)


def _log_sum_exp_of_others(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log Σ_{j≠k} exp z_j for every k, K >= 3, in time linear in K.

    Leaving class k out by subtraction is safe for every class but the largest, because the rest still holds
    the largest term; for the largest itself the sum is taken anew, relative to the second largest.
    """
    largest: npt.NDArray[np.float64] = z.max(axis=-1, keepdims=True)
    terms = np.exp(z - largest)
    others: npt.NDArray[np.float64] = largest + np.log(
        np.maximum(terms.sum(axis=-1, keepdims=True) - terms, 1.0)
    )
    top = z.argmax(axis=-1, keepdims=True)
    without_top = z.copy()
    np.put_along_axis(without_top, top, -np.inf, axis=-1)
    second = without_top.max(axis=-1, keepdims=True)
    rest = second + np.log(np.exp(without_top - second).sum(axis=-1, keepdims=True))
    np.put_along_axis(others, top, rest, axis=-1)
    return others


def _aligned(before: npt.NDArray[np.generic], after: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """`before` [N, K] with axes of length 1 put in, so that it broadcasts against `after` [N, ..., K]."""
    fits = before.ndim == 2 and after.ndim >= 2 and before.shape == (after.shape[0], after.shape[-1])
    if not fits:
        raise ClassifierError(
            f"logits before {before.shape} and after {after.shape} do not belong together: "
            "give [N, K] and [N, ..., K]"
        )
    return before.reshape(before.shape[0], *([1] * (after.ndim - 2)), before.shape[1])


def _checked(logits: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.float64]:
    z = _wide(logits)
    if z.ndim < 1 or z.shape[-1] < 1:
        raise ClassifierError(f"{name} of shape {z.shape}: the last axis must hold the classes")
    if not np.isfinite(z).all():
        row = int(np.argwhere(~np.isfinite(z))[0][0])
        raise ClassifierError(f"{name}: NaN or infinity in row {row}; check the classifier on that image")
    return z


def _wide(logits: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return logits.astype(np.float64)


def _like(values: FloatArray, given: npt.NDArray[np.generic]) -> FloatArray:
    """float64 stays where it was given (integers included), everything narrower becomes float32."""
    narrow = given.dtype in (np.float16, np.float32)
    return values.astype(np.float32 if narrow else np.float64, copy=False)
