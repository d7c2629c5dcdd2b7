"""All that training needs to go on exactly where it was: weights, averages, optimisers, place in the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylex.classifiers import Classifier
from stylex.config import RunConfig, validate
from stylex.errors import CheckpointError, ConfigError, RunError, reason_of
from stylex.networks import Networks
from stylex.run import Run, read_tensors, write_tensors


@dataclass
class TrainingState:
    """Everything that changes while training; random numbers and data order follow from seed and step."""

    networks: Networks
    averages: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Adam]
    path_length_mean: Tensor
    augmentation: Tensor | None = None
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    health: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Flat mapping of every tensor."""
        flat: dict[str, Tensor] = {"path_length_mean": self.path_length_mean}
        if self.augmentation is not None:
            flat["augmentation"] = self.augmentation
        for name, part in self.networks.parts().items():
            flat |= {f"network/{name}/{key}": value for key, value in part.state_dict().items()}
        for name, part in self.averages.items():
            flat |= {f"average/{name}/{key}": value for key, value in part.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for number, entry in optimiser.state_dict()["state"].items():
                flat |= {f"optimiser/{name}/{number}/{key}": value for key, value in entry.items()}
        return flat

    def broken(self) -> list[str]:
        """Names of the tensors that hold NaN or infinity."""
        tensors = {key: value for key, value in self.tensors().items() if value.is_floating_point()}
        norms = torch._foreach_norm(list(tensors.values()), float("inf"))
        return [key for key, norm in zip(tensors, norms, strict=True) if not bool(norm.isfinite())]

    def restore(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any], file: Path) -> None:
        """Load what `tensors` gave.

        Raises:
            CheckpointError: tensors are missing, or of other shapes than this run's networks.
        """
        try:
            for name, part in self.networks.parts().items():
                part.load_state_dict(section(tensors, f"network/{name}/"))
            for name, part in self.averages.items():
                part.load_state_dict(section(tensors, f"average/{name}/"))
            for name, optimiser in self.optimisers.items():
                entries: dict[int, dict[str, Tensor]] = {}
                for key, value in section(tensors, f"optimiser/{name}/").items():
                    number, _, field = key.partition("/")
                    entries.setdefault(int(number), {})[field] = value
                optimiser.load_state_dict({**optimiser.state_dict(), "state": entries})
                _restore_layout(optimiser)
            self.path_length_mean.copy_(tensors["path_length_mean"])
            if self.augmentation is not None:
                self.augmentation.copy_(tensors["augmentation"])
            self.step, self.images = int(header["step"]), int(header["images"])
            self.seconds = float(header["seconds"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = reason_of(error)
            raise CheckpointError(f"{file}: does not fit this run's networks ({reason})") from None

    def save(self, run: Run, keep: int, classifier: str | None = None, images: str | None = None) -> Path:
        """Write a checkpoint, then delete the oldest beyond `keep`.

        `classifier` and `images` are fingerprints of what it was trained with, or None.
        """
        file = run.checkpoints / f"step-{self.step:08d}.safetensors"
        header = {
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "config": run.config.model_dump(mode="json"),
            "classifier": classifier,
            "training_images": images,
            "health": self.health,
        }
        write_tensors(file, self.tensors(), header)
        if self.health.get("suspect"):
            return file  # the last good one may be the oldest: training may have to return to it
        for old in run.checkpoint_files()[:-keep]:
            old.unlink(missing_ok=True)
        return file


def _restore_layout(optimiser: torch.optim.Optimizer) -> None:
    """Give Adam's moments the memory layout of their parameters again, which a file does not keep.

    The fused kernels walk through parameter, gradient and moments in the order of memory: moments of another
    layout than a channels_last weight would be added to the wrong elements.
    """
    for parameter, entry in optimiser.state.items():
        for key, value in entry.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                entry[key] = torch.empty_like(parameter).copy_(value)


def section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def classifier_fingerprint(classifier: Classifier) -> str | None:
    """Of the classifier's weights; None for a function that has none."""
    return classifier.fingerprint if classifier.network.state_dict() else None


def check_same_run(header: Mapping[str, Any], run: Run, classifier: Classifier, file: Path) -> None:
    """Refuse a checkpoint that does not belong to what the run's config asks for.

    Raises:
        CheckpointError: it was written for other networks or another resolution.
        RunError: it was written with another classifier.
    """
    try:
        saved = validate(RunConfig, header["config"], str(file))
    except (ConfigError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: holds no config that this stylex understands") from None
    before, now = wiring(saved), wiring(run.config)
    changed = [f"{key} {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]
    if changed:
        raise CheckpointError(
            f"{file}: written for other networks than {run.config_file} asks for ({'; '.join(changed)}); "
            "undo the change, or start another run"
        )
    fingerprint = classifier_fingerprint(classifier)
    if None not in (header.get("classifier"), fingerprint) and header["classifier"] != fingerprint:
        raise RunError(
            f"{run.path}: was started with another classifier; give that one, or start another run"
        )


def wiring(config: RunConfig) -> dict[str, Any]:
    """The settings that decide which networks there are."""
    recipe = config.recipe
    parts = {"resolution": config.resolution, "encoder": recipe.encodes, "mapping": recipe.samples}
    return parts | {f"network.{key}": value for key, value in recipe.network.model_dump(mode="json").items()}


def save_model(
    run: Run, state: TrainingState, class_names: tuple[str, ...], classifier: str | None = None
) -> None:
    """Write what explanations need: averaged generator, encoder and mapping, and the discriminator.

    `classifier` is the fingerprint of the one trained around, or None.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in {**state.networks.parts(), **state.averages}.items():
        tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
    header = model_header(run.config, state.step, state.images, class_names, classifier)
    write_tensors(run.model_file, tensors, header)


def model_step(run: Run) -> int | None:
    """The step that the run's model file is of; None when it is missing or damaged."""
    try:
        return int(read_tensors(run.model_file)[1]["step"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None


def model_header(
    config: RunConfig, step: int, images: int, class_names: tuple[str, ...], classifier: str | None = None
) -> dict[str, Any]:
    """What a model file says of itself."""
    return {
        "config": config.model_dump(mode="json"),
        "step": step,
        "images": images,
        "class_names": list(class_names),
        "classifier": classifier,
    }
