"""AttFind on a run: discovery images → styles and ranges → sweep → attributes, each step kept in the run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import Findings, find_attributes, in_class, sought
from stylex.attfind.class_effects import class_effects
from stylex.attfind.discriminator_filter import DiscriminatorFilter
from stylex.attfind.effects import Activation
from stylex.attfind.likeness import mark_repeats
from stylex.attfind.measuring import OnProgress, measure
from stylex.attfind.names import with_names_of
from stylex.attfind.pairs import find_pairs, save_pairs
from stylex.attfind.screened_sweep import screened_sweep
from stylex.attfind.screening import FEWEST_IMAGES, stages
from stylex.attfind.shards import Record, Shards
from stylex.attfind.sweep import OnChanges
from stylex.config import AttFindSettings
from stylex.data import ImageSet
from stylex.errors import CheckpointError, DataError, RunError
from stylex.model import Model
from stylex.parallel import ALONE, World
from stylex.run import Run, checksum, read_json, read_tensors, write_json, write_tensors
from stylex.stylespace import StyleSpace

logger = logging.getLogger("stylex")

SELECTION = {
    "count",
    "method",
    "effect",
    "max_image_effect",
    "independent_threshold",
    "independent_min_share",
    "unstable_threshold",
    "unstable_max_share",
}
"""Settings of which attributes are selected, not of how effects are measured."""

POOL_FACTOR = 4
"""Images encoded at once for each that is wanted."""

SAMPLED_POOL = 4000
"""Latents sampled for a model without an encoder, from which the images of each class are taken."""


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


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents [N, W] to search on in place of images, with their names."""

    latents: Tensor
    names: tuple[str, ...]


SearchSource = ImageSet | Latents | None
"""What a search stands on: images, latents, or what a model without an encoder samples."""


def discover(model: Model, images: SearchSource, settings: AttFindSettings, seed: int = 0) -> Discovery:
    """Encode discovery images (or sample latents) until there are `images_per_class` of every class.

    Images are encoded in a random order, the same for a seed, in parts of POOL_FACTOR times the number that
    is wanted; the next part only while a class lacks images. No more than a batch of the model's is held as
    pixels. Latents are taken in the order given. Fewer of a class are taken where there are no more. The
    class is the argmax of the classifier on the reconstruction (notebook). Ranges are taken over exactly
    these images.

    Of a class that no image counts as nothing is searched; that is said.

    Raises:
        DataError: no class has images that count as it and others that do not, so nothing can be explained.
    """
    missing = np.full(len(model.class_names), settings.images_per_class)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    names: list[str] = []
    seen = 0
    for latents, called in _pools(model, images, settings, seed):
        styles = model.styles(latents)
        logits = torch.cat(
            [model.classify(model.synthesise(few)).cpu() for few in torch.split(styles, model.batch_size)]
        )
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
    latents, styles, logits = (torch.cat(parts) for parts in zip(*kept, strict=True))
    _check_classes(model, logits.numpy(), seen)
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    return Discovery(latents, styles, logits, tuple(names), space)


def _check_classes(model: Model, logits: npt.NDArray[np.float32], seen: int) -> None:
    """Say which classes no image counts as; an error where that leaves nothing to explain."""
    activation = model.classifier.activation
    empty = [
        f"'{name}'"
        for target, name in enumerate(model.class_names)
        if not in_class(logits, target, activation).any()
    ]
    if not empty:
        return
    more = f" and {len(empty) - 5} more classes" if len(empty) > 5 else ""
    said = f"none of {seen} reconstructed discovery images counts as {', '.join(empty[:5])}{more}"
    if not sought(logits, activation):
        raise DataError(f"{said}; the classifier or the reconstruction ignores that class")
    logger.warning("%s; nothing is searched for what leads there", said)


def sample_latents(model: Model, seed: int) -> Latents:
    """SAMPLED_POOL latents of the model's mapping network.

    Raises:
        RunError: it has none.
    """
    latents = model.sample(SAMPLED_POOL, seed)
    return Latents(latents, tuple(f"sample {number}" for number in range(len(latents))))


