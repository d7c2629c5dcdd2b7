"""The face of the library: load a run, ask for attributes, ask for counterfactuals."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stylex import hardware
from stylex.attfind import Attribute, Discovery, Findings, load_discovery, load_findings
from stylex.attfind.attributes import Ranking, in_class
from stylex.attfind.names import with_name
from stylex.attfind.pairs import Pairs, load_pairs, named_pairs
from stylex.attfind.search import fingerprint, save_findings
from stylex.counterfactuals import Counterfactual, explain_styles
from stylex.data import Dataset, decode_image, load_dataset
from stylex.data.decode import to_rgb, to_square
from stylex.data.options import DataOptions, split_source
from stylex.data.overlap import equal_group, equal_pixels
from stylex.data.sources import list_source
from stylex.errors import ConfigError, DataError, RunError
from stylex.hardware import Hardware, Precision
from stylex.model import Model, load_model
from stylex.run import Run, checksum

log = logging.getLogger("stylex")

DEMO = "demo"
"""The name under which `load` finds the model that comes with the package."""

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor


class Explainer:
    """Attributes and counterfactuals of one run. Make one with `stylex.load`."""

    def __init__(self, run: Run, model: Model, discovery: Discovery, findings: Findings) -> None:
        self.run = run
        self.model = model
        self.discovery = discovery
        self.findings = findings

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.model.class_names

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what figures about the attributes depend on: weights, ranges and the selection."""
        parts = {
            "generator": checksum(self.model.generator.state_dict()),
            "classifier": self.model.classifier.fingerprint,
            "ranges": checksum(self.discovery.space.tensors()),
            "changes": {
                target: [entry.change for entry in found]
                for target, found in self.findings.attributes.items()
            },
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def attributes(self, target: str, *, against: str | None = None) -> Ranking:
        """Attributes that move images towards the class `target`, best first.

        Args:
            against: only images of this class, and against this class alone (one-vs-one).

        Raises:
            ConfigError: no class of that name.
            RunError: one-vs-one attributes were not searched, or there was no image of that class.
        """
        goal = self._target(target)
        if against is None:
            return Ranking(self.findings.attributes[goal])
        found = self.pairs.get((self._target(against), goal))
        if found is None:
            raise RunError(
                f"{self.run.path}: no attributes from '{against}' to '{target}'; "
                f"'stylex attfind {self.run.path} --one-vs-one' finds them"
            )
        return Ranking(found)

    @property
    def pairs(self) -> Pairs:
        """One-vs-one attributes, where they were searched; coordinates have the names given to them."""
        return named_pairs(self._pairs, self.findings)

    @cached_property
    def _pairs(self) -> Pairs:
        return load_pairs(self.run, fingerprint(self.findings))

    def counterfactual(
        self, image: ImageLike, target: str | None = None, *, name: str | None = None
    ) -> Counterfactual:
        """The fewest attributes that make the classifier see `target`, each moved no farther than needed.

        Without a target it is, for each image, the most probable class that it does not count as. Where
        one-vs-one attributes were searched, those from the image's class to the target are tried too.

        Args:
            image: a file, a PIL image, uint8 [H, W, 3], or a float tensor [3, H, W] or [1, 3, H, W] in [-1,
            1].

        Raises:
            ConfigError: no class of that name.
            DataError: the image cannot be read.
            RunError: the model has no encoder, so it cannot take images.
        """
        tensor = self.tensor(image)
        latents, logits = self.model.encode(tensor)
        goal = self.likely_target(logits) if target is None else self._target(target)
        styles = self.model.styles(latents)
        shown = name or (Path(image).name if isinstance(image, str | Path) else "image")
        attributes = self._candidates(goal, styles)
        return explain_styles(
            self.model, self.discovery.space, attributes, styles, goal, image=tensor, name=shown
        )

    def name_attribute(self, coordinate: int, name: str | None) -> None:
        """Give a coordinate's attributes a name, kept in the run; None or an empty one takes it away.

        Raises:
            ConfigError: no attribute of that coordinate, a name that is too long, or the shipped model, which
                is not written to.
            RunError: the run was searched again since it was loaded, is in use, or cannot be written.
        """
        if self.run.path.resolve() == demo_folder().resolve():
            raise ConfigError("the shipped model keeps no names; 'stylex demo' makes a run of your own")
        with self.run.locked():
            stored = load_findings(self.run)
            if _selected(stored) != _selected(self.findings):
                raise RunError(
                    f"{self.run.path}: was searched again meanwhile; load it again to name attributes"
                )
            findings = with_name(stored, coordinate, name)
            save_findings(self.run, findings)
        self.findings = findings

    def likely_target(self, logits: Tensor) -> str:
        """The most probable class of logits [1, K] that the image does not count as; of two the other.

        One that attributes lead to, if there is any.
        """
        row = logits[0].float().cpu().numpy()
        activation = self.model.classifier.activation
        open_ = [k for k in range(len(row)) if not in_class(row, k, activation)]
        open_ = [k for k in open_ if self.findings.attributes[self.class_names[k]]] or open_
        best = max(open_ or range(len(row)), key=lambda k: float(row[k]))
        return self.class_names[best]

    def _candidates(self, goal: str, styles: Tensor) -> tuple[Attribute, ...]:
        """Attributes for an image: one-vs-all, and behind them the others from its class to the target."""
        attributes = self.findings.attributes[goal]
        pairs = self.pairs
        if not pairs:
            return attributes
        logits = self.model.classify(self.model.synthesise(styles))
        source = self.class_names[int(logits[0].argmax())]
        known = {entry.change for entry in attributes}
        more = pairs.get((source, goal), ())
        return attributes + tuple(entry for entry in more if entry.change not in known)

    def probabilities(self, image: ImageLike) -> dict[str, float]:
        """The classifier's probability of every class on an image."""
        logits = self.model.classify(self.tensor(image))
        values = self.model.classifier.probabilities(logits)[0].tolist()
        return dict(zip(self.class_names, values, strict=True))

    @property
    def _options(self) -> DataOptions:
        """How the run's images were decoded, and so every other image is."""
        return split_source(self.run.config.data)[1]

    def decode(self, image: Path) -> npt.NDArray[np.uint8]:
        """An image file as the run's images were decoded: uint8 [R, R, 3].

        Raises:
            DataError: it cannot be read.
        """
        options = self._options
        return decode_image(image, self.run.config.resolution, fit=options.fit, window=options.window)

    def _target(self, target: str) -> str:
        if target not in self.class_names:
            raise ConfigError(f"no class '{target}'; the classifier knows {', '.join(self.class_names)}")
        return target

    def tensor(self, image: ImageLike) -> Tensor:
        """An image as the model takes it, [1, 3, R, R] in [-1, 1] on its device, made square like the run's.

        Raises:
            DataError: not an image, or a tensor or array of another shape, type or range.
        """
        size = self.run.config.resolution
        if isinstance(image, Tensor):
            tensor = image.detach().float()
            tensor = tensor[None] if tensor.dim() == 3 else tensor
            wanted = f"a tensor must be float [3, {size}, {size}] in [-1, 1]"
            if tensor.shape[1:] != (3, size, size) or len(tensor) != 1 or not image.is_floating_point():
                raise DataError(f"{wanted}; this one is {image.dtype} {list(image.shape)}")
            if not bool((tensor.abs() <= 1 + 1e-3).all()):  # NaN fails too
                low, high = float(tensor.min()), float(tensor.max())
                raise DataError(f"{wanted}; this one goes from {low:.3g} to {high:.3g}")
            return tensor.to(self.model.hardware.device)
        if isinstance(image, str | Path):
            pixels = self.decode(Path(image))
        else:
            picture = image if isinstance(image, Image.Image) else _picture(image)
            pixels = to_square(to_rgb(ImageOps.exif_transpose(picture)), size, self._options.fit)
        return (torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]).to(
            self.model.hardware.device
        )


