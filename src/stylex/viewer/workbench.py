"""What the viewer's pages ask the model: subjects, edits of them, the smallest flip, galleries."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylex.attfind import Attribute
from stylex.attfind.attributes import in_class
from stylex.counterfactuals import Change, Counterfactual, explain_styles, same_class, to_picture
from stylex.errors import ConfigError, DataError
from stylex.evaluation.measure import TestImages
from stylex.explainer import Explainer
from stylex.report.content import Picture
from stylex.report.gallery import Gallery, gallery

UPLOADS = 32
"""Uploads that are held; the one that was not looked at for longest makes room."""

PAIRS = 12
"""In the gallery of an attribute."""


@dataclass(frozen=True, eq=False)
class Subject:
    """An image that is looked at: styles [1, T], the image [1, 3, R, R] (None: sampled), pictures of both.

    Probabilities are of all classes, and so are logits [K] of the image and of its reconstruction.
    """

    key: str
    name: str
    styles: Tensor
    image: Tensor | None
    original: Picture | None
    reconstruction: Picture
    probabilities_original: tuple[float, ...] | None
    probabilities_before: tuple[float, ...]
    logits_original: np.ndarray
    logits: np.ndarray


class Workbench:
    """A run that is being looked at. One thread at a time computes; any may ask.

    Args:
        test: images to choose from, of `evaluation.measure.prepare`.
        shown: sliders for each target class.
    """

    def __init__(self, explainer: Explainer, test: TestImages, shown: int = 8) -> None:
        self.explainer = explainer
        self.test = test
        self.shown = shown
        self._lock = threading.Lock()
        self._uploads: OrderedDict[str, Subject] = OrderedDict()
        self._galleries: dict[tuple[str, int], Gallery] = {}
        self._classes = test.logits_original.argmax(axis=1)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.explainer.class_names

    @property
    def takes_images(self) -> bool:
        """Whether images can be uploaded; a model without an encoder draws its own."""
        return self.explainer.model.encoder is not None

    def attributes(self, target: str) -> tuple[Attribute, ...]:
        """Those with a slider, best first."""
        return self.explainer.attributes(target)[: self.shown]

    def attribute(self, target: str, rank: int) -> Attribute:
        """One of `attributes`. Raises ConfigError: there is none of that rank."""
        for entry in self.attributes(target):
            if entry.rank == rank:
                return entry
        raise ConfigError(f"no attribute {rank} towards '{target}'")

    def rows(self, class_name: str | None = None) -> list[int]:
        """Places of the images to choose from, of one class or of all."""
        if class_name is None:
            return list(range(len(self.test.names)))
        return np.flatnonzero(self._classes == self.class_names.index(class_name)).tolist()

    def class_of(self, row: int) -> str:
        return self.class_names[int(self._classes[row])]

    def picture(self, row: int) -> Picture:
        """An image to choose, at its own size. Raises DataError: there is none at that place."""
        self._check(row)
        return to_picture(self.test.images[row])

    def subject(self, key: str) -> Subject:
        """The image of a key: a place among the test images, or what `upload` gave.

        Raises:
            DataError: no such image, or an upload that has made room for others.
        """
        if not (key.isascii() and key.isdecimal()):
            with self._lock:
                if key not in self._uploads:
                    raise DataError("that upload is no longer here; send the image again")
                self._uploads.move_to_end(key)
                return self._uploads[key]
        row = int(key) if len(key) < 10 else -1
        self._check(row)
        test, rows = self.test, slice(row, row + 1)
        image = test.images[rows] if self.takes_images else None
        return self._subject(
            key,
            test.names[row],
            test.styles[rows],
            image,
            test.reconstructions[rows],
            test.logits_original[row],
            test.logits[row],
        )

    def upload(self, picture: Image.Image, name: str) -> Subject:
        """Take an RGB image in; it stays in memory only.

        Raises:
            RunError: the model has no encoder.
        """
        model = self.explainer.model
        image = self.explainer.tensor(picture)
        with self._lock:
            latents, logits_original = model.encode(image)
            styles = model.styles(latents)
            reconstruction = model.synthesise(styles)
            logits = model.classify(reconstruction)
        found = self._subject(
            f"upload-{secrets.token_urlsafe(16)}",
            name,
            styles,
            image,
            reconstruction,
            logits_original[0].cpu().numpy(),
            logits[0].cpu().numpy(),
        )
        with self._lock:
            self._uploads[found.key] = found
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return found

    def quickest_threads(self, most: int) -> int:
        """How many CPU threads edit one image fastest: 1 or `most`.

        One image is little work, and threads that wait for each other take longer than one by itself.
        """
        if self.explainer.model.hardware.device.type != "cpu" or most < 2:
            return most
        subject, seconds = self.subject("0"), {}
        for count in (1, most):
            torch.set_num_threads(count)
            taken = []
            for _ in range(4):
                begun = time.perf_counter()
                self.edit(subject, self.class_names[0], {})
                taken.append(time.perf_counter() - begun)
            seconds[count] = sorted(taken[1:])[1]
        return min(seconds, key=seconds.__getitem__)

    def edit(self, subject: Subject, target: str, amounts: Mapping[int, float]) -> Counterfactual:
        """The subject with attributes moved.

        Args:
            amounts: rank → how far: 1 to the end that leads to the target, -1 to the other end, 0 not at all.

        Raises:
            ConfigError: no attribute of that rank, or an amount outside [-1, 1].
        """
        changes = []
        for rank, amount in amounts.items():
            if not -1 <= amount <= 1:
                raise ConfigError(f"attribute {rank} cannot be moved by {amount:g}; it goes from -1 to 1")
            entry = self.attribute(target, rank)
            if amount < 0:
                entry = replace(entry, direction=1 - entry.direction)
            if amount:
                changes.append(Change(entry, abs(amount)))
        model, index = self.explainer.model, self.class_names.index(target)
        moves = {change.attribute.change: change.amount for change in changes}
        with self._lock:
            image = model.synthesise(self.explainer.discovery.space.shift(subject.styles, moves))
            logits = model.classify(image).cpu()
        activation = model.classifier.activation
        return Counterfactual(
            name=subject.name,
            target=target,
            class_names=self.class_names,
            original=subject.original,
            reconstruction=subject.reconstruction,
            edited=to_picture(image[0]),
            probabilities_original=subject.probabilities_original,
            probabilities_before=subject.probabilities_before,
            probabilities_after=tuple(model.classifier.probabilities(logits)[0].tolist()),
            changes=tuple(changes),
            flipped=bool(in_class(logits.numpy(), index, activation)[0]),
            already=False,
            reconstruction_keeps_class=self.keeps_class(subject, target),
        )

    def flip(self, subject: Subject, target: str) -> tuple[dict[int, float], Counterfactual]:
        """The smallest set of sliders, and how far each, that makes the subject count as the target."""
        with self._lock:
            found = explain_styles(
                self.explainer.model,
                self.explainer.discovery.space,
                self.attributes(target),
                subject.styles,
                target,
                image=subject.image,
                name=subject.name,
            )
        return {change.attribute.rank: change.amount for change in found.changes}, found

    def gallery(self, entry: Attribute) -> Gallery:
        """Pairs of test images before and after, and where the pixels change; computed once."""
        key = entry.target, entry.rank
        with self._lock:
            if key not in self._galleries:
                self._galleries[key] = gallery(self.explainer, self.test, entry, PAIRS)
            return self._galleries[key]

    def name(self, entry: Attribute, name: str) -> None:
        """Keep a name in the run; see `Explainer.name_attribute`."""
        with self._lock:
            self.explainer.name_attribute(entry.coordinate, name)

    def _subject(
        self,
        key: str,
        name: str,
        styles: Tensor,
        image: Tensor | None,
        reconstruction: Tensor,
        logits_original: np.ndarray,
        logits: np.ndarray,
    ) -> Subject:
        classifier = self.explainer.model.classifier
        both = classifier.probabilities(torch.from_numpy(np.stack([logits_original, logits]))).tolist()
        return Subject(
            key=key,
            name=name,
            styles=styles,
            image=image,
            original=None if image is None else to_picture(image[0]),
            reconstruction=to_picture(reconstruction[0]),
            probabilities_original=None if image is None else tuple(both[0]),
            probabilities_before=tuple(both[1]),
            logits_original=logits_original,
            logits=logits,
        )

    def keeps_class(self, subject: Subject, target: str) -> bool:
        """Whether the reconstruction has the image's class; of labels, the target's."""
        activation = self.explainer.model.classifier.activation
        return same_class(subject.logits_original, subject.logits, self.class_names.index(target), activation)

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.test.names):
            raise DataError(f"there is no such image; there are {len(self.test.names)}")
