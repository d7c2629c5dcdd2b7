"""The training loop: runs phases, steps optimisers, averages weights, keeps the run safe; knows no loss."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import DataError, Stopped
from stylex.hardware import Hardware, place
from stylex.networks import build
from stylex.parallel import ALONE, World, check_shares
from stylex.perceptual import load_perceptual
from stylex.run import Run, remove_partial_files
from stylex.training.checkpoint import TrainingState, check_same_run, classifier_fingerprint, model_step
from stylex.training.graphs import Program, Programs, RecordingError, can_record
from stylex.training.keeping import Keeper
from stylex.training.losses import Batch, StylexLoss
from stylex.training.optimisers import make_optimisers, set_rates, update
from stylex.training.preparation import prepare_components, prepare_evidence
from stylex.training.progress import Preparation, Progress
from stylex.training.randomness import DataOrder, StepRandom
from stylex.training.schedule import (
    Phase,
    adversarial_share,
    ema_decay,
    phases,
    rate_share,
    total_images,
    updates,
)
from stylex.training.stability import Stability, Trouble
from stylex.training.stopping import StopRequest, stop_requests
from stylex.training.watching import WATCHED, MetricsLog, RecentStatistics, mean_statistics, save_samples

log = logging.getLogger("stylex")


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training has to say."""

    step: int
    images: int
    seconds: float
    statistics: dict[str, float]


def train(
    run: Run,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    *,
    watch: ImageSet | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    world: World = ALONE,
) -> TrainingResult:
    """Train the run's networks to the recipe's total, going on from its newest checkpoint if there is one.

    A finished run is left as it is, and its result given again.

    Args:
        run: holds config; checkpoints, metrics, samples and the model file are written into it.
        images: the training set, of the run's resolution.
        classifier: what is explained; it is frozen, its weights are not changed.
        watch: images for sample grids and health checks, on which the best checkpoint is chosen; see
            `watched_images`. By default the first training images.
        on_progress: called after every log interval, and every second while evidence is looked for.
        world: the processes that train together; all call this, with the same arguments, in a run directory
            that all can read. The first alone writes.

    Raises:
        DataError: the images are too few, or not of the run's resolution.
        TrainingDiverged: it went wrong for the second time (see `stability`); the last good checkpoint stays.
        Stopped: Ctrl-C or SIGTERM arrived; there is a checkpoint, unless evidence was still looked for.
        RunError: another process works in this run, it belongs to another classifier, or the disk is full.
        CheckpointError: there are checkpoints, but none that can be read, or of other networks.
        ConfigError: the perceptual network cannot be had, or the batch does not divide among the processes.
    """
    check_shares(run.config.recipe, world.size)
    with run.locked() if world.first else nullcontext():
        if world.first:
            for folder in (run.path, run.checkpoints, run.path / "samples"):
                remove_partial_files(folder)
        world.wait()  # until the first holds the run
        found = run.newest_checkpoint()
        if found is not None:
            _, header, file = found
            check_same_run(header, run, classifier, file)
            if header["images"] >= total_images(run.config.recipe) and header["step"] == model_step(run):
                latest = MetricsLog(run).rewind(header["step"]) if world.first else {}
                return TrainingResult(header["step"], header["images"], header["seconds"], latest)
        watched = watch or images.select(range(min(WATCHED, len(images))))
        trainer = Trainer(run, images, classifier, hardware, watched, world)
        with stop_requests() as stop:
            trainer.resume(found, Preparation(stop, trainer.total_images, on_progress))
            return trainer.run_to_end(on_progress, stop)


