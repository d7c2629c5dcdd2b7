"""One class against one other: what makes an image of one count as the other, beside one-vs-all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind.attributes import Attribute, Findings, describe, in_class, select
from stylex.attfind.class_effects import blocks
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
) -> Pairs:
    """Attributes from every class to every other.

    The effect is the change of the target's log-odds against the image's own class alone,
    (z_t − z_s) after − (z_t − z_s) before, on images of that class; for labels that do not exclude each
    other, of the target's logit less the source's. The classes in between do not count (Lang et al. 2021
    speak of one-vs-one for more than two classes and give no formula; this is ours).

    Args:
        before: logits [N, K] of the unchanged images.
        after: [N, 2, S, K], after every change; read in blocks, the images of one class are held at a time.

    Returns:
        Pairs of classes for which there are images; none are left out as unstable.
    """
    found: Pairs = {}
    for source, source_name in enumerate(class_names):
        images = in_class(before, source, activation)
        if not images.any():
            continue
        moved = np.concatenate([np.asarray(after[block])[images[block]] for block in blocks(after.shape)])
        start = before[images]
        every = np.ones(len(moved), bool)
        for target, target_name in enumerate(class_names):
            if target == source:
                continue
            odds = start[:, target] - start[:, source]
            effects = moved[..., target] - moved[..., source] - odds[:, None, None]
            reached = in_class(moved, target, activation)
            found[source_name, target_name] = tuple(
                describe(
                    space, target_name, rank, change, effects[:, *change], float(reached[:, *change].mean())
                )
                for rank, change in enumerate(select(effects[..., None], 0, settings, every, None), 1)
            )
    return found


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
