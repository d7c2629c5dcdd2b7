"""What one looks at while a model trains: metrics as JSON lines, TensorBoard curves, and grids of samples."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylex.classifiers import Classifier
from stylex.conditions import told
from stylex.data import Dataset, ImageSet
from stylex.errors import RunError
from stylex.hardware import Hardware
from stylex.networks import Encoder
from stylex.run import Run, write_atomically
from stylex.training.checkpoint import TrainingState
from stylex.training.randomness import StepRandom

WATCHED = 16
"""Images that sample grids show."""


class RecentStatistics:
    """The statistics of the steps since the last log line; numbers stay on their device until asked for."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[int, Tensor]]] = {}

    def add(self, step: int, statistics: Mapping[str, Tensor]) -> None:
        """Note what step number `step` gave."""
        for key, value in statistics.items():
            self._values.setdefault(key, []).append((step, value))

    def means(self) -> dict[str, float]:
        """The mean of each statistic over the steps that gave it."""
        return {
            key: float(torch.stack([value for _, value in found]).mean())
            for key, found in self._values.items()
        }

    def first_broken(self) -> tuple[int, list[str]] | None:
        """The first step with NaN or infinity in a statistic, and which; None when all are finite."""
        broken: dict[int, list[str]] = {}
        for key, found in self._values.items():
            if not math.isfinite(float(torch.stack([value for _, value in found]).sum())):
                for step, value in found:
                    if not bool(value.isfinite()):
                        broken.setdefault(step, []).append(key)
        return min(broken.items()) if broken else None

    def clear(self) -> None:
        self._values.clear()


def mean_statistics(each: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each statistic's mean over the batches of a step that have it."""
    found: dict[str, list[Tensor]] = {}
    for statistics in each:
        for key, value in statistics.items():
            found.setdefault(key, []).append(value)
    return {
        key: values[0] if len(values) == 1 else torch.stack(values).mean() for key, values in found.items()
    }


class MetricsLog:
    """Appends to metrics.jsonl and to TensorBoard's event files in the run; a context manager."""

    def __init__(self, run: Run) -> None:
        self._file = run.metrics_file
        self._folder = run.path / "tensorboard"
        self._purge: int | None = None
        self._board: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def rewind(self, step: int) -> dict[str, float]:
        """Drop what was logged after `step`: work after the checkpoint that training goes on from.

        Returns:
            The statistics of the last line that is left; empty when there is none.
        """
        kept, last, damaged = [], {}, False
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                entry = _parse(line)
                if entry is not None and entry["step"] <= step:
                    kept.append(line)
                    last = entry
                else:
                    damaged = True
            if damaged:
                text = "".join(line + "\n" for line in kept)
                write_atomically(self._file, lambda file: file.write(text.encode()))
        # TensorBoard's files are only ever appended to; a new one can declare what follows a step as void.
        self._purge = step + 1 if any(self._folder.glob("events.*")) else None
        about = ("step", "images", "seconds", "images_per_second")
        return {key: float(value) for key, value in last.items() if key not in about}

    def write(self, state: TrainingState, statistics: Mapping[str, float]) -> None:
        """Add one line: step, images seen, seconds of training, statistics.

        Raises:
            RunError: the disk is full, or the run cannot be written.
        """
        entry = {"step": state.step, "images": state.images, "seconds": round(state.seconds, 2)}
        entry |= {key: float(f"{value:.6g}") for key, value in statistics.items()}
        with self._written():
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            board = self._open_board()
            for key, value in statistics.items():
                board.add_scalar(key, value, state.step)

    def picture(self, state: TrainingState, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Show a picture [H, W, 3], uint8, in TensorBoard, under "samples"; errors as for `write`."""
        with self._written():
            self._open_board().add_image("samples", pixels, state.step, dataformats="HWC")

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"{self._file}: could not be written ({reason}); the last checkpoint stands"
            ) from None

    def _open_board(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder), purge_step=self._purge)
        return self._board

    def close(self) -> None:
        """Write out TensorBoard's curves; what a full disk does not take is lost: metrics.jsonl has it."""
        board, self._board = self._board, None
        if board is not None:
            try:
                board.close()
            except OSError:
                return


def _parse(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None when it was cut short by a crash."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


@torch.no_grad()
def watched_images(data: Dataset) -> ImageSet | None:
    """The first discovery images (training images where there are none): for sample grids and health checks.

    The best checkpoint is chosen on them. None: there are no images at all.
    """
    for images in (data.discovery, data.training):
        if len(images):
            return images.select(range(min(WATCHED, len(images))))
    return None


def save_samples(
    run: Run,
    watch: ImageSet,
    classifier: Classifier,
    state: TrainingState,
    hardware: Hardware,
    log: MetricsLog | None = None,
) -> None:
    """Write samples/NNNNNN.png (thousands of images seen), from the averaged weights; show it in the log too.

    With an encoder: the images, their reconstructions, and the reconstructions with each class as condition,
    or with each component of evidence turned round.
    With a mapping: a last row of images from sampled z with the conditions of the row of images.
    """
    images = watch.batch(np.arange(len(watch))).to(hardware.device)
    rows = [images]
    generator: Any = state.averages["generator"]
    kind = run.config.recipe.network.condition
    logits = classifier(images)
    encoder: Any = state.averages.get("encoder")
    condition = told(kind, classifier, logits, images, encoder)
    if encoder is not None:
        w = encoder(images)
        rows.append(_render(generator, w, condition))
        if condition is not None:
            rows += [_render(generator, w, other) for other in _others(kind, condition, encoder)]
    if "mapping" in state.averages:
        mapping: Any = state.averages["mapping"]
        random = StepRandom(run.config.seed, 0, 0, hardware.device)
        w = mapping(random.normal(len(images), mapping.z_features), truncation=0.7)
        rows.append(_render(generator, w, condition))
    buffer = io.BytesIO()
    grid = to_grid(rows)
    Image.fromarray(grid).save(buffer, format="PNG")
    write_atomically(
        run.path / "samples" / f"{state.images // 1000:06d}.png", lambda file: file.write(buffer.getvalue())
    )
    if log is not None:
        log.picture(state, grid)


def _others(kind: str, condition: Tensor, encoder: Encoder) -> Iterator[Tensor]:
    """The conditions [N, K] of every row of a sample grid but the reconstructions'."""
    if kind == "evidence":
        assert encoder.evidence is not None
        for component in range(int(encoder.evidence.used)):
            turned = condition.clone()
            turned[:, component] = encoder.evidence.turned(condition)[:, component]
            yield turned
        return
    for target in range(condition.shape[1]):
        one = torch.zeros_like(condition)
        one[:, target] = 1.0
        if kind == "logits":  # as large as the images' own, for the class and against the others
            one = (2.0 * one - 1.0) * condition.abs().mean()
        yield one


def _render(generator: Any, w: Tensor, condition: Tensor | None) -> Tensor:
    images: Tensor = generator(w if condition is None else torch.cat([w, condition], dim=1))
    return images


def to_grid(rows: list[Tensor]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows of images [N, 3, H, W] in [-1, 1] → one picture [rows · H, N · W, 3], uint8."""
    strips = [row.clamp(-1, 1).permute(2, 0, 3, 1).flatten(1, 2).float().cpu() for row in rows]
    return ((torch.cat(strips) + 1) * 127.5).round().to(torch.uint8).numpy()