class Trainer:
    """One process's training of one run; `train` is the door."""

    def __init__(
        self,
        run: Run,
        images: ImageSet,
        classifier: Classifier,
        hardware: Hardware,
        watch: ImageSet,
        world: World = ALONE,
    ) -> None:
        recipe, resolution = run.config.recipe, run.config.resolution
        if len(images) < 2:
            raise DataError(f"{run.path}: {len(images)} training images; at least 2 are needed")
        for name, found in (("training", images), ("watched", watch)):
            if found.images.shape[1:3] != (resolution, resolution):
                raise DataError(
                    f"{run.path}: the {name} images have {found.images.shape[2]} × {found.images.shape[1]} "
                    f"pixels, the run's resolution is {resolution}; load them with size={resolution}"
                )
        self.run, self.images, self.watch, self.recipe, self.hardware = run, images, watch, recipe, hardware
        self.world = world
        self.classifier = classifier.freeze()
        fingerprint = classifier_fingerprint(classifier)
        networks = build(recipe, resolution, len(classifier.class_names), run.config.seed)
        for part in networks.parts().values():
            place(part, hardware)
        place(classifier, hardware)
        networks.discriminator.world = world
        self.loss = StylexLoss(networks, classifier, None, recipe, world)
        self.phases = phases(recipe)
        averages = {
            name: copy.deepcopy(part).eval().requires_grad_(False)
            for name, part in networks.parts().items()
            if name != "discriminator"
        }
        fused = hardware.device.type in ("cpu", "cuda")
        optimisers = make_optimisers(networks, recipe, self.phases, fused=fused)
        self.parameters = {
            name: [parameter for group in optimiser.param_groups for parameter in group["params"]]
            for name, optimiser in optimisers.items()
        }
        augmentation = self.loss.augmentation
        self.state = TrainingState(
            networks,
            averages,
            optimisers,
            self.loss.path_length_mean,
            None if augmentation is None else augmentation.state,
        )
        self.programs = Programs(hardware.device) if can_record(recipe, hardware, world) else None
        self.order = DataOrder(len(images), run.config.seed)
        self.log = MetricsLog(run)
        self.stability = Stability(run, watch, self.classifier, hardware, world)
        self.keeper = Keeper(run, self.state, images, self.classifier, fingerprint, self.stability, world)
        self.recent = RecentStatistics()
        self.latest: dict[str, float] = {}
        if recipe.perceives:
            name = recipe.loss.perceptual_network
            perceptual = load_perceptual(name, classifier, resolution)
            if perceptual is not None:
                place(perceptual, hardware)
            self.loss.perceptual = perceptual

    @property
    def total_images(self) -> int:
        return total_images(self.recipe)

    @property
    def images_per_step(self) -> int:
        return self.recipe.training.batch_size * self.recipe.training.accumulate

    def resume(
        self,
        found: tuple[dict[str, Tensor], dict[str, Any], Path] | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        """Restore a checkpoint, by default the newest readable one; without one, prepare what training needs.

        Raises:
            Stopped: `preparation` was asked to.
        """
        found = found or self.run.newest_checkpoint()
        header: dict[str, Any] = {}
        if found is None:
            self._fit_components()
            self.fit_evidence(preparation)
        self.world.wait()  # until all have read, before anything is renamed
        if found is not None:
            tensors, header, file = found
            self.keeper.restore(tensors, header, file)
        if self.world.first:
            self.latest = self.log.rewind(self.state.step)
        self.world.wait()  # until metrics.jsonl is what the watch over the losses takes up
        self.stability.restore(header, self.state.step)
        self.keeper.check_same_start()

    def _fit_components(self) -> None:
        encoder = self.state.networks.encoder
        if encoder is not None and encoder.components:
            prepare_components(encoder, self.images, self.run, self.world)
            self.state.averages["encoder"].load_state_dict(encoder.state_dict())

    def fit_evidence(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Find the components of the classifier's evidence, where the recipe's condition is made of them.

        Args:
            on_progress: told how much is done, of how much; may raise Stopped.
        """
        encoder = self.state.networks.encoder
        if encoder is None or encoder.evidence is None:
            return
        prepare_evidence(
            encoder.evidence, self.images, self.classifier, self.hardware, self.run, self.world, on_progress
        )
        self.state.averages["encoder"].load_state_dict(encoder.state_dict())

    def run_to_end(self, on_progress: Callable[[Progress], None] | None, stop: StopRequest) -> TrainingResult:
        """Train to the total, or until somebody asks to stop; see `train`."""
        settings, state = self.recipe.training, self.state
        marks = deque([(time.perf_counter(), state.images)], maxlen=10)
        with self.log:
            while state.images < self.total_images:
                try:
                    if state.images == 0:
                        self._begin()
                    if self.world.any(stop.asked()):
                        self._stop()
                    begin = time.perf_counter()
                    statistics = self.step()
                    self.recent.add(state.step, statistics)
                    state.seconds += time.perf_counter() - begin
                    done = state.images >= self.total_images
                    save = done or self._passed(settings.checkpoint_kimg)
                    if save:
                        share_done = state.images / self.total_images
                        self.recent.add(state.step, self.stability.check(state, share_done))
                    if done or self._passed(settings.log_kimg):
                        self._log(marks, on_progress)
                    if done or self._passed(settings.sample_kimg):
                        self._sample()
                    if save:
                        self._save()
                except Trouble as trouble:
                    self._return(trouble)
                    marks.clear()
                    marks.append((time.perf_counter(), state.images))
        if self.world.first and model_step(self.run) != state.step:
            self.keeper.save_model()
        self.world.wait()
        return TrainingResult(state.step, state.images, state.seconds, self.latest)

    def _begin(self) -> None:
        """Before the first step: what later checks compare with, and checkpoint 0.

        What was prepared is in it, so that a kill does not lose that, and it is what trouble returns to
        before there is another. No model is written: nothing has been learned.
        """
        self.stability.begin(self.state)
        if self.keeper.saved_step is None:
            self._save_state()
        self._sample()

    def _passed(self, kimg: float) -> bool:
        """Whether the last step reached a multiple of so many images; the same ones, also when resumed."""
        images = self.state.images
        return images // (kimg * 1000) > (images - self.images_per_step) // (kimg * 1000)

    def step(self) -> dict[str, Tensor]:
        """One step: every phase that is due, on one batch (or `accumulate` of them). Returns statistics."""
        settings, state = self.recipe.training, self.state
        share = rate_share(self.recipe, state.images) * self.stability.rate
        for optimiser in state.optimisers.values():
            set_rates(optimiser, share)
        batches = [self._batch(part) for part in range(settings.accumulate)]
        due = [
            phase
            for phase in self.phases
            if state.step % phase.interval == 0
            and state.images >= phase.start_images
            and any(self.loss.takes_part(phase, batch) for batch in batches)
        ]
        program = self._program(batches, due)
        for joined in updates(due, settings.lazy_adam):
            self._update(joined, batches, share, program)
        state.step += 1
        state.images += self.images_per_step
        self._average()
        if program is not None and self.programs is not None:
            batches[0].statistics |= program.statistics()
        return mean_statistics([batch.statistics for batch in batches])

    def _program(self, batches: list[Batch], due: list[Phase]) -> Program | None:
        if self.programs is None:
            return None
        batch = batches[0]
        return self.programs.program(batch, due, self.loss.path_length_kind(batch))

    def _batch(self, part: int) -> Batch:
        settings, state = self.recipe.training, self.state
        first = state.images + part * settings.batch_size
        own = slice(self.world.rank, None, self.world.size)
        images = self.images.batch(self.order.indices(first, settings.batch_size)[own])
        if settings.mirror:
            flip = torch.from_numpy(self.order.mirrored(first, settings.batch_size)[own])
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        random = StepRandom(self.stability.seed, state.step, part, self.hardware.device, self.world)
        # The kinds alternate from batch to batch, also among those whose gradients make one update.
        kind = settings.schedule[(state.step * settings.accumulate + part) % len(settings.schedule)]
        share = adversarial_share(self.recipe, state.images)
        if share == 0:
            kind = "encode"
        images = images.to(self.hardware.device, memory_format=torch.channels_last)
        return Batch(images, kind, random, state.step, share, judged=share > 0)

    def _update(
        self, joined: list[Phase], batches: list[Batch], share: float, program: Program | None
    ) -> None:
        """One optimiser step with the gradients of these phases."""
        optimiser = joined[0].optimiser
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name == optimiser)
        for phase in joined:
            if program is not None and self.programs is not None:
                work = partial(self.loss.accumulate_gradients, phase, program.batch)
                try:
                    program.run(phase, work, self.parameters[optimiser])
                    continue
                except RecordingError as error:
                    log.warning("steps are not recorded as CUDA graphs: %s", str(error).splitlines()[0])
                    self.programs = None
                    batches[:] = [self._batch(0)]
                    if phase.name != "generator":  # which has run already
                        batches[0].fake, batches[0].condition = program.batch.fake, program.batch.condition
            for batch in batches:
                if self.loss.takes_part(phase, batch):
                    self.loss.accumulate_gradients(phase, batch, gain=1.0 / len(batches))
        self.world.average_gradients(self.parameters[optimiser])
        update(self.state.optimisers[optimiser])
        for phase in joined:
            batches[0].statistics |= self.loss.after_update(phase, self.state.images, share)

    @torch.no_grad()
    def _average(self) -> None:
        decay = ema_decay(self.recipe, self.state.images, self.images_per_step)
        for name, average in self.state.averages.items():
            part = self.state.networks.parts()[name]
            torch._foreach_lerp_(list(average.parameters()), list(part.parameters()), 1.0 - decay)
            for mean, buffer in zip(average.buffers(), part.buffers(), strict=True):
                mean.copy_(buffer)

    def _log(self, marks: deque[tuple[float, int]], on_progress: Callable[[Progress], None] | None) -> None:
        """Write the statistics since the last time; speed over this interval, time left from the last ten."""
        state = self.state
        self._check_statistics()
        self.latest = self.world.share_means(self.recent.means())
        self.recent.clear()
        self.stability.watch_losses(state.step, self.latest)
        if self.stability.events:
            self.latest["health/learning_rate_share"] = self.stability.rate
        now = (time.perf_counter(), state.images)
        if self.world.first:
            self.log.write(state, {**self.latest, "images_per_second": _speed(marks[-1], now)})
        speed = _speed(marks[0], now)
        marks.append(now)
        if on_progress is not None:
            left = (self.total_images - state.images) / speed
            on_progress(Progress(state.images, self.total_images, speed, left, self.latest))

    def _check_statistics(self) -> None:
        everywhere = [found for found in self.world.share(self.recent.first_broken()) if found is not None]
        if everywhere:
            step, keys = min(everywhere)
            raise Trouble(step, f"{', '.join(keys)} not finite")

    def _return(self, trouble: Trouble) -> None:
        """Go back to the last good checkpoint, to go on from there if this was the first time."""
        if not self.world.first:
            self.world.wait()  # the first one clears up before others read
        found = self.stability.last_good()
        if self.world.first:
            self.world.wait()
        if found is not None:
            self.log.close()
            self.recent.clear()
            self.resume(found)
            if self.world.first and self.state.step:
                self.keeper.save_model()
            elif self.world.first:
                self.run.model_file.unlink(missing_ok=True)
        self.stability.settle(trouble, None if found is None else self.state.step)

    def _save(self) -> None:
        """Write a checkpoint and the model."""
        self._save_state()
        if self.world.first:
            self.keeper.save_model()

    def _save_state(self) -> None:
        """Write a checkpoint, after a look at every number that goes into it."""
        self._check_statistics()
        self.keeper.save()

    def _sample(self) -> None:
        if self.world.first:
            save_samples(self.run, self.watch, self.classifier, self.state, self.hardware, self.log)

    def _stop(self) -> NoReturn:
        state = self.state
        if self.keeper.saved_step != state.step:
            self._save()
        self.world.wait()  # until the checkpoint is written: whoever ends first ends the others
        raise Stopped(
            f"stopped at step {state.step} ({state.images / 1000:.1f} kimg), checkpoint written; "
            f"the same command continues {self.run.path}"
        )


def _speed(begin: tuple[float, int], end: tuple[float, int]) -> float:
    """Images a second between two (time, images seen)."""
    return (end[1] - begin[1]) / max(end[0] - begin[0], 1e-9)
