"""What a training leaves in its run and takes up again: checkpoints with everything, and the model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import RunError
from stylex.parallel import World
from stylex.run import Run, checksum
from stylex.training.checkpoint import TrainingState, check_same_run, save_model
from stylex.training.stability import Stability, Trouble

log = logging.getLogger("stylex")


@dataclass
class Keeper:
    """Saves and restores the state of one process's training.

    Attributes:
        images: the training set; a checkpoint knows them by their names.
        fingerprint: of the classifier, or None.
        saved_step: of the checkpoint that was written or read last; None before there is one.
    """

    run: Run
    state: TrainingState
    images: ImageSet
    classifier: Classifier
    fingerprint: str | None
    stability: Stability
    world: World
    saved_step: int | None = None

    def restore(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any], file: Path) -> None:
        """Take up a checkpoint; newer ones, which were passed over as damaged, are put out of the way.

        Raises:
            CheckpointError: it is of other networks.
            RunError: it was written with another classifier.
        """
        check_same_run(header, self.run, self.classifier, file)
        self.state.restore(tensors, header, file)
        if header.get("training_images") not in (None, images_fingerprint(self.images)):
            log.warning(
                "%s: goes on with other training images than before (%d now); "
                "what follows is not what an uninterrupted training would have been",
                self.run.path,
                len(self.images),
            )
        self.saved_step = self.state.step
        for damaged in self.run.checkpoint_files():
            # Lest it counts as one of those to keep.
            if damaged > file and self.world.first:
                damaged.rename(damaged.with_suffix(".damaged"))

    def check_same_start(self) -> None:
        """All processes hold the same numbers, or would drift apart: averaged gradients go to each.

        Raises:
            RunError: they do not.
        """
        if self.world.size > 1 and len(set(self.world.share(checksum(self.state.tensors())))) > 1:
            raise RunError(
                f"{self.run.path}: the processes do not start from the same weights; all must see the same "
                "run directory, and run the same versions of stylex and torch"
            )

    def save(self) -> None:
        """Write a checkpoint, after a look at every number that goes into it; the first process writes.

        Raises:
            Trouble: a number is not finite.
            RunError: the disk is full, or the run cannot be written.
        """
        state = self.state
        broken = state.broken()
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise Trouble(state.step, f"{broken[0]}{more} not finite")
        state.health = self.stability.note()
        if self.world.first:
            keep = self.run.config.recipe.training.keep_checkpoints
            state.save(self.run, keep, self.fingerprint, images_fingerprint(self.images))
            self.stability.keep_best(state.step)
        self.saved_step = state.step

    def save_model(self) -> None:
        """Write what explanations need."""
        save_model(self.run, self.state, self.classifier.class_names, self.fingerprint)


def images_fingerprint(images: ImageSet) -> str:
    """Of the names in their order, on which the order of the data hangs."""
    return hashlib.sha256("\0".join(images.names).encode("utf-8", "surrogateescape")).hexdigest()
