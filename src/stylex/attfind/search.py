"""AttFind on a run: discovery images → styles and ranges → sweep → attributes, each step kept in the run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylex.attfind.attributes import Findings, effects_of, find_attributes, in_class
from stylex.attfind.discriminator_filter import DiscriminatorFilter
from stylex.attfind.pairs import find_pairs, save_pairs
from stylex.attfind.sweep import sweep
from stylex.config import AttFindSettings
from stylex.data import ImageSet
from stylex.errors import CheckpointError, DataError, RunError
from stylex.model import Model
from stylex.run import Run, checksum, read_json, read_tensors, write_json, write_tensors
from stylex.stylespace import StyleSpace

SHARD_IMAGES = 4
"""Images whose effects are written at once; what a killed search loses at most."""

POOL_FACTOR = 4
"""Images encoded at once for each that is wanted."""

SAMPLED_POOL = 4000
"""Latents sampled for a model without an encoder, from which the images of each class are taken."""

OnProgress = Callable[[int, int], None]
"""Called with images done and images in all."""


@dataclass(frozen=True, eq=False)
class Discovery:
    """The images that a search stands on, as the generator sees them.

    latents [N, W], styles [N, T], logits [N, K] of the reconstructions, and the names of the images.
    """

    latents: Tensor
    styles: Tensor
    logits: Tensor
    names: tuple[str, ...]
    space: StyleSpace


def discover(model: Model, images: ImageSet | None, settings: AttFindSettings, seed: int = 0) -> Discovery:
    """Encode discovery images (or sample latents) until there are `images_per_class` of every class.

    Images are encoded in a random order, the same for a seed, in parts of POOL_FACTOR times the number that
    is wanted; the next part only while a class lacks images. Fewer of a class are taken where there are no
    more. The class is the argmax of the classifier on the reconstruction (notebook). Ranges are taken over
    exactly these images.

    Raises:
        DataError: a class has no image at all, so nothing can be explained.
    """
    missing = np.full(len(model.class_names), settings.images_per_class)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    names: list[str] = []
    seen = 0
    for latents, called in _pools(model, images, settings, seed):
        styles = model.styles(latents)
        logits = model.classify(model.synthesise(styles)).cpu()
        seen += len(called)
        chosen: set[int] = set()
        for target in range(len(missing)):
            members = np.flatnonzero(in_class(logits.numpy(), target, model.classifier.activation))
            taken = members[: missing[target]].tolist()
            missing[target] -= len(taken)
            chosen.update(taken)
        order = sorted(chosen)
        kept.append((latents[order], styles[order], logits[order]))
        names += [called[number] for number in order]
        if not missing.any():
            break
    for target, name in enumerate(model.class_names):
        if missing[target] == settings.images_per_class:
            raise DataError(
                f"none of {seen} reconstructed discovery images counts as '{name}'; "
                "the classifier or the reconstruction ignores that class"
            )
    latents, styles, logits = (torch.cat(parts) for parts in zip(*kept, strict=True))
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    return Discovery(latents, styles, logits, tuple(names), space)


def _pools(
    model: Model, images: ImageSet | None, settings: AttFindSettings, seed: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Latents [n, W] with their names, part after part; see `discover`."""
    if model.encoder is None:
        latents = model.sample(SAMPLED_POOL, seed)
        yield latents, [f"sample {number}" for number in range(len(latents))]
        return
    if images is None or not len(images):
        raise DataError("there are no discovery images to search on")
    size = POOL_FACTOR * settings.images_per_class * len(model.class_names)
    order = np.random.default_rng(seed).permutation(len(images))  # sources are often sorted by class
    for first in range(0, len(order), size):
        part = order[first : first + size]
        yield model.encode(images.batch(part))[0], [images.names[number] for number in part]


def search(
    run: Run,
    model: Model,
    images: ImageSet | None,
    settings: AttFindSettings,
    on_progress: OnProgress | None = None,
    *,
    one_vs_one: bool = False,
) -> Findings:
    """Find attributes and keep what was found in the run; goes on where an earlier search stopped.

    With `one_vs_one` also those from every class to every other, in pairs.json (see `pairs.find_pairs`).

    Writes effects/ (logits after every change, a few images a shard), then styles.safetensors and
    attributes.json. A search with other settings, weights or images starts over; until it is done, the run
    keeps what the earlier one found.

    Raises:
        DataError: there are no images, or none outside (or inside) some class.
        RunError: the run cannot be written.
    """
    found = discover(model, images, settings, run.config.seed)
    key = _key(model, found, settings)
    after = _swept(run, model, found, settings, key, on_progress)
    before = found.logits.numpy()
    accept = None
    if settings.discriminator_filter is not None:
        effects = effects_of(before, after, settings, model.classifier.activation)
        accept = DiscriminatorFilter(model, found.space, found.styles, effects, settings.discriminator_filter)
    findings = find_attributes(
        before, after, found.space, model.class_names, settings, model.classifier.activation, accept
    )
    save_discovery(run, found, model, findings)
    save_findings(run, findings)
    if one_vs_one:
        activation = model.classifier.activation
        found_pairs = find_pairs(before, after, found.space, model.class_names, settings, activation)
        save_pairs(run, found_pairs, fingerprint(findings))
    return findings


