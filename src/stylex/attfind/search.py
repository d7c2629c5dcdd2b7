"""AttFind on a run: discovery images → styles and ranges → sweep → attributes, each step kept in the run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import Findings, find_attributes
from stylex.attfind.class_effects import class_effects
from stylex.attfind.discovery import Discovery, SearchSource, discover
from stylex.attfind.discriminator_filter import DiscriminatorFilter
from stylex.attfind.likeness import mark_repeats
from stylex.attfind.measuring import OnProgress, measure
from stylex.attfind.names import with_names_of
from stylex.attfind.pairs import find_pairs, save_pairs
from stylex.attfind.screened_sweep import screened_stages, screened_sweep
from stylex.attfind.shards import Record, ScreenedShards, Shards
from stylex.attfind.sweep import OnChanges
from stylex.attfind.sweep_request import kept_shards, settle, sweep_key, sweep_keys
from stylex.config import AttFindSettings
from stylex.errors import CheckpointError, RunError
from stylex.model import Model
from stylex.parallel import ALONE, World
from stylex.run import Run, checksum, read_json, read_tensors, write_json, write_tensors
from stylex.stylespace import StyleSpace

logger = logging.getLogger("stylex")


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
        memory: bytes that the sweep (and gradients before it) may take; by default half of what is free.
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
        settings = world.from_first(partial(settle, folder, model, found, settings, one_vs_one))
        key = sweep_key(model, found, settings)
        screened: ScreenedShards | None = None
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
            shards: Shards = (
                screened := screened_sweep(
                    folder, key, found, model, settings, run.config.seed, world, measured, memory
                )
            )
        else:
            shards = Shards(folder, key, found.logits, found.space.size, settings.stored)
            measured(shards)

    def kept() -> Findings:
        unstable = None if screened is None else screened.unstable
        findings = _selected(run, model, found, shards, settings, unstable)
        if screened is not None:
            findings = replace(findings, screening=screened_stages(screened))
        findings = mark_repeats(model, found.space, found.styles, found.logits, findings)
        findings = _with_earlier_names(run, model, findings)
        save_discovery(run, found, model, findings)
        save_findings(run, findings)
        if one_vs_one:
            before, activation = found.logits.numpy(), model.classifier.activation
            pairs = find_pairs(before, shards, found.space, model.class_names, settings, activation, run.path)
            save_pairs(run, pairs, fingerprint(findings))
        return findings

    return world.from_first(kept)


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
            if record.get("key") in sweep_keys(model, again, settings, one_vs_one):
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
            f"{run.path}: its search was screened, and what it gave up was measured on some images only; "
            f"'stylex attfind {run.path} --exact' measures all"
        )
    folder = run.path / "effects"
    for precision in dict.fromkeys((model.hardware.precision, "fp32", "bf16")):
        shards = kept_shards(folder, sweep_key(model, found, settings, precision), found, settings)
        if shards is not None:
            return shards
    raise RunError(
        f"{run.path}: the effects of its search are not there; 'stylex attfind {run.path}' measures them"
    )