def _pools(
    model: Model, images: SearchSource, settings: AttFindSettings, seed: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Latents [n, W] with their names, part after part; see `discover`."""
    size = POOL_FACTOR * settings.images_per_class * len(model.class_names)
    if model.encoder is None and not isinstance(images, Latents):
        images = sample_latents(model, seed)
    if isinstance(images, Latents):
        for first in range(0, len(images.names), size):
            yield images.latents[first : first + size], list(images.names[first : first + size])
        return
    if images is None or not len(images):
        raise DataError("there are no discovery images to search on")
    order = np.random.default_rng(seed).permutation(len(images))  # sources are often sorted by class
    for first in range(0, len(order), size):
        part = order[first : first + size]
        few = [part[begin : begin + model.batch_size] for begin in range(0, len(part), model.batch_size)]
        latents = torch.cat([model.encode(images.batch(numbers))[0] for numbers in few])
        yield latents, [images.names[number] for number in part]


def search(
    run: Run,
    model: Model,
    images: SearchSource,
    settings: AttFindSettings,
    on_progress: OnProgress | None = None,
    *,
    on_changes: OnChanges | None = None,
    memory: int | None = None,
    world: World = ALONE,
    one_vs_one: bool = False,
) -> Findings:
    """Find attributes and keep what was found in the run; goes on where an earlier search stopped.

    Writes effects/ (logits after every change, a few images a shard; sweep.json says how they are measured),
    then styles.safetensors and attributes.json. A search with other settings, weights or images starts over;
    until it is done, the run keeps what the earlier one found. A search that goes on keeps to the batch and
    the CPU threads that it began with, and ends with the same bytes.

    Args:
        on_progress: called after every image, with images done and images in all.
        on_changes: called after every batch with the number of changes that it measured.
        memory: bytes that the sweep may take; by default half of what is free.
        world: the processes that share the images; the first one alone needs `images`, and writes.
        one_vs_one: also find those from every class to every other, into pairs.json (see `pairs`).

    Raises:
        DataError: there are no images, or none outside (or inside) some class.
        ConfigError: the memory is too small for any batch.
        RunError: the run cannot be written, or another process has ended.
    """
    with _threads_kept():
        found = _discovered(run, model, images, settings, world, one_vs_one)
        folder = run.path / "effects"
        settings = world.from_first(partial(_asked, folder, model, found, settings, one_vs_one))
        key = _key(model, found, settings)
        unstable: npt.NDArray[np.bool_] | None = None
        measured = partial(
            measure,
            model=model,
            space=found.space,
            styles=found.styles,
            shift=settings.shift,
            batch_size=settings.batch_size,
            memory=memory,
            world=world,
            on_progress=on_progress,
            on_changes=on_changes,
        )
        if settings.sweep == "screened":
            screened = screened_sweep(folder, key, found, model, settings, run.config.seed, world, measured)
            shards: Shards = screened
            unstable = screened.unstable
        else:
            shards = Shards(folder, key, found.logits, found.space.size, settings.stored)
            measured(shards)

    def kept() -> Findings:
        findings = _selected(run, model, found, shards, settings, unstable)
        findings = mark_repeats(model, found.space, found.styles, found.logits, findings)
        findings = _with_earlier_names(run, model, findings)
        save_discovery(run, found, model, findings)
        save_findings(run, findings)
        if one_vs_one:
            before, activation = found.logits.numpy(), model.classifier.activation
            pairs = find_pairs(before, shards, found.space, model.class_names, settings, activation)
            save_pairs(run, pairs, fingerprint(findings))
        return findings

    return world.from_first(kept)


def _asked(
    folder: Path, model: Model, found: Discovery, settings: AttFindSettings, one_vs_one: bool
) -> AttFindSettings:
    """As `_resolved`; exact also where an exact sweep has been done, since nothing is left to spare."""
    asked = _resolved(settings, found.logits, one_vs_one, model.classifier.activation)
    if (settings.sweep, asked.sweep) == ("auto", "screened"):
        everything = asked.model_copy(update={"sweep": "exact"})
        if _measured(folder, _key(model, found, everything), found, everything) is not None:
            return everything
    return asked


def _resolved(
    settings: AttFindSettings, logits: Tensor, one_vs_one: bool, activation: Activation
) -> AttFindSettings:
    """Settings that say how the sweep is done: exact, or screened where that was asked for or is worth it.

    Exact also where there are so few images that the first stage has them all.

    Raises:
        DataError: screening was asked for together with what needs every effect.
    """
    everything = "attributes from every class to every other" if one_vs_one else None
    if settings.discriminator_filter is not None:
        everything = "the discriminator's filter"
    if settings.sweep == "screened" and everything is not None:
        raise DataError(f"{everything} needs the effects of all coordinates: search with --exact")
    few = len(stages(logits.numpy(), activation, 0).ends) == 1
    if settings.sweep == "auto":
        few = few or everything is not None or len(logits) <= FEWEST_IMAGES
    screened = settings.sweep != "exact" and not few
    return settings.model_copy(update={"sweep": "screened" if screened else "exact"})


def _selected(
    run: Run,
    model: Model,
    found: Discovery,
    shards: Shards,
    settings: AttFindSettings,
    unstable: npt.NDArray[np.bool_] | None,
) -> Findings:
    before, activation = found.logits.numpy(), model.classifier.activation
    with class_effects(before, shards, settings, activation, run.path) as effects:
        accept = None
        if settings.discriminator_filter is not None:
            limit = settings.discriminator_filter
            accept = DiscriminatorFilter(model, found.space, found.styles, effects, limit)
        return find_attributes(
            before,
            shards,
            found.space,
            model.class_names,
            settings,
            activation,
            accept,
            effects=effects,
            unstable=unstable,
        )


@contextmanager
def _threads_kept() -> Iterator[None]:
    """What a search does to the number of CPU threads ends with it."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _discovered(
    run: Run,
    model: Model,
    images: SearchSource,
    settings: AttFindSettings,
    world: World,
    one_vs_one: bool,
) -> Discovery:
    """What the first process discovers, in all; with the CPU threads of the sweep that is to go on.

    Threads decide the last bits of styles and effects. If these are another sweep's with the present threads
    (of another number of processes, say), they are tried with the recorded ones.
    """

    def here() -> Discovery:
        found = discover(model, images, settings, run.config.seed)
        record = Record(run.path / "effects").read()
        threads, now = record.get("threads"), torch.get_num_threads()
        if isinstance(threads, int) and 0 < threads != now and model.hardware.device.type == "cpu":
            torch.set_num_threads(threads)
            again = discover(model, images, settings, run.config.seed)
            if record.get("key") in _keys(model, again, settings, one_vs_one):
                logger.warning("going on with %d CPU threads, as this search began", threads)
                return again
            torch.set_num_threads(now)
        return found

    def for_all() -> tuple[dict[str, Tensor], tuple[str, ...], int]:
        found = here()
        tensors = {"latents": found.latents, "styles": found.styles, "logits": found.logits}
        tensors = {key: value.cpu() for key, value in (tensors | found.space.tensors()).items()}
        return tensors, found.names, torch.get_num_threads()

    if world.size == 1:
        return here()
    tensors, names, threads = world.from_first(for_all)
    if model.hardware.device.type == "cpu":
        torch.set_num_threads(threads)
    return _restored(model, tensors, names)


