"""`stylex train` with nothing but images, a classifier and a time: what is chosen, said, and kept."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import problems
import training_problems
from stylex.cli.app import main
from stylex.run import Run
from stylex.training import costs
from stylex.training.loop import Trainer

CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]

NARROW = [word for setting in training_problems.TINY[:9] for word in ("--set", setting)]
"""Networks whose steps take milliseconds, where it does not matter which they are."""

NO_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stylex(capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run the program in this process: exit status, standard output, standard error."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        sys.stdout.flush()
        shown, said = capfd.readouterr()
        return int(ended.value.code or 0), shown, said

    yield run
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """Images of 16 px and a classifier, and no more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = problems.save_images(tmp_path / "images")
    classifier = training_problems.classifier()
    classifier.options = {"widths": [4, 4, 8, 8]}
    classifier.save(tmp_path / "classifier.safetensors")
    given: list[str | Path] = ["train", "--data", images, "--classifier"]
    return [*given, tmp_path / "classifier.safetensors", "--out", tmp_path / "run", *CPU]


def test_from_images_and_classifier_to_a_model_in_the_time_given(
    stylex: Call, command: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what it picked; stopped on the way, the same command goes on with what was picked."""
    command = [*command, "--time-budget", "4s", "--json"]
    step, asked = Trainer.step, []

    def stopping(self: Trainer) -> dict[str, Tensor]:
        found = step(self)
        if (self.run.path / "samples" / "000000.png").exists() and self.state.step == 3 and not asked:
            asked.append(self.state.step)
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(Trainer, "step", stopping)
    code, shown, said = stylex(*command)
    assert (code, shown) == (143, ""), said
    assert "the same command continues" in said
    for words in ("resolution 16:", "widths", "images/s", "batch 8:", "kimg in place of 150"):
        assert words in said, words
    run = Run.open(tmp_path / "run")
    recipe = run.config.recipe
    assert f"total {recipe.training.total_kimg:g} kimg" in said
    assert 0 < recipe.training.total_kimg < 150
    assert run.config.resolution == 16
    assert recipe.loss.adversarial_start_kimg == pytest.approx(recipe.training.total_kimg / 3, rel=1e-3)

    code, shown, said = stylex(*command)
    assert code == 0, said
    assert "chosen:" not in said
    assert "--time-budget plans a new run" in said
    assert Run.open(run.path).config == run.config
    result = json.loads(shown)
    assert result["images"] >= recipe.training.total_kimg * 1000
    assert run.model_file.exists()


def without_memory(monkeypatch: pytest.MonkeyPatch, too_large: Callable[[Trainer], bool]) -> list[int]:
    """Trial steps fail as PyTorch's do where memory is short; the batches that were tried are kept."""
    step, tried = Trainer.step, []

    def failing(self: Trainer) -> dict[str, Tensor]:
        tried.append(self.recipe.training.batch_size)
        if too_large(self):
            raise RuntimeError(NO_MEMORY)
        return step(self)

    monkeypatch.setattr(Trainer, "step", failing)
    # Every look at the clock takes 50 ms, so that what is measured does not hang on the machine.
    ticks = itertools.count(step=0.05)
    monkeypatch.setattr(
        "stylex.training.plan.measure_step",
        lambda *given, **more: costs.measure_step(*given, **more, clock=lambda: next(ticks)),
    )
    return tried


def test_a_batch_that_does_not_fit_is_halved(
    stylex: Call, command: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = without_memory(monkeypatch, lambda trainer: trainer.recipe.training.batch_size >= 8)
    code, shown, said = stylex(*command, "--dry-run", "--json")
    assert code == 0, said
    assert set(tried) >= {2, 8}
    training = json.loads(shown)["settings"]["recipe"]["training"]
    assert (training["batch_size"], training["accumulate"]) == (4, 2)
    assert "batch 4 × 2: more does not fit the memory" in said


def test_widths_that_do_not_fit_make_way_for_narrower_ones(
    stylex: Call, command: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memory(monkeypatch, lambda trainer: trainer.recipe.network.channel_max > 32)
    code, shown, said = stylex(*command, "--dry-run", "--json")
    assert code == 0, said
    assert json.loads(shown)["settings"]["recipe"]["network"]["channel_max"] == 32
    assert "widths 0.5× the recipe's" in said


def test_a_length_that_leaves_out_what_the_recipe_is_for_is_said(
    stylex: Call, command: list[str | Path]
) -> None:
    code, _, said = stylex(*command, *NARROW, "--dry-run", "--set", "training.total_kimg=14")
    assert code == 0, said
    warned = [line for line in said.splitlines() if line.startswith("warning:")]
    assert len(warned) == 2, said
    assert "loss.adversarial_start_kimg is 50" in warned[0]
    assert "sparsity.start_kimg is 65" in warned[1]


def test_what_is_chosen_and_a_dry_run_say_the_same_time(
    stylex: Call, command: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One measurement is behind both."""
    measured: list[float] = []
    measure = costs.measure_step

    def counted(*given: object, **more: object) -> costs.StepCost:
        cost = measure(*given, **more)  # type: ignore[arg-type]
        measured.append(10.0 ** len(measured))
        return replace(cost, kinds=dict.fromkeys(cost.kinds, measured[-1]))

    for module in ("plan", "costs"):
        monkeypatch.setattr(f"stylex.training.{module}.measure_step", counted)
    code, shown, said = stylex(*command, *NARROW, "--dry-run", "--set", "training.total_kimg=100")
    assert code == 0, said
    (line,) = (line for line in said.splitlines() if "total 100 kimg: yours" in line)
    time = line.rpartition("about ")[2].removesuffix(" here")
    assert f"time         {time} for 12,500 steps" in shown
    assert len(measured) == 1


def test_a_dry_run_counts_no_evidence_that_a_checkpoint_holds(
    stylex: Call, command: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended before its first step has seen no image, and has its evidence all the same."""

    def killed(self: Trainer) -> dict[str, Tensor]:
        raise RuntimeError("killed")

    settings = ["--recipe", "fast", "--size", "16", "--set", "loss.perceptual_network=classifier"]
    settings += [f"--set={text}" for text in training_problems.TINY]
    command = [*command, *settings]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", killed)
        assert stylex(*command)[0] == 1
    assert Run.open(tmp_path / "run").newest_checkpoint() is not None
    code, shown, said = stylex(*command, "--dry-run", "--json")
    assert code == 0, said
    time = json.loads(shown)["time"]
    assert (time["images_done"], time["preparation_seconds"]) == (0, 0)
    code, shown, said = stylex(*command, "--dry-run", "--json", "--out", tmp_path / "another")
    assert code == 0, said
    assert json.loads(shown)["time"]["preparation_seconds"] > 0


@pytest.mark.parametrize("budget", [[], ["--time-budget", "1m"]])
def test_where_nothing_fits_one_line_says_so(
    stylex: Call,
    command: list[str | Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    budget: list[str],
) -> None:
    without_memory(monkeypatch, lambda _: True)
    code, shown, said = stylex(*command, *budget)
    lines = [line for line in said.splitlines() if line.startswith("stylex:")]
    assert (code, shown, len(lines)) == (2, "", 1), said
    assert "fits this machine's memory; give a smaller --size" in lines[0]
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_that_runs_out_of_memory_says_so(
    stylex: Call, command: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything given there is nothing to choose, only to tell."""
    without_memory(monkeypatch, lambda _: True)
    code, shown, said = stylex(*command, "--recipe", "fast", "--size", "16", "--dry-run")
    assert code == 0, said
    assert "TOO LITTLE" in shown
    assert "not measured" in shown


def test_other_errors_of_a_trial_step_are_not_taken_for_it(
    stylex: Call, command: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> dict[str, Tensor]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "step", broken)
    code, _, said = stylex(*command)
    assert code == 1
    assert "shapes do not match" in said


def test_memory_is_given_back_before_something_smaller_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps the networks of a trial that failed."""
    import weakref

    made: list[weakref.ref[Trainer]] = []

    def failing(self: Trainer) -> dict[str, Tensor]:
        made.append(weakref.ref(self))
        raise RuntimeError(NO_MEMORY)

    monkeypatch.setattr(Trainer, "step", failing)
    recipe = training_problems.recipe("fast")
    config = costs.RunConfig(experiment="test", data="none", classifier="none", resolution=16, recipe=recipe)
    with pytest.raises(costs.OutOfMemory, match="2 images at 16 px ran out of memory"):
        costs.measure_step(
            config, training_problems.images(), training_problems.classifier(), training_problems.HARDWARE
        )
    assert len(made) == 1
    assert made[0]() is None


def test_what_pytorch_says_when_memory_is_short() -> None:
    from stylex.hardware import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
