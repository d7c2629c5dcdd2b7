"""The expensive measurement: the classifier's answer when one coordinate goes to an end of its range.

The result is always the logits after each change, [N, 2, S, K]; effects are differences of them
(`effects.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stylex.model import Model
from stylex.networks import StyleLayer, SynthesisState
from stylex.stylespace import StyleSpace

OnImages = Callable[[int, int], None]
"""Called with images done and images in all."""


@torch.inference_mode()
def sweep(
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    *,
    shift: float = 1.0,
    batch_size: int = 64,
    on_image: OnImages | None = None,
) -> Tensor:
    """Logits after every single change: styles [N, T] → [N, 2, S, K], float32 on the CPU.

    A coordinate of layer l leaves everything before l unchanged, so activations up to each layer are computed
    once an image, and only the layers from l on run again, for `batch_size` changes at once (both directions,
    many coordinates). Changes that do not move a coordinate (it lies at that end already) take the unchanged
    logits.

    Args:
        shift: 1 moves a coordinate to the end of its range.
        batch_size: changed images synthesised and classified at once; memory, not the result, depends on it.
        on_image: called after every image.
    """
    classes = len(model.class_names)
    results = torch.empty(len(styles), 2, space.size, classes)
    for number in range(len(styles)):
        style = styles[number : number + 1]
        results[number] = _sweep_image(model, space, style.to(model.hardware.device), shift, batch_size)
        if on_image is not None:
            on_image(number + 1, len(styles))
    return results


def _sweep_image(model: Model, space: StyleSpace, style: Tensor, shift: float, batch_size: int) -> Tensor:
    synthesis = model.generator.synthesis
    results = torch.empty(2, space.size, len(model.class_names), device=style.device)
    ends = torch.stack([space.low, space.high])
    states: list[SynthesisState] = list(synthesis.states(style, model.noise))
    final = states[-1].image
    assert final is not None
    results[:] = model.classifier(final.clamp(-1, 1))
    values = space.searchable(style)[0]
    first = 0
    for place, state in zip(synthesis.layout, states, strict=False):
        if place.kind != "conv":
            continue
        changes = _changes(space, place, values, first, shift)
        first += place.channels
        for begin in range(0, len(changes), batch_size):
            part = changes[begin : begin + batch_size]
            directions, coordinates = part[:, 0], part[:, 1]
            moved = style.repeat(len(part), 1)
            before = values[coordinates]
            rows = torch.arange(len(part), device=style.device)
            moved[rows, space.positions[coordinates]] = before + shift * (
                ends[directions, coordinates] - before
            )
            start = state.select(torch.zeros(len(part), dtype=torch.long, device=style.device))
            images = synthesis.finish(_channels_last(start), moved, model.noise)
            results[directions, coordinates] = model.classifier(images.clamp(-1, 1))
    return results.cpu()


def _changes(space: StyleSpace, place: StyleLayer, values: Tensor, first: int, shift: float) -> Tensor:
    """(direction, coordinate) rows [M, 2] of one layer's changes that move anything."""
    rows = []
    for direction in (0, 1):
        window = slice(first, first + place.channels)
        moves = (space.end(direction)[window] != values[window]) & (shift != 0)
        coordinates = moves.nonzero()[:, 0] + first
        rows.append(torch.stack([torch.full_like(coordinates, direction), coordinates], dim=1))
    return torch.cat(rows)


def _channels_last(state: SynthesisState) -> SynthesisState:
    features = state.features.contiguous(memory_format=torch.channels_last)
    return SynthesisState(state.layer, features, state.image)


@torch.inference_mode()
def sweep_slowly(model: Model, space: StyleSpace, styles: Tensor, *, shift: float = 1.0) -> Tensor:
    """The reference for `sweep`: one image, coordinate and direction at a time, whole synthesis each."""
    results = torch.empty(len(styles), 2, space.size, len(model.class_names))
    for number in range(len(styles)):
        style = styles[number : number + 1]
        for direction in (0, 1):
            for coordinate in range(space.size):
                moved = space.shift(style, [(direction, coordinate)], by=shift)
                results[number, direction, coordinate] = model.classify(model.synthesise(moved))[0].cpu()
    return results