def _selected(findings: Findings) -> dict[str, list[tuple[int, int]]]:
    return {target: [entry.change for entry in found] for target, found in findings.attributes.items()}


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DataError(f"an array must be uint8 [H, W, 3]; this one is {pixels.dtype} {list(pixels.shape)}")
    try:
        return Image.fromarray(pixels)
    except (TypeError, ValueError):
        raise DataError(f"an array must be uint8 [H, W, 3]; this one is {list(pixels.shape)}") from None


def load(path_or_name: str | Path, device: str = "auto", precision: Precision = "auto") -> Explainer:
    """Load a run's explanations, or those of the shipped model by the name "demo".

    Device and number format are chosen for this machine and logged at level INFO (logger "stylex").

    Raises:
        RunError: no run there, not trained, or not searched for attributes yet.
        CheckpointError, ClassifierError: weights that cannot be read.
    """
    chosen = hardware.choose(device, precision)
    log.info("computing on %s", chosen)
    run = Run.open(demo_folder() if str(path_or_name) == DEMO else Path(path_or_name))
    return open_explainer(run, chosen)


def open_explainer(run: Run, chosen: Hardware) -> Explainer:
    """As `load`, for a run and hardware at hand."""
    model = load_model(run, chosen)
    return Explainer(run, model, load_discovery(run, model), load_findings(run))