def _restored(model: Model, tensors: Mapping[str, Tensor], names: Sequence[str]) -> Discovery:
    device = model.hardware.device
    layout = model.generator.synthesis.layout
    space = StyleSpace(layout, tensors["low"].to(device), tensors["high"].to(device))
    styles = tensors["styles"].to(device)
    return Discovery(tensors["latents"].to(device), styles, tensors["logits"], tuple(names), space)


def _with_earlier_names(run: Run, model: Model, findings: Findings) -> Findings:
    """Names outlive a new search of the same weights; of other weights they would say nothing."""
    try:
        earlier = load_findings(run)
        header = read_tensors(run.path / "styles.safetensors")[1]
    except (RunError, CheckpointError):
        return findings
    same = header.get("generator") == checksum(model.generator.state_dict())
    return with_names_of(findings, earlier) if same else findings


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
    return _restored(model, tensors, header["names"])


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


def load_logits(run: Run, model: Model, found: Discovery, settings: AttFindSettings) -> Shards:
    """Logits after every single change, [N, 2, S, K], as the search of the run measured them.

    Raises:
        RunError: they are not in the run (it was packed without them), or belong to another search, or to a
            screened one, which has not all of them; also when a shard that is read turns out to be missing or
            damaged.
    """
    if settings.sweep == "screened":
        raise RunError(
            f"{run.path}: its search was screened, so the effects of most coordinates were measured on some "
            f"images only; 'stylex attfind {run.path} --exact' measures all"
        )
    folder = run.path / "effects"
    for precision in dict.fromkeys((model.hardware.precision, "fp32", "bf16")):
        shards = _measured(folder, _key(model, found, settings, precision), found, settings)
        if shards is not None:
            return shards
    raise RunError(
        f"{run.path}: the effects of its search are not there; 'stylex attfind {run.path}' measures them"
    )


def _measured(folder: Path, key: str, found: Discovery, settings: AttFindSettings) -> Shards | None:
    """The shards of an exact sweep, where it has been done."""
    if Record(folder).read().get("key") != key:
        return None
    shards = Shards(folder, key, found.logits, found.space.size, settings.stored)
    return shards if all(shards.file(number).exists() for number in range(len(shards))) else None


def _keys(model: Model, found: Discovery, settings: AttFindSettings, one_vs_one: bool) -> set[str]:
    """Of the sweeps that a search with these settings goes on with: the one asked for, and an exact one."""
    asked = _resolved(settings, found.logits, one_vs_one, model.classifier.activation)
    more = [asked.model_copy(update={"sweep": "exact"})] if settings.sweep == "auto" else []
    return {_key(model, found, each) for each in (asked, *more)}


def _key(model: Model, found: Discovery, settings: AttFindSettings, precision: str | None = None) -> str:
    """What the logits after changes depend on; two searches of one key measure the same."""
    parts = {
        "styles": checksum({"styles": found.styles, **found.space.tensors()}),
        "logits": checksum({"logits": found.logits}),  # shows what the classifier's weights do not
        "synthesis": checksum(model.generator.synthesis.state_dict()),
        "noise": model.noise,
        "classifier": model.classifier.fingerprint,
        "precision": precision or model.hardware.precision,
        "shift": settings.shift,
        "batch_size": settings.batch_size,
        "stored": settings.stored,
    }
    if settings.sweep == "screened":  # what is measured where hangs on what selection asks for
        parts["screened"] = settings.model_dump(include=SELECTION)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
