"""Figure 3: the most important attributes of the authors' released model, by the settings of their notebook.

The study ran that notebook (google/explaining-in-style) on its 250 latents, and shows the first four
attributes found. Where the notebook's authors picked the pictures by hand, the first that qualifies is taken.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stylex.attfind import Latents, load_logits, sample_latents
from stylex.attfind.discovery import SearchSource
from stylex.config import AttFindSettings
from stylex.errors import CheckpointError, ConfigError, DataError
from stylex.explainer import Explainer, load_images
from stylex.interop.conversion import SAMPLED, convert
from stylex.interop.stylex_tf import find_parts, load_released
from stylex.interop.tf_records import PUBLISHED, PublishedEffects, read_published
from stylex.model import Model
from stylex.reproduce.attribute_sheets import Candidates, Pick, attribute_sheet
from stylex.reproduce.kept import content_of, refuse
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop
from stylex.run import Run, read_json, write_json
from stylex.stylespace import DirectedCoordinate

EXPERIMENT = "study-ffhq-age"
"""In which the study draws it."""

NEEDED = ("generator", "encoder", "mobilenet")
"""Parts of the released model without which there is no figure."""

WHERE = (
    "the authors' released age model: the folders generator.savedmodel, encoder.savedmodel and "
    "mobilenet.savedmodel (discriminator.savedmodel may be left out) from the zips of these names under "
    "https://storage.googleapis.com/explaining-in-style/celeb_a_age/ (github.com/google/explaining-in-style) "
    f"and beside them {PUBLISHED} from there, the 250 latents; or a run that 'stylex convert' made of it"
)

CLASSES = ("old", "young")
"""The released classifier's classes, in the notebook's order; its file has no names."""

SETTINGS = AttFindSettings(
    method="subset",
    count=8,
    order="selection",
    max_image_effect=1.0,
    shift=1.0,
    unstable_threshold=2.0,
    unstable_max_share=0.033,
    effect="logits",
)
"""The notebook's."""

COUNT = 4

SHIFTS = ((2.0, 1.5), (1.0, 1.0), (1.0, 1.0), (1.5, 2.0))
"""How far the notebook's pictures go, for each attribute towards the first and the second class."""

RISE = 0.05
"""Rise of the other class's probability that an image must show to be drawn (notebook)."""

CANDIDATES = 200
"""Images tried, those farthest in style first (notebook)."""


def check(shop: Workshop) -> None:
    """See that the released model, or a run of it, is there.

    Raises:
        DataError: it is not; says where to get it.
        ConfigError: images for a run, which has its own.
    """
    if shop.model is None:
        raise DataError(f"figure-3 needs --model FOLDER: {WHERE}")
    if (shop.model / "run.json").exists():
        if shop.folders:
            raise ConfigError(f"--model {shop.model}: a run stands on its own images; leave out --data")
        return
    missing = [part for part in NEEDED if part not in find_parts(shop.model)]
    if missing:
        raise DataError(
            f"--model {shop.model}: holds no SavedModel {' and no '.join(missing)}; expected {WHERE}"
        )


def make(shop: Workshop) -> Item:
    """The first four of the merged ranking, on the published latents, on images, or on sampled latents."""
    run = _run(shop)
    published = _published(run)
    settings = SETTINGS
    if published is not None:  # all that there are, as in the notebook
        settings = settings.model_copy(update={"images_per_class": len(published.latents)})
    explainer = shop.searched(run, settings, lambda model: _images(shop, run, model, published))
    found, findings = explainer.discovery, explainer.findings
    title = f"AttFind with {run.config.recipe.name}, {len(found.names)} images"
    candidates = Candidates(found.styles, found.logits.numpy(), found.names)
    pick = _pick(explainer, candidates)
    item = attribute_sheet(shop, "figure-3", title, explainer, candidates, findings.merged[:COUNT], pick)
    compared = None if published is None else _agreement(run, explainer, published)
    item.content.update(
        images=len(found.names), settings=findings.settings.model_dump(mode="json"), published=compared
    )
    return replace(item, text=f"{item.text} {_said(run, explainer, compared)}")


def _run(shop: Workshop) -> Run:
    """The released model as a run: the one given, or made (once) of the SavedModels given.

    A run that is made stands on the images given with --data, else on the published latents, else on samples.

    Raises:
        ConfigError: the one that is there was made of another model or other images.
    """
    assert shop.model is not None
    if (shop.model / "run.json").exists():
        return Run.open(shop.model)
    home, record = shop.home / "released", shop.home / "released.json"
    asked = _origin(shop)
    if (home / "run.json").exists():
        made = read_json(record) if record.exists() else {}
        other = {
            key: (_said_of(key, made[key]), _said_of(key, value))
            for key, value in asked.items()
            if made.get(key, value) != value
        }
        refuse(record, other, home)
        return Run.open(home)
    write_json(record, asked)  # first: a run without it could be of anything
    shop.say(f"converting {shop.model}")
    classifier = load_released(shop.model).classifier
    if classifier is not None and classifier.classes == len(CLASSES):
        classifier.class_names = CLASSES
    return convert(shop.model, home, classifier, classifier_source="classifier.safetensors", data=_data(shop))


