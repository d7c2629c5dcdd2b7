"""The expensive measurement: the classifier's answer when one coordinate goes to an end of its range.

The result is always the logits after each change, [N, 2, S, K]; effects are differences of them
(`effects.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stylex.attfind.folded import FoldedSynthesis
from stylex.model import Model
from stylex.networks import Synthesis, SynthesisState
from stylex.stylespace import StyleSpace

BATCH_SIZE = 32
"""Changed images synthesised at once where nobody has measured which number is best."""

ROUNDINGS = 32
"""Last bits of the largest logit, up to which two ways to the same image can differ."""

OnImages = Callable[[int, int], None]
"""Called with images done and images in all."""

OnChanges = Callable[[int], None]
"""Called with the number of changes that have just been measured."""


@torch.inference_mode()
def sweep(
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    *,
    shift: float = 1.0,
    batch_size: int = BATCH_SIZE,
    on_image: OnImages | None = None,
    on_changes: OnChanges | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """Logits after every single change: styles [N, T] → [N, 2, S, K], float32 on the CPU.

    A coordinate of layer l leaves everything before l unchanged, so activations up to each layer are computed
    once an image; layer l itself is changed in closed form, and only the layers behind it run again, with the
    image's styles folded into their weights (`folded.py`), for `batch_size` changes at once. Changes that do
    not move a coordinate (it lies at that end already) take the unchanged logits.

    In every layer the unchanged image goes through the same operations once more, and what is returned is the
    unchanged image's logits plus the difference to it: so rounding, in bf16 as large as a weak effect, does
    not become part of all effects of an image. With `wanted`, and float32 on a CPU from end to end, one
    unchanged image does for all layers, and differences within its rounding are none.

    Args:
        shift: 1 moves a coordinate to the end of its range.
        batch_size: changed images synthesised and classified at once; memory, not the result, depends on it.
        on_image: called after every image.
        on_changes: called after every batch; the counts of an image add up to the changes that are wanted.
        wanted: mask [2, S] of the changes to measure; the others take the unchanged logits.
    """
    classes = len(model.class_names)
    results = torch.empty(len(styles), 2, space.size, classes)
    for number in range(len(styles)):
        style = styles[number : number + 1].to(model.hardware.device)
        results[number] = sweep_image(model, space, style, shift, batch_size, on_changes, wanted).cpu()
        if on_image is not None:
            on_image(number + 1, len(styles))
    return results


def sweep_image(
    model: Model,
    space: StyleSpace,
    style: Tensor,
    shift: float,
    batch_size: int,
    on_changes: OnChanges | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """Logits [2, S, K] after every change of one image [1, T], on the device; see `sweep`.

    Args:
        wanted: mask [2, S] of the changes to measure; the others take the unchanged logits.
    """
    synthesis: nn.Module = model.generator.synthesis
    before = model.classifier(model.synthesise(style))
    results: Tensor = before.repeat(2, space.size, 1)
    values = space.searchable(style)[0]
    ends = torch.stack([space.low, space.high])
    targets = values + shift * (ends - values)
    moves = (ends != values) & (shift != 0)
    if wanted is not None:
        wanted = wanted.to(moves.device)
        moves &= wanted
    if not isinstance(synthesis, Synthesis):  # some other differentiable drawing: nothing of it is known
        return _sweep_unknown(model, space, style, targets, moves, results, batch_size, on_changes)
    folded = FoldedSynthesis(synthesis, style, model.noise)
    if wanted is not None:
        return _sweep_joined(
            model, folded, synthesis, wanted, moves, values, targets, results, batch_size, on_changes
        )
    first = 0
    for number, place in enumerate(synthesis.layout):
        if place.kind != "conv":
            continue
        window = slice(first, first + place.channels)
        channels, directions = moves[:, window].T.nonzero(as_tuple=True)  # both ends of a channel in turn
        layer = folded.layer(number) if len(channels) else None
        reference: Tensor | None = None
        for part in _parts(len(channels), 2 * place.channels, batch_size):
            assert layer is not None
            # The unchanged image leads, and fills up: of one shape of batches, kernels are built once.
            rows = slice(part.lead, part.lead + part.count)
            padded = channels[part.first].repeat(part.rows)
            padded[rows] = channels[part.slice]
            moved = values[first + padded]
            moved[rows] = targets[directions[part.slice], first + channels[part.slice]]
            images = folded.finish(layer(padded, moved))
            logits = model.classifier(images.clamp_(-1, 1))
            if reference is None:
                reference = logits[0]
            results[directions[part.slice], first + channels[part.slice]] += logits[rows] - reference
            if on_changes is not None:
                on_changes(part.count)
        if on_changes is not None and len(channels) < 2 * place.channels:
            on_changes(2 * place.channels - len(channels))
        first += place.channels
    return results


@dataclass(frozen=True)
class _Group:
    """Some changes of one layer, in a batch with those of other layers: [c] channels and directions.

    `first`: coordinate of the layer's first channel; `leads`: 1 with the unchanged image in front, or 0.
    """

    number: int
    first: int
    channels: Tensor
    directions: Tensor
    leads: int

    @property
    def coordinates(self) -> Tensor:
        return self.first + self.channels

    @property
    def rows(self) -> int:
        return self.leads + len(self.channels)


def _sweep_joined(
    model: Model,
    folded: FoldedSynthesis,
    synthesis: Synthesis,
    wanted: Tensor,
    moves: Tensor,
    values: Tensor,
    targets: Tensor,
    results: Tensor,
    batch_size: int,
    on_changes: OnChanges | None,
) -> Tensor:
    """As `sweep_image`, for a few changes of every layer: those of later layers join a batch on its way.

    So the wide layers behind, where the time goes, have full batches. Changes that do not move a coordinate
    go along, which keeps the shapes of all images the same, and do not count.
    """
    alone = _rounds_finely(model, synthesis)
    reference: Tensor | None = None
    for batch in _joined(synthesis, wanted, batch_size, alone):
        state: SynthesisState | None = None
        for group in batch:
            channels = torch.cat([group.channels[: group.leads], group.channels])
            moved = values[group.first + channels]
            moved[group.leads :] = torch.where(
                moves[group.directions, group.coordinates],
                targets[group.directions, group.coordinates],
                moved[group.leads :],
            )
            joining = folded.layer(group.number)(channels, moved)
            if state is None:
                state = joining
                continue
            state = folded.advance(state, joining.layer)  # by itself: what was before can be freed
            state = _join(state, joining)
        assert state is not None
        logits = model.classifier(folded.finish(state).clamp_(-1, 1))
        row = 0
        for group in batch:
            if group.leads:
                reference = logits[row]
            assert reference is not None  # the first group has it
            changed = logits[row + group.leads : row + group.rows] - reference
            if alone:  # the reference may have come another way
                rounding = ROUNDINGS * torch.finfo(changed.dtype).eps * reference.abs().max()
                changed = changed.where(changed.abs() > rounding, 0.0)
            counts = moves[group.directions, group.coordinates]
            results[group.directions[counts], group.coordinates[counts]] += changed[counts]
            row += group.rows
        if on_changes is not None:
            on_changes(sum(len(group.channels) for group in batch))
    return results


def _rounds_finely(model: Model, synthesis: Synthesis) -> bool:
    """Whether images and logits are float32's, with no step that makes a last bit large.

    On a GPU convolutions may be TF32's; a classifier without weights of its own here may round pixels.
    """
    computed = {synthesis.compute_dtype, model.classifier.compute_dtype}
    weights = {weight.dtype for weight in model.classifier.parameters()}
    return model.hardware.device.type == "cpu" and computed == weights == {torch.float32}


def _joined(synthesis: Synthesis, wanted: Tensor, batch_size: int, alone: bool) -> list[list[_Group]]:
    """The wanted changes [2, S] in batches of at most `batch_size` rows.

    The unchanged image leads each group, so that it goes through what the group goes through; if `alone`, the
    first group only, and what would be the only row of its batch: one image's picture counts as shared.
    """
    batches: list[list[_Group]] = []
    free = 0
    first = 0
    for number, place in enumerate(synthesis.layout):
        if place.kind != "conv":
            continue
        channels, directions = wanted[:, first : first + place.channels].T.nonzero(as_tuple=True)
        done = 0
        while done < len(channels):
            leads = 0 if alone and batches else 1
            if free < 1 + leads:
                leads = 0 if alone and batches and len(channels) - done > 1 else 1
                batches.append([])
                free = max(2, batch_size)
            part = slice(done, done + free - leads)
            group = _Group(number, first, channels[part], directions[part], leads)
            batches[-1].append(group)
            free -= group.rows
            done += len(group.channels)
        first += place.channels
    return batches


def _join(state: SynthesisState, joining: SynthesisState) -> SynthesisState:
    """One batch of two, which stand before the same layer."""
    features = torch.cat([state.features, joining.features])
    image = state.image
    if image is not None and joining.image is not None and len(image) > 1:
        image = torch.cat([image, joining.image.expand(len(joining.features), -1, -1, -1)])
    return SynthesisState(joining.layer, features, image)


def rows_of(most: int, batch_size: int) -> int:
    """Images in a batch: `most` changes and the unchanged image, shared out evenly; at most `batch_size`.

    At least two, since libraries take other ways, with other rounding, for one image.
    """
    number = -(-(most + 1) // max(2, batch_size))
    return max(2, -(-(most + 1) // number))


class _Part:
    """Some changes of a layer: `count` from `first` on, in a batch of `rows`, behind `lead` others."""

    def __init__(self, first: int, count: int, rows: int, lead: int) -> None:
        self.first, self.count, self.rows, self.lead = first, count, rows, lead

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + self.count)


def _parts(changes: int, most: int, batch_size: int) -> Iterator[_Part]:
    """Batches for `changes` changes and one unchanged image in front, all of one size at most `batch_size`.

    The size hangs on `most`, the changes that the layer can have, and not on how many there are in an image.
    """
    rows = rows_of(most, batch_size)
    first, lead = 0, 1
    while first < changes:
        count = min(rows - lead, changes - first)
        yield _Part(first, count, rows, lead)
        first += count
        lead = 0


def _sweep_unknown(
    model: Model,
    space: StyleSpace,
    style: Tensor,
    targets: Tensor,
    moves: Tensor,
    results: Tensor,
    batch_size: int,
    on_changes: OnChanges | None,
) -> Tensor:
    directions, coordinates = moves.nonzero(as_tuple=True)
    for first in range(0, len(coordinates), batch_size):
        part = slice(first, first + batch_size)
        moved = style.repeat(len(coordinates[part]), 1)
        rows = torch.arange(len(moved), device=style.device)
        moved[rows, space.positions[coordinates[part]]] = targets[directions[part], coordinates[part]]
        images = model.generator.synthesis(moved, model.noise)
        results[directions[part], coordinates[part]] = model.classifier(images.clamp(-1, 1))
        if on_changes is not None:
            on_changes(len(moved))
    if on_changes is not None:
        on_changes(2 * space.size - len(coordinates))
    return results


@torch.inference_mode()
def sweep_in_batches(
    model: Model, space: StyleSpace, styles: Tensor, *, shift: float = 1.0, batch_size: int = BATCH_SIZE
) -> Tensor:
    """As `sweep`, with the whole synthesis for every change: what batches alone gain, for benchmarks."""
    results = torch.empty(len(styles), 2, space.size, len(model.class_names))
    for number in range(len(styles)):
        style = styles[number : number + 1].to(model.hardware.device)
        values, ends = space.searchable(style)[0], torch.stack([space.low, space.high])
        before = model.classifier(model.synthesise(style)).repeat(2, space.size, 1)
        targets = values + shift * (ends - values)
        found = _sweep_unknown(model, space, style, targets, ends != values, before, batch_size, None)
        results[number] = found.cpu()
    return results


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
