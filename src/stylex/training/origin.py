"""A trained run as the start of another: trained on, or the same images explained to another classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylex.classifiers import Classifier
from stylex.config import RunConfig, validate
from stylex.data import ImageSet
from stylex.errors import CheckpointError, RunError
from stylex.hardware import Hardware
from stylex.networks import Networks
from stylex.run import Run, read_tensors
from stylex.training.checkpoint import classifier_fingerprint, section, wiring
from stylex.training.loop import Trainer
from stylex.training.losses import Batch
from stylex.training.randomness import StepRandom
from stylex.training.schedule import phases


@dataclass(frozen=True)
class Origin:
    """A trained run's model file: the config it was trained with, its tensors and its header.

    `data`: the fingerprint of the images that it was trained with; None where the run does not say.
    """

    path: Path
    config: RunConfig
    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]
    data: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """What a run that begins here says of it in its run.json."""
        return {
            "run": str(self.path.resolve()),
            "step": self.header["step"],
            "images": self.header["images"],
            "class_names": list(self.header["class_names"]),
            "sha256": self.header["sha256"],
        }

    def other_images(self, fingerprint: str) -> bool:
        """Whether a data set's fingerprint is known to be another than that of the images trained with."""
        return self.data not in (None, fingerprint)


def read_origin(path: Path) -> Origin:
    """Read the model of a trained run.

    Raises:
        RunError: no run, or it has no model yet.
        CheckpointError: the file is damaged or of another version.
    """
    run = Run.open(path)
    if not run.model_file.exists():
        raise RunError(f"{path}: no trained model to start from; 'stylex train' writes it")
    tensors, header = read_tensors(run.model_file)
    config = validate(RunConfig, header["config"], str(run.model_file))
    return Origin(path, config, tensors, header, run.hashes.get("data"))


def check_same_origin(run: Run, path: Path) -> None:
    """Refuse to go on with another origin than the run was started with, by its weights.

    Weights that are no longer there are taken for the same if they lay at this place.

    Raises:
        RunError: other weights, or the run was started without any.
    """
    kept = run.origin
    if not kept:
        raise RunError(
            f"{run.path}: was started without --from; leave --from out to continue it, "
            "or start another run with --out"
        )
    same_place = kept.get("run") == str(path.resolve())
    if same_place and not path.exists():
        return
    if read_origin(path).header["sha256"] == kept.get("sha256"):
        return
    what = "which has other weights now" if same_place else f"not {path}"
    raise RunError(
        f"{run.path}: was started with --from {kept.get('run')}, {what}; leave --from out to continue it, "
        "or start another run with --out"
    )


def check_fits(origin: Origin, config: RunConfig) -> None:
    """Raises CheckpointError, one line, unless the config asks for the networks that the origin has."""
    there, here = wiring(origin.config), wiring(config)
    differing = [f"{key} is {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]]
    if differing:
        raise CheckpointError(
            f"{origin.path}: cannot be the start of this run: {'; '.join(differing)}; "
            "leave --recipe, --size and network settings out"
        )


def write_start(
    run: Run,
    origin: Origin,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    on_evidence: Callable[[int, int], None] | None = None,
) -> None:
    """Write checkpoint 0 of a run: the origin's averaged weights, fresh optimisers.

    Training then goes on from it like from any checkpoint. The running mean of path lengths starts at the
    lengths that these weights have: at 0, as for fresh networks, the penalty would undo what they learned.

    Args:
        run: being created; nothing but its config needs to be there.
        origin: its networks must be those of the run's config.
        images: the run's training images, or some of them.
        classifier: the new one; its number of classes may differ, see `adopt`.
        hardware: where path lengths are measured.
        on_evidence: told how much of the search for the classifier's evidence is done, where there is one.

    Raises:
        CheckpointError: the networks differ.
    """
    check_fits(origin, run.config)
    trainer = Trainer(run, images, classifier, hardware, images)
    sums_to_one = (
        run.config.recipe.network.condition == "probabilities" and classifier.activation == "softmax"
    )
    state = trainer.state
    adopt(state.networks, origin, len(origin.header["class_names"]), sums_to_one=sums_to_one)
    trainer.fit_evidence(on_evidence)
    for name, average in state.averages.items():
        average.load_state_dict(state.networks.parts()[name].state_dict())
    _measure_path_length(trainer, images)
    state.save(run, 1, classifier_fingerprint(classifier))


def adopt(networks: Networks, origin: Origin, classes: int, *, sums_to_one: bool) -> None:
    """Load the origin's weights, trained for `classes` classes, into networks of the same wiring.

    With another number of classes, what reads or answers to the condition starts afresh, from the random
    weights that the networks have: the columns of the affine layers and the discriminator's outputs for the
    classes. Where the condition sums to one, fresh columns lie around the mean of the old ones, which acts on
    the styles like a bias; the other columns keep their effect though the layers' gain follows their width.
    Evidence is that of another classifier: nothing of it is taken over, nor of what reads it.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    for name, part in networks.parts().items():
        found = section(origin.tensors, f"{name}/")
        own = part.state_dict()
        features = networks.generator.condition_features
        evidence = networks.encoder is not None and networks.encoder.evidence is not None
        before = classes
        if evidence:
            before = origin.tensors["generator/affine_weight"].shape[1] - networks.generator.latent_features
        afresh = features > 0 and (evidence or features != classes)
        if name == "encoder":
            found = {key: value for key, value in found.items() if not key.startswith("evidence.")}
            found |= {key: value for key, value in own.items() if key.startswith("evidence.")}
        if name == "generator" and afresh:
            key = "affine_weight"
            found[key] = _affine_columns(found[key], own[key], before, features, sums_to_one)
        if name == "discriminator" and afresh:
            for key in ("output.weight", "output.bias"):
                kept = len(found[key]) - before  # D₀, which judges without the classes, where there is one
                if kept >= 0 and len(own[key]) > 1:
                    found[key] = torch.cat([found[key][:kept], own[key][kept:].to(found[key])])
        try:
            part.load_state_dict(found)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{origin.path}: its {name} does not fit ({reason[:200]})") from None


def _affine_columns(old: Tensor, fresh: Tensor, before: int, now: int, sums_to_one: bool) -> Tensor:
    """Stored affine weight [T, D + now] from one [T, D + before] and a fresh one."""
    latents = old.shape[1] - before
    gain = math.sqrt((latents + now) / (latents + before))
    columns = fresh[:, latents:].to(old)
    if sums_to_one:
        columns = columns + gain * old[:, latents:].mean(dim=1, keepdim=True)
    return torch.cat([old[:, :latents] * gain, columns], dim=1)


def _measure_path_length(trainer: Trainer, images: ImageSet) -> None:
    """Set the running mean of path lengths to what a batch has."""
    recipe = trainer.recipe
    due = [phase for phase in phases(recipe) if phase.name == "path_length"]
    if not due:
        return
    count = recipe.training.batch_size
    device = trainer.hardware.device
    random = StepRandom(trainer.run.config.seed, 0, 0, device)
    few = images.batch([number % len(images) for number in range(count)])
    few = few.to(device, memory_format=torch.channels_last)
    batch = Batch(few, recipe.training.schedule[0], random)
    trainer.loss.accumulate_gradients(replace(due[0], interval=1), batch)
    trainer.state.path_length_mean.copy_(batch.statistics["path_length"])