def load_images(
    run: Run,
    source: str | None = None,
    *,
    labelled: bool = False,
    measured: Literal["discovery", "test"] = "test",
) -> Dataset:
    """The images of a run: another source, else those it carries, else those it was trained on.

    Images to measure that the run was trained or searched on are left out, with a warning that says how many:
    those whose pixels, at the run's resolution, are those of a training or discovery image under another
    name, and those of a group (such as a patient) that is in these sets. Another source is compared with the
    run's own images as far as these can be read, and is grouped by the run's column where it has one of that
    name.

    Args:
        labelled: with the classes that they are said to have, as for `load_dataset`.
        measured: the set that is compared. Discovery images are compared with training images, and those of
            the run's own source stay as they are.

    Raises:
        DataError: they cannot be read.
    """
    size = run.config.resolution
    own = source is None or Path(source).resolve() == Path(run.config.data).resolve()
    # The run's images must fall into the sets that it was trained with, also when they are named again.
    if own:
        group = None if source is None and run.carries_images else run.config.group
        data = load_dataset(source or run.data_source, size=size, group=group, labelled=labelled)
        if measured == "discovery":
            return data
        return _without_seen(data, "test", data, None, f"the run's {_counted(data)} images")
    assert source is not None
    group = _group_of(run, source, labelled)
    data = load_dataset(source, size=size, group=group, labelled=labelled)
    trained_on, said = _own_images(run)
    return _without_seen(data, measured, trained_on, group, said)


def _group_of(run: Run, source: str, labelled: bool) -> str | None:
    """The run's group column where another source has it and names no other one itself."""
    group = run.config.group
    if group is None or split_source(source)[1].group is not None:
        return None
    listing = list_source(source, None, labelled)
    if group in listing.entries[0].factors:
        return group
    log.warning(
        "%s: has no column '%s' to group by, as the run's images have; each counts alone", source, group
    )
    return None


def _own_images(run: Run) -> tuple[Dataset | None, str]:
    """What the run was trained and searched on, as far as it can be read, and in words what that is."""
    size, about = run.config.resolution, run.hashes.get("data")
    changed = None
    try:
        data = load_dataset(run.config.data, size=size, group=run.config.group, labelled=False)
        if data.fingerprint == about:
            return data, f"the run's {_counted(data)} images"
        changed = data
    except (DataError, ConfigError) as error:
        log.info("%s: the run's images cannot be read: %s", run.config.data, error)
    if run.carries_images:
        try:
            data = load_dataset(run.data_source, size=size, labelled=False)
            return data, f"only the {_counted(data)} images that the run carries"
        except DataError as error:
            log.info("%s: cannot be read: %s", run.data_source, error)
    if changed is None:
        return None, f"none of the run's images, for {run.config.data} cannot be read here"
    why = "not known to be" if about is None else "not all"
    return changed, f"the {_counted(changed)} images now in {run.config.data}, {why} those it was trained on"


def _counted(data: Dataset) -> str:
    return f"{len(data.training)} training and {len(data.discovery)} discovery"


def _without_seen(
    data: Dataset, measured: Literal["discovery", "test"], own: Dataset | None, group: str | None, said: str
) -> Dataset:
    """Without the images of one set that are among a run's own training (and, for test, discovery) images."""
    images = data.test if measured == "test" else data.discovery
    seen = () if own is None else (own.training, own.discovery)[: 2 if measured == "test" else 1]
    pixels = equal_pixels(images, seen)
    out = pixels | equal_group(images, seen, group)
    if out.any():
        others = int((out & ~pixels).sum())
        log.warning(
            "%s: %d of %d %s images are left out, for the run has seen them%s (compared with %s)",
            data.name,
            int(out.sum()),
            len(images),
            measured,
            f", {others} through their {group}" if others else "",
            said,
        )
    elif own is not data and not said.startswith("the run's"):
        log.warning("%s: its %s images were compared with %s", data.name, measured, said)
    if not out.any():
        return data
    kept = images.select(np.flatnonzero(~out))
    return replace(data, test=kept) if measured == "test" else replace(data, discovery=kept)


def demo_folder() -> Path:
    """Where the shipped model lies: a run directory without checkpoints."""
    folder: Any = resources.files("stylex") / "demo_model"
    return Path(str(folder))