def save_findings(run: Run, findings: Findings) -> None:
    """Write attributes.json."""
    write_json(run.path / "attributes.json", findings.to_json())


def load_findings(run: Run) -> Findings:
    """The attributes of a run.

    Raises:
        RunError: the run has been searched for none yet, or its file is damaged.
    """
    file = run.path / "attributes.json"
    if not file.exists():
        raise RunError(f"{run.path}: no attributes yet; 'stylex attfind {run.path}' finds them")
    try:
        return Findings.from_json(read_json(file))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error}); run 'stylex attfind {run.path}' again") from None


def save_discovery(run: Run, found: Discovery, model: Model, findings: Findings) -> None:
    """Write styles.safetensors, and in it what it belongs to: generator, classifier and attributes."""
    tensors = {
        "latents": found.latents,
        "styles": found.styles,
        "logits": found.logits,
        **found.space.tensors(),
    }
    header = {
        "names": list(found.names),
        "generator": checksum(model.generator.state_dict()),
        "classifier": model.classifier.fingerprint,
        "attributes": fingerprint(findings),
    }
    write_tensors(run.path / "styles.safetensors", tensors, header)


def load_discovery(run: Run, model: Model) -> Discovery:
    """The discovery images of a run as its search left them.

    Raises:
        RunError: not searched yet, the model was trained on or the classifier exchanged since, or the
            attributes are of another search (one was killed between writing the two).
        CheckpointError: the file is damaged.
    """
    file = run.path / "styles.safetensors"
    if not file.exists():
        raise RunError(f"{run.path}: no styles yet; 'stylex attfind {run.path}' measures them")
    tensors, header = read_tensors(file)
    if header.get("generator") != checksum(model.generator.state_dict()):
        raise RunError(
            f"{run.path}: the attributes belong to other weights than the model has now; "
            f"run 'stylex attfind {run.path}' again"
        )
    if header.get("classifier") not in (None, model.classifier.fingerprint):
        raise RunError(
            f"{run.path}: the attributes belong to another classifier than the run has now; "
            f"run 'stylex attfind {run.path}' again"
        )
    if header.get("attributes") not in (None, fingerprint(load_findings(run))):
        raise RunError(
            f"{run.path}: styles and attributes come from two searches, one of which was cut off; "
            f"run 'stylex attfind {run.path}' again"
        )
    device = model.hardware.device
    space = StyleSpace(
        model.generator.synthesis.layout, tensors["low"].to(device), tensors["high"].to(device)
    )
    styles = tensors["styles"].to(device)
    return Discovery(tensors["latents"].to(device), styles, tensors["logits"], tuple(header["names"]), space)


def fingerprint(findings: Findings) -> str:
    """Of what was selected on how many images; names that people give change nothing."""
    parts = {
        "images": findings.images,
        "attributes": {
            target: [(*entry.change, entry.effect) for entry in found]
            for target, found in findings.attributes.items()
        },
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _key(model: Model, found: Discovery, settings: AttFindSettings) -> str:
    """What the logits after changes depend on; two searches of one key measure the same."""
    parts = {
        "styles": checksum({"styles": found.styles, **found.space.tensors()}),
        "logits": checksum({"logits": found.logits}),  # shows what the classifier's weights do not
        "synthesis": checksum(model.generator.synthesis.state_dict()),
        "noise": model.noise,
        "classifier": model.classifier.fingerprint,
        "precision": model.hardware.precision,
        "shift": settings.shift,
        "batch_size": settings.batch_size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _swept(
    run: Run,
    model: Model,
    found: Discovery,
    settings: AttFindSettings,
    key: str,
    on_progress: OnProgress | None,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    folder = run.path / "effects"
    total = len(found.styles)
    after = np.empty((total, 2, found.space.size, len(model.class_names)), np.float32)
    for first in range(0, total, SHARD_IMAGES):
        last = min(total, first + SHARD_IMAGES)
        file = folder / f"shard-{first:06d}.safetensors"
        part = _read_shard(file, key)
        if part is None:
            if first == 0 and folder.exists():
                shutil.rmtree(folder)

            def count(done: int, _: int, first: int = first) -> None:
                if on_progress is not None:
                    on_progress(first + done, total)

            part = sweep(
                model,
                found.space,
                found.styles[first:last],
                shift=settings.shift,
                batch_size=settings.batch_size,
                on_image=count,
            )
            write_tensors(file, {"logits": part}, {"key": key, "first": first})
        elif on_progress is not None:
            on_progress(last, total)
        after[first:last] = part.numpy()
    return after


def _read_shard(file: Path, key: str) -> Tensor | None:
    """A shard of this very search, or None: missing, damaged, or of another search."""
    if not file.exists():
        return None
    try:
        tensors, header = read_tensors(file)
    except CheckpointError:
        return None
    return tensors["logits"] if header.get("key") == key else None
