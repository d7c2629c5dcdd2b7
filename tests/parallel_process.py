"""What two processes find together, written to files: parallel_process.py OUT.

Two of them work out gradients of every phase; two others, which mostly wait for each other, do the rest.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as distributed
from torch import Tensor

import training_problems as problems
from forking import ended, together
from stylex import parallel
from stylex.errors import DataError, RunError
from stylex.parallel import ALONE, World
from stylex.run import write_json
from stylex.training.loop import Trainer
from stylex.training.stability import Trouble

DEVIATION = ("training.batch_size=8", "network.deviation_group=4", "loss.r1_interval=2")

CASES: dict[str, tuple[str, Sequence[str], int]] = {
    "encode": ("fast", (*DEVIATION, "loss.path_length_interval=2"), 0),
    "swap": (
        "fast",
        (*DEVIATION, "loss.path_length_interval=1", "training.noise=random"),
        3,  # at step 1 rounding decides on which side of a kink an activation lies
    ),
    "evidence": ("evidence", (*DEVIATION, "loss.path_length_interval=1", "training.noise=random"), 1),
    "kept": (
        "evidence",
        (
            *DEVIATION,
            "loss.proximity=1",
            "loss.area=2",
            "loss.cycle=3",
            "loss.path_length_interval=1",
            "training.noise=random",
        ),
        3,
    ),
    "sample": ("stylex", (*DEVIATION, "loss.path_length_interval=1", "training.style_mixing=0.9"), 1),
    "plain": ("stylegan2", DEVIATION, 0),
    "logits": ("study", DEVIATION, 0),
    "accumulated": (
        "fast",
        (*DEVIATION, "training.accumulate=2", "loss.path_length_interval=1"),
        0,
    ),
    "augmented": ("fast", (*DEVIATION, "training.augmentation=ada", "training.mirror=true"), 0),
}
"""Name: recipe, settings, and the step whose phases are run (its number decides the kind of step)."""

ANSWER_SECONDS = 3.0
"""How long an exchange of `patience` waits for the others."""


def gradients(path: Path, world: World, case: str) -> dict[str, Tensor]:
    """Averaged gradients of every phase of one step, and the buffers and means that the step changes."""
    name, settings, step = CASES[case]
    run = problems.make_run(path / f"{case}-{world.rank}-{world.size}", name, settings)
    trainer = Trainer(
        run, problems.images(), problems.classifier(), problems.HARDWARE, problems.images(3), world
    )
    state = trainer.state
    with torch.no_grad():  # the steps before it would have moved the noise's strengths away from zero
        for key, parameter in state.networks.generator.named_parameters():
            if "noise" in key:
                parameter.fill_(0.1)
    if state.augmentation is not None:
        state.augmentation[0] = 0.6  # p
    problems.some_evidence(state.networks.encoder)
    state.step, state.images = step, step * trainer.images_per_step
    batches = [trainer._batch(part) for part in range(trainer.recipe.training.accumulate)]
    found: dict[str, Tensor] = {}
    for phase in trainer.phases:
        for name, parameters in trainer.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name == phase.optimiser)
        for batch in batches:
            trainer.loss.accumulate_gradients(phase, batch, gain=1.0 / len(batches))
        world.average_gradients(trainer.parameters[phase.optimiser])
        for part, network in state.networks.parts().items():
            for key, parameter in network.named_parameters():
                if parameter.grad is not None:
                    found[f"{phase.name}/{part}/{key}"] = parameter.grad.clone()
                    parameter.grad = None
    found["path_length_mean"] = trainer.loss.path_length_mean.clone()
    if state.networks.mapping is not None:
        found["mean_w"] = state.networks.mapping.mean_w.clone()
    for key in sorted({key for batch in batches for key in batch.statistics}):
        local = torch.stack([batch.statistics[key] for batch in batches if key in batch.statistics]).mean()
        found[f"statistics/{key}"] = world.mean(local)
    if state.augmentation is not None:
        found["augmentation"] = state.augmentation.clone()  # p, signs, images, updates
    state.images = 1000
    with torch.no_grad():
        for parameter in state.networks.generator.parameters():
            parameter.add_(1.0)
    trainer._average()
    found["average"] = state.averages["generator"].get_parameter("affine_bias").clone()
    return found


def alone(path: Path, case: str) -> dict[str, Tensor]:
    """The same by one process with the whole batch."""
    return gradients(path, ALONE, case)


def exchanges(path: Path, world: World) -> dict[str, Any]:
    """What flags, statistics, checks and refusals come to in this process; the second one differs."""
    second = world.rank == 1
    found: dict[str, Any] = {
        "any": [world.any(second), world.any(False)],
        "share": world.share(world.rank),
        "means": world.share_means({"rank": float(world.rank), "same": 3.0}),
        "from first": patience(world),
    }
    run = problems.make_run(path / f"exchanges-{world.rank}", "fast")
    trainer = Trainer(
        run, problems.images(), problems.classifier(), problems.HARDWARE, problems.images(3), world
    )
    trainer.step()
    trainer._save()
    found["checkpoints"] = len(run.checkpoint_files())
    health = {"l1_share": 1.5 if second else 0.5, "encoder_variance": 1.0, "agreement": 1.0, "l1": 0.1}
    measured = {f"health/{key}": torch.tensor(value) for key, value in health.items()}
    with mock.patch("stylex.training.stability.measure_health", return_value=measured):
        trainer.stability.check(trainer.state, 0.5)
    found["lowest_l1_share"] = trainer.stability.record.lowest_l1_share
    trainer.recent.add(7, {"l1": torch.tensor(math.nan if second else 1.0)})
    found["trouble"] = said_by(trainer._check_statistics)
    found["same start"] = said_by(trainer.keeper.check_same_start)
    if second:
        with torch.no_grad():
            next(trainer.state.networks.generator.parameters()).add_(1e-6)
    found["other start"] = said_by(trainer.keeper.check_same_start)
    return found


def patience(world: World) -> list[Any]:
    """What comes of work that takes twice the time that an exchange may: of the first, or of one of all."""
    group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=ANSWER_SECONDS))
    worked = []

    def work() -> str:
        worked.append(world.rank)
        time.sleep(2 * ANSWER_SECONDS)
        return f"by {world.rank}"

    def fail() -> None:
        raise DataError("no images")

    def slowly() -> str:
        if world.rank:
            time.sleep(2 * ANSWER_SECONDS)
        return f"by {world.rank}"

    patient = replace(world, control=group)
    with mock.patch.object(parallel, "BEAT_SECONDS", ANSWER_SECONDS / 8):
        found = patient.from_first(work)
        shared = [patient.together(slowly), patient.together(lambda: world.rank)]
    # Who fails hears of it at once; the others wait no longer than for any exchange. Last: it ends the group.
    return [found, worked, shared, said_by(lambda: patient.from_first(fail))]


def said_by(check: Callable[[], None]) -> str | None:
    """What a check complains of."""
    try:
        check()
    except (Trouble, RunError, DataError) as error:
        return str(error)
    return None


def all_gradients(folder: Path, world: World) -> None:
    torch.save({case: gradients(folder, world, case) for case in CASES}, folder / f"rank{world.rank}.pt")


def all_exchanges(folder: Path, world: World) -> None:
    write_json(folder / f"rank{world.rank}.json", exchanges(folder, world))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    parallel.BUCKET_BYTES = 4096  # so that even tiny networks take several
    children = [
        child
        for work in (all_gradients, all_exchanges)
        for child in together(folder / work.__name__, partial(work, folder))
    ]
    sys.exit(max(abs(ended(child)) for child in children))
