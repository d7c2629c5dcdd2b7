"""AttFind on a run: discovery images → styles and ranges → sweep → attributes, each step kept in the run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylex.attfind.attributes import Findings, effects_of, find_attributes, in_class
from stylex.attfind.discriminator_filter import DiscriminatorFilter
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
"""Images encoded for each that is wanted, so that rare classes are found too."""

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

    The class is the argmax of the classifier on the reconstruction (notebook). Ranges are taken over exactly
    these images.

    Raises:
        DataError: a class has no image at all, so nothing can be explained.
    """
    if model.encoder is None:
        latents = model.sample(SAMPLED_POOL, seed)
        names = tuple(f"sample {number}" for number in range(len(latents)))
    else:
        if images is None or not len(images):
            raise DataError("there are no discovery images to search on")
        # A random part, the same for a seed: sources are often sorted by class.
        size = min(len(images), POOL_FACTOR * settings.images_per_class * len(model.class_names))
        pool = np.random.default_rng(seed).permutation(len(images))[:size]
        latents, _ = model.encode(images.batch(pool))
        names = tuple(images.names[number] for number in pool)
    styles = model.styles(latents)
    logits = model.classify(model.synthesise(styles)).cpu()
    chosen: list[int] = []
    for target, name in enumerate(model.class_names):
        members = np.flatnonzero(in_class(logits.numpy(), target, model.classifier.activation))
        if not len(members):
            raise DataError(
                f"none of {len(names)} reconstructed discovery images counts as '{name}'; "
                "the classifier or the reconstruction ignores that class"
            )
        chosen += members[: settings.images_per_class].tolist()
    order = torch.tensor(sorted(set(chosen)), device=styles.device)
    kept = [names[number] for number in order.tolist()]
    found = styles[order]
    space = StyleSpace.from_styles(model.generator.synthesis.layout, found)
    return Discovery(latents[order], found, logits[order.cpu()], tuple(kept), space)


def search(
    run: Run,
    model: Model,
    images: ImageSet | None,
    settings: AttFindSettings,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Find attributes and keep what was found in the run; goes on where an earlier search stopped.

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
    save_discovery(run, found, model)
    save_findings(run, findings)
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


def save_discovery(run: Run, found: Discovery, model: Model) -> None:
    """Write styles.safetensors, with the checksum of the generator that the styles belong to."""
    tensors = {
        "latents": found.latents,
        "styles": found.styles,
        "logits": found.logits,
        **found.space.tensors(),
    }
    header = {"names": list(found.names), "generator": checksum(model.generator.state_dict())}
    write_tensors(run.path / "styles.safetensors", tensors, header)


def load_discovery(run: Run, model: Model) -> Discovery:
    """The discovery images of a run as its search left them.

    Raises:
        RunError: not searched yet, or the model was trained on since.
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
    device = model.hardware.device
    space = StyleSpace(
        model.generator.synthesis.layout, tensors["low"].to(device), tensors["high"].to(device)
    )
    styles = tensors["styles"].to(device)
    return Discovery(tensors["latents"].to(device), styles, tensors["logits"], tuple(header["names"]), space)


def _key(model: Model, found: Discovery, settings: AttFindSettings) -> str:
    """What the logits after changes depend on; two searches of one key measure the same."""
    parts = {
        "styles": checksum({"styles": found.styles, **found.space.tensors()}),
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
