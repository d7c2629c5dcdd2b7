"""Steps that are replayed from fixed memory are the steps that would have been run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import training_problems as problems
from stylex.hardware import Hardware
from stylex.parallel import ALONE, World
from stylex.training import graphs
from stylex.training.graphs import Graph, Programs, can_record
from stylex.training.loop import Trainer

STEPS = 24
"""Of every kind several: the first runs as it is, the second is recorded, the others are replayed."""


@pytest.fixture(autouse=True)
def _warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here chooses its kernels in the first steps: one of a kind is enough."""
    monkeypatch.setattr(graphs, "WARM_UP", 1)


class Again:
    """A graph without CUDA: does the work anew and copies what it gives to where it lay at first.

    The batch must hold what an earlier phase left in it, and nothing that this one computes.
    """

    def __init__(self, work: Callable[[], None], trainer: Trainer) -> None:
        self.work, self.trainer = work, trainer
        batch = work.args[1]  # type: ignore[attr-defined]
        self.batch = batch
        self.first = batch.random._next
        self.before = dict(vars(batch)) | {"statistics": dict(batch.statistics)}
        changed = [trainer.loss.path_length_mean]
        changed += [buffer for part in trainer.state.networks.parts().values() for buffer in part.buffers()]
        kept = [each.clone() for each in changed]
        work()
        self.after = dict(vars(batch)) | {"statistics": dict(batch.statistics)}
        self.gradients = self._gradients()
        # Recording computes nothing: what was changed on the way is put back, what was found is spoiled.
        for each, value in zip(changed, kept, strict=True):
            each.copy_(value)
        for gradient in self.gradients.values():
            gradient.fill_(float("nan"))

    def _gradients(self) -> dict[nn.Parameter, Tensor]:
        parameters = [each for group in self.trainer.parameters.values() for each in group]
        return {each: each.grad for each in parameters if each.grad is not None}

    def replay(self) -> None:
        for parameter in self.gradients:
            parameter.grad = None
        vars(self.batch).update(self.before | {"statistics": dict(self.before["statistics"])})
        self.batch.random._next = self.first
        self.work()
        fresh = dict(vars(self.batch))
        for name, place in self.after.items():
            if isinstance(place, Tensor) and place is not self.before[name]:
                place.copy_(fresh[name])
        for name, place in self.after["statistics"].items():
            place.copy_(fresh["statistics"][name])
        for parameter, place in self.gradients.items():
            assert parameter.grad is not None
            place.copy_(parameter.grad)
        vars(self.batch).update(self.after | {"statistics": dict(self.after["statistics"])})


def run(
    path: Path, recipe: str, steps: int, *, recorded: bool, assignments: Sequence[str] = ()
) -> tuple[Trainer, list[dict[str, float]]]:
    settings = ["loss.path_length_interval=4", "loss.r1_interval=4", "loss.adversarial_start_kimg=0.016"]
    if recipe == "stylegan2":
        settings = settings[:2]
    trainer = problems.make_trainer(path, recipe, [*settings, *assignments])
    captured: list[Graph] = []
    if recorded:

        def capture(work: Callable[[], None]) -> Graph:
            captured.append(Again(work, trainer))
            return captured[-1]

        trainer.programs = Programs(torch.device("cpu"), capture)
    trainer.resume()
    found = [{key: float(value) for key, value in trainer.step().items()} for _ in range(steps)]
    assert bool(captured) == recorded
    return trainer, found


@pytest.mark.parametrize(
    ("recipe", "assignments"),
    [
        ("fast", ()),
        ("evidence", ()),
        ("evidence", ("loss.proximity=1", "loss.area=1", "loss.cycle=1")),
        ("stylex", ()),
        ("stylegan2", ()),
        ("study", ()),
    ],
)
def test_recorded_steps_are_the_same_steps(recipe: str, assignments: Sequence[str], tmp_path: Path) -> None:
    plain, expected = run(tmp_path / "plain", recipe, STEPS, recorded=False, assignments=assignments)
    replayed, found = run(tmp_path / "recorded", recipe, STEPS, recorded=True, assignments=assignments)
    assert [sorted(step) for step in expected] == [sorted(step) for step in found]
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7), number
    ours, theirs = plain.state.tensors(), replayed.state.tensors()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_only_steps_of_one_phase_an_update_on_one_gpu_are_recorded() -> None:
    gpu = Hardware(torch.device("cuda"), torch.bfloat16, 1, "for tests")
    recipe = problems.recipe("stylex")
    assert can_record(recipe, gpu, ALONE)
    assert not can_record(recipe, problems.HARDWARE, ALONE)
    assert not can_record(recipe, gpu, World(0, 2, 2))
    for assignment in ("training.accumulate=2", "training.lazy_adam=false", "training.augmentation=ada"):
        assert not can_record(problems.recipe("stylex", [assignment]), gpu, ALONE)


REGULARISED = ("loss.path_length_interval=4", "loss.r1_interval=4")


@pytest.fixture(scope="module")
def unrecorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What a training of evidence comes to."""
    plain = problems.make_trainer(tmp_path_factory.mktemp("plain") / "run", "evidence", REGULARISED)
    plain.resume()
    for _ in range(STEPS):
        plain.step()
    return plain.state.tensors()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_what_cannot_be_recorded_is_run_as_it_is(
    failing: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, unrecorded: dict[str, Tensor]
) -> None:
    """A classifier that waits for its own numbers, say: training goes on, and finds the same."""
    trainer = problems.make_trainer(tmp_path / "run", "evidence", REGULARISED)
    attempts: list[int] = []

    def capture(work: Callable[[], None]) -> Graph:
        attempts.append(1)
        if len(attempts) == failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return Again(work, trainer)

    trainer.programs = Programs(torch.device("cpu"), capture)
    trainer.resume()
    for _ in range(STEPS):
        trainer.step()
    assert trainer.programs is None
    assert len(attempts) == failing
    assert "not recorded as CUDA graphs: operation not permitted" in caplog.text
    found = trainer.state.tensors()
    for name, value in unrecorded.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)
