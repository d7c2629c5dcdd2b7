"""Effects of style coordinates in the manner of Captum: `attribute(inputs, target=…)`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stylex.attfind import sweep
from stylex.attfind.effects import log_odds_effects
from stylex.errors import ConfigError, DataError
from stylex.explainer import Explainer

Target = int | str | Sequence[int | str] | Tensor
"""One class for all images or one for each, by index or by name."""


class StyleAttribution:
    """What each style coordinate of an image does to a class, as an attribution method.

        attribution = StyleAttribution(stylex.load("run"))
        effects = attribution.attribute(images, target="young")      # [N, 2, S]

    Unlike Captum's methods it attributes to coordinates of the generator's styles, not to pixels: a
    coordinate is moved to the low (0) or high (1) end of its range and the image is drawn anew. `coordinate`
    says what is behind a column.
    """

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer

    @property
    def coordinates(self) -> int:
        """S, the length of the last axis."""
        return self.explainer.discovery.space.size

    def coordinate(self, direction: int, index: int) -> dict[str, object]:
        """Layer, resolution, channel and direction of an entry."""
        return self.explainer.discovery.space.describe((direction, index))

    def attribute(
        self, inputs: Tensor, target: Target, *, shift: float = 1.0, perturbations_per_eval: int = 64
    ) -> Tensor:
        """The change of the target's log-odds by every coordinate, of every image.

        Args:
            inputs: images [N, 3, R, R] (or one, [3, R, R]) in [-1, 1], at the run's resolution.
            target: a class for all images, or one for each.
            shift: 1 moves a coordinate to the end of its range.
            perturbations_per_eval: changed images drawn and classified at once; no effect on the result.

        Returns:
            [N, 2, S], float32 on the CPU, in the units of AttFind's effects.

        Raises:
            ConfigError: no such class, or not as many targets as images.
            DataError: images of another shape or range. RunError: the model has no encoder.
        """
        images = self._images(inputs)
        targets = self._targets(target, len(images))
        model, space = self.explainer.model, self.explainer.discovery.space
        styles = model.styles(model.encode(images)[0])
        before = model.classify(model.synthesise(styles)).cpu().numpy()
        after = sweep(model, space, styles, shift=shift, batch_size=perturbations_per_eval).numpy()
        effects = log_odds_effects(before, after, model.classifier.activation)
        rows = [effects[number, :, :, index] for number, index in enumerate(targets)]
        return torch.from_numpy(np.stack(rows).astype(np.float32)) if rows else torch.empty(0, 2, space.size)

    __call__ = attribute

    def _images(self, inputs: Tensor) -> Tensor:
        images = inputs[None] if inputs.ndim == 3 else inputs
        size = self.explainer.run.config.resolution
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise DataError(
                f"inputs must be float [N, 3, {size}, {size}] in [-1, 1]; these are {inputs.dtype} "
                f"{list(inputs.shape)}"
            )
        if not bool((images.abs() <= 1 + 1e-3).all()):  # NaN fails too
            low, high = float(images.min()), float(images.max())
            raise DataError(f"inputs must lie in [-1, 1]; these go from {low:.3g} to {high:.3g}")
        return images.detach().float()

    def _targets(self, target: Target, count: int) -> list[int]:
        wanted = target.tolist() if isinstance(target, Tensor) else target
        each = [wanted] * count if isinstance(wanted, int | str) else list(wanted)
        if len(each) != count:
            raise ConfigError(f"{len(each)} targets are given for {count} images; give one, or one for each")
        return [self._index(value) for value in each]

    def _index(self, value: int | str) -> int:
        names = self.explainer.class_names
        if isinstance(value, str) and value in names:
            return names.index(value)
        if isinstance(value, int) and 0 <= value < len(names):
            return value
        raise ConfigError(
            f"no class {value!r}; the classifier knows {', '.join(names)}, 0 to {len(names) - 1}"
        )