def _data(shop: Workshop) -> str:
    assert shop.model is not None
    file = shop.model / PUBLISHED
    return shop.experiment.generator_source(shop.folders) or (str(file) if file.exists() else SAMPLED)


def _origin(shop: Workshop) -> dict[str, Any]:
    """What the arguments make a run of: contents of model and latents, or which images, or which samples."""
    assert shop.model is not None
    data = _data(shop)
    published = Path(data).name == PUBLISHED
    places = {name: str(Path(folder).resolve()) for name, folder in shop.folders.items()}
    images = shop.experiment.generator_source(places) or data
    return {
        "model": _digest([file for part in find_parts(shop.model).values() for file in part.rglob("*")]),
        "images": _digest([Path(data)]) if published else images,
        "seed": shop.seed if data == SAMPLED else None,
    }


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file():
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _said_of(key: str, value: Any) -> Any:
    is_hash = key == "model" or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value))
    return content_of("", value) if is_hash else value


def _published(run: Run) -> PublishedEffects | None:
    """What the authors measured, where the run was made to stand on their latents."""
    file = Path(run.config.data)
    return read_published(file) if file.name == PUBLISHED else None


def _images(shop: Workshop, run: Run, model: Model, published: PublishedEffects | None) -> SearchSource:
    if published is not None:
        width = model.generator.latent_features + model.generator.condition_features
        if published.latents.shape[1] != width:
            raise CheckpointError(
                f"{run.config.data}: latents of {published.latents.shape[1]} numbers, the generator reads "
                f"{width}; are model and latents from one place?"
            )
        return Latents(torch.from_numpy(published.latents), _latent_names(published))
    if run.config.data == SAMPLED:
        return sample_latents(model, shop.seed)
    return load_images(run).discovery


def _latent_names(published: PublishedEffects) -> tuple[str, ...]:
    return tuple(f"latent {number}" for number in range(len(published.latents)))


def _said(run: Run, explainer: Explainer, compared: dict[str, Any] | None) -> str:
    """What the page says of images, settings and agreement."""
    findings, settings = explainer.findings, explainer.findings.settings
    said = (
        f"Images: {run.config.data}, {findings.unstable} of {findings.images} unstable. Effects on "
        f"{settings.effect}, {settings.method}, max_image_effect {settings.max_image_effect:g}. Shown: of "
        f"the images farthest from the attribute's end the first whose probability rises by {RISE:g}."
    )
    if compared is None:
        return said
    return (
        f"{said} Effects measured here and those that the authors published for the same latents correlate "
        f"with {compared['effects_correlation']:.3f}."
    )


def _pick(explainer: Explainer, candidates: Candidates) -> Pick:
    """The notebook's choice: those farthest in style from the end first, of them the first that rises."""
    model, space = explainer.model, explainer.discovery.space

    def pick(
        members: npt.NDArray[np.intp], target: int, rank: int, change: DirectedCoordinate
    ) -> tuple[int, float]:
        amount = SHIFTS[rank - 1][target]
        direction, coordinate = change
        values = space.searchable(candidates.styles)[:, coordinate]
        way = (values - space.end(direction)[coordinate]).abs().cpu().numpy()
        rows = members[np.argsort(-way[members], kind="stable")][:CANDIDATES]
        for first in range(0, len(rows), model.batch_size):
            part = rows[first : first + model.batch_size]
            styles = candidates.styles[torch.from_numpy(part)]
            moved = model.classify(model.synthesise(space.shift(styles, [change], amount))).cpu()
            before = torch.from_numpy(candidates.logits[part])
            chances = model.classifier.probabilities
            rise = (chances(moved) - chances(before))[:, target].numpy()
            if (rise >= RISE).any():
                return int(part[np.flatnonzero(rise >= RISE)[0]]), amount
        return int(rows[0]), amount

    return pick


def _agreement(run: Run, explainer: Explainer, published: PublishedEffects) -> dict[str, Any] | None:
    """How far logits and effects measured here are from what the authors published of the same latents.

    None where the run was searched on other images since.

    Raises:
        CheckpointError: effects of another number of coordinates.
    """
    found = explainer.discovery
    wanted = (2, found.space.size, found.logits.shape[1])
    if published.effects.shape[1:] != wanted:
        raise CheckpointError(
            f"{run.config.data}: effects [2, S, K] are {list(published.effects.shape[1:])}, "
            f"the model has {list(wanted)}"
        )
    places = {name: number for number, name in enumerate(_latent_names(published))}
    rows = [places[name] for name in found.names if name in places]
    if len(rows) < len(found.names) or explainer.findings.settings.sweep == "screened":
        return None
    logits = load_logits(run, explainer.model, found, explainer.findings.settings)
    before = found.logits.numpy()
    ours = np.asarray(logits[0 : len(rows)]) - before[:, None, None]
    theirs = published.effects[rows]
    correlation = np.asarray(np.corrcoef(ours.ravel().astype(np.float64), theirs.ravel()))
    return {
        "latents": len(rows),
        "logits_largest_difference": float(np.abs(before - published.logits[rows]).max()),
        "effects_correlation": float(correlation[0, 1]),
        "effects_largest_difference": float(np.abs(ours - theirs).max()),
    }
