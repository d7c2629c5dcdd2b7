"""One class against one other: what makes an image of one count as the other, beside one-vs-all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind.attributes import Attribute, Findings, describe, flip_shares, in_class, select
from stylex.attfind.class_effects import blocks, room_for
from stylex.attfind.effects import Activation
from stylex.attfind.names import named, names_of
from stylex.attfind.selection import EffectsArray
from stylex.config import AttFindSettings
from stylex.errors import RunError
from stylex.run import Run, read_json, write_json
from stylex.stylespace import StyleSpace

Logits = npt.NDArray[np.float32]

Pairs = dict[tuple[str, str], tuple[Attribute, ...]]
"""(class of the image, target) → attributes, best first."""


def find_pairs(
    before: Logits,
    after: EffectsArray,
    space: StyleSpace,
    class_names: Sequence[str],
    settings: AttFindSettings,
    activation: Activation = "softmax",
    folder: Path | None = None,
) -> Pairs:
    """Attributes from every class to every other.

    The effect is the change of the target's log-odds against the image's own class alone,
    (z_t − z_s) after − (z_t − z_s) before, on images of that class; for labels that do not exclude each
    other, of the target's logit less the source's. The classes in between do not count (Lang et al. 2021
    speak of one-vs-one for more than two classes and give no formula; this is ours).

    Args:
        before: logits [N, K] of the unchanged images.
        after: [N, 2, S, K], after every change; read in blocks.
        folder: where the effects of one class's images lie while it is searched, if memory has no room.

    Returns:
        Pairs of classes for which there are images; none are left out as unstable.
    """
    found: Pairs = {}
    asked = {}
    for source, source_name in enumerate(class_names):
        images = in_class(before, source, activation)
        if not images.any():
            continue
        every = np.ones(int(images.sum()), bool)
        shape = (after.shape[3], len(every), *after.shape[1:3])
        with room_for(shape, folder) as effects:
            _fill(effects, before, after, source, images)
            for target, target_name in enumerate(class_names):
                if target == source:
                    continue
                picks = select(effects[target, ..., None], 0, settings, every, None)
                asked[source_name, target_name] = (target, images, picks)
                found[source_name, target_name] = tuple(
                    describe(space, target_name, rank, change, effects[target, :, *change], 0.0)
                    for rank, change in enumerate(picks, 1)
                )
    flipped = flip_shares(after, asked, activation)
    return {
        pair: tuple(replace(entry, flipped=flipped[pair][entry.change]) for entry in entries)
        for pair, entries in found.items()
    }


def _fill(
    effects: Logits, before: Logits, after: EffectsArray, source: int, images: npt.NDArray[np.bool_]
) -> None:
    """Change of the log-odds between every class and the source, [K, n, 2, S], of the n images of a mask."""
    first = 0
    for block in blocks(after.shape):
        rows = images[block]
        if not rows.any():
            continue
        moved = np.asarray(after[block])[rows]
        start = before[block][rows, None, None]
        odds = start - start[..., source, None]
        part = slice(first, first + len(moved))
        effects[:, part] = (moved - moved[..., source, None] - odds).transpose(3, 0, 1, 2)
        first = part.stop


def save_pairs(run: Run, pairs: Pairs, key: str) -> None:
    """Write pairs.json; `key` says which search they belong to."""
    write_json(run.path / "pairs.json", {"search": key, "pairs": pairs_to_json(pairs)})


def pairs_to_json(pairs: Pairs) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Plain values: class of the image → target → attributes."""
    nested: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (source, target), attributes in pairs.items():
        nested.setdefault(source, {})[target] = [entry.to_json() for entry in attributes]
    return nested


def named_pairs(pairs: Pairs, findings: Findings) -> Pairs:
    """The pairs with the names that coordinates have in `findings`."""
    names = names_of(findings)
    return {pair: named(entries, names) for pair, entries in pairs.items()}


def load_pairs(run: Run, key: str) -> Pairs:
    """The pairs of a run; none where it was not searched one-vs-one, or since then anew.

    Raises:
        RunError: the file is damaged.
    """
    file = run.path / "pairs.json"
    if not file.exists():
        return {}
    content = read_json(file)
    try:
        if content["search"] != key:
            return {}
        return _from_json(content["pairs"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file}: damaged ({error}); run 'stylex attfind {run.path} --one-vs-one' again"
        ) from None


def _from_json(nested: Mapping[str, Mapping[str, Any]]) -> Pairs:
    return {
        (source, target): tuple(Attribute(**entry) for entry in entries)
        for source, targets in nested.items()
        for target, entries in targets.items()
    }
