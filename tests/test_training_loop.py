"""The loop: every recipe trains, whatever interrupts it loses nothing, and what cannot go on says so."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training_problems as problems
from stylex import run as run_module
from stylex.errors import CheckpointError, DataError, RunError, Stopped, TrainingDiverged
from stylex.run import Run, read_tensors
from stylex.training import loop
from stylex.training.loop import TrainingResult, train
from stylex.training.losses import Batch, StylexLoss
from stylex.training.optimisers import parameter_count
from stylex.training.progress import Progress
from stylex.training.schedule import Phase, ema_decay, rate_share
from stylex.training.stability import Trouble

SHORT = ("loss.r1_interval=2", "loss.path_length_interval=2", "loss.path_length_start_kimg=0")
"""So that the regularisers occur in a few steps."""

WARM = ("loss.adversarial_start_kimg=0.02", "loss.adversarial_ramp_kimg=0.01")
"""Five steps of reconstruction alone."""


def begin(path: Path, name: str = "fast", *assignments: str) -> Run:
    more = ("training.accumulate=2",) if name == "vdv" else ()
    return problems.make_run(path, name, [*SHORT, *more, *assignments])


def go(run: Run, on_progress: Callable[[Progress], None] | None = None, **options: Any) -> TrainingResult:
    """Train as a new process would: everything is made anew from the run directory."""
    explained = options.pop("classifier", None) or problems.classifier()
    return train(
        Run.open(run.path),
        options.pop("images", None) or problems.images(),
        explained,
        problems.HARDWARE,
        watch=problems.images(3),
        on_progress=on_progress,
    )


def outcome(run: Run) -> tuple[list[str], str, list[dict[str, Any]]]:
    """Checksums of checkpoints and model, and the metrics without what a clock has to say."""
    checkpoints = [read_tensors(file)[1]["sha256"] for file in run.checkpoint_files()]
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    return checkpoints, read_tensors(run.model_file)[1]["sha256"], lines


def modified(run: Run) -> dict[str, int]:
    """When each file was last written, the lock apart."""
    found = {path.name: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    return {name: time for name, time in found.items() if name != ".lock"}


def interrupt_at(images: int, error: BaseException) -> Callable[[Progress], None]:
    """Raises as soon as so many images have been seen; what has been done since the checkpoint is lost."""

    def look(progress: Progress) -> None:
        if progress.images >= images:
            raise error

    return look


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run of each recipe, from start to end in one go."""
    finished: dict[str, Run] = {}

    def of(name: str) -> Run:
        if name not in finished:
            finished[name] = begin(tmp_path_factory.mktemp(name) / "run", name)
            go(finished[name])
        return finished[name]

    return of


# Every recipe


@pytest.mark.parametrize("name", problems.RECIPES)
def test_every_recipe_trains_two_steps(tmp_path: Path, name: str) -> None:
    trainer = problems.make_trainer(tmp_path / "run", name, ["training.accumulate=1"])
    problems.some_evidence(trainer.state.networks.encoder)
    before = {
        part: [parameter.detach().clone() for parameter in network.parameters()]
        for part, network in trainer.state.networks.parts().items()
    }
    for _ in range(2):
        statistics = trainer.step()
        assert all(math.isfinite(float(value)) for value in statistics.values())
    assert trainer.state.broken() == []
    for part, network in trainer.state.networks.parts().items():
        moved = [
            bool((parameter != old).any())
            for parameter, old in zip(network.parameters(), before[part], strict=True)
        ]
        assert sum(moved) > 0.6 * len(moved), part
    latents = {"fast": {"encoder"}, "evidence": {"encoder"}, "study": {"encoder"}, "stylegan2": {"mapping"}}
    assert set(before) == {"generator", "discriminator"} | latents.get(name, {"encoder", "mapping"})


def test_kinds_and_phases_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str, str]] = []
    monkeypatch.setattr(
        StylexLoss,
        "accumulate_gradients",
        lambda self, phase, batch, gain: seen.append((batch.step, phase.name, batch.kind)),
    )
    trainer = problems.make_trainer(
        tmp_path / "run",
        "stylex",
        ["loss.r1_interval=3", "loss.path_length_interval=2", "loss.path_length_start_kimg=0.008"],
    )
    for _ in range(5):
        trainer.step()
    assert seen == [
        *[(0, phase, "encode") for phase in ("generator", "discriminator", "r1")],
        *[(1, phase, "sample") for phase in ("generator", "discriminator")],
        *[(2, phase, "encode") for phase in ("generator", "path_length", "discriminator")],
        *[(3, phase, "sample") for phase in ("generator", "discriminator", "r1")],
        *[(4, phase, "encode") for phase in ("generator", "path_length", "discriminator")],
    ]


def test_kinds_alternate_within_an_accumulated_update(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "vdv")
    for step in (0, 1):
        trainer.state.step = step
        assert [trainer._batch(part).kind for part in range(8)] == ["encode", "sample"] * 4
    trainer.state.step = 1
    odd = problems.make_trainer(tmp_path / "odd", "vdv", ["training.accumulate=3"])
    assert [odd._batch(part).kind for part in range(3)] == ["encode", "sample", "encode"]
    odd.state.step = 1
    assert [odd._batch(part).kind for part in range(3)] == ["sample", "encode", "sample"]


def test_the_warm_up_encodes_and_leaves_the_discriminator_alone(tmp_path: Path) -> None:
    judged = "loss.adversarial_steps=[encode, sample, swap]"
    trainer = problems.make_trainer(tmp_path / "run", "fast", [*SHORT, *WARM, judged])
    discriminator = trainer.state.networks.discriminator
    before = discriminator.output.weight.detach().clone()
    seen = []
    for _ in range(8):
        seen.append(set(trainer.step()))
        if trainer.state.images == 20:
            assert bool((discriminator.output.weight == before).all())
            assert trainer.state.path_length_mean == 0
    assert bool((discriminator.output.weight != before).any())
    for statistics in seen[:5]:
        assert "encode/kl" in statistics
        assert not {"adversarial", "discriminator", "r1", "path_length"} & statistics
    assert {"adversarial", "discriminator", "swap/kl"} <= seen[5]
    assert {"adversarial", "discriminator", "r1", "path_length", "encode/kl"} <= seen[6]


def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path: Path) -> None:
    """Without what mixes images within a batch (minibatch deviation) or draws for it (noise, swaps)."""
    settings = [
        "training.schedule=[encode]",
        "network.deviation_group=0",
        "loss.path_length=0",
        "loss.r1_interval=1",
        "sparsity.threshold=0",
    ]
    weights, statistics = [], []
    for batch, accumulate in ((8, 1), (4, 2), (2, 4)):
        sizes = [f"training.batch_size={batch}", f"training.accumulate={accumulate}"]
        trainer = problems.make_trainer(tmp_path / str(batch), "fast", [*settings, *sizes])
        trainer.fit_evidence()
        statistics.append({key: float(value) for key, value in trainer.step().items()})
        assert trainer.state.images == 8
        weights.append(trainer.state.tensors())
    for other in (1, 2):
        for key, value in weights[0].items():
            if key.endswith("exp_avg_sq"):  # of the gradients; weights after Adam's first step are mere signs
                torch.testing.assert_close(weights[other][key], value, rtol=1e-3, atol=1e-9)
        assert statistics[other] == pytest.approx(statistics[0], rel=1e-4)


def test_batches_are_mirrored_where_the_recipe_says_so(tmp_path: Path) -> None:
    plain = problems.make_trainer(tmp_path / "plain", "fast", ["training.batch_size=12"])
    mirrored = problems.make_trainer(
        tmp_path / "mirrored", "fast", ["training.batch_size=12", "training.mirror=true"]
    )
    straight, turned = plain._batch(0).images, mirrored._batch(0).images
    flips = mirrored.order.mirrored(0, 12)
    assert 0 < flips.sum() < 12
    for image, other, flip in zip(straight, turned, flips, strict=True):
        assert bool((other == (image.flip(2) if flip else image)).all())


def test_the_classifier_is_frozen_and_unchanged(tmp_path: Path) -> None:
    from stylex.classifiers import Classifier
    from stylex.classifiers.architectures import SmallCNN

    explained = Classifier(SmallCNN(2, (4, 4, 8, 8)).train(), class_names=("a", "b"), input_size=16)
    before = {key: value.clone() for key, value in explained.state_dict().items()}
    settings = ["loss.perceptual_network=none"]  # which would freeze it by itself
    trainer = problems.make_trainer(tmp_path / "run", "fast", settings, classifier=explained)
    for _ in range(2):
        trainer.step()
    assert all(bool((value == before[key]).all()) for key, value in explained.state_dict().items())
    assert not any(module.training for module in explained.modules())
    assert all(parameter.grad is None for parameter in explained.parameters())


# Rates and averages


def test_the_rate_falls_over_the_last_fifth() -> None:
    recipe = problems.recipe("fast", ["training.total_kimg=10", "training.final_learning_rate_share=0.2"])
    expected = {0: 1.0, 8000: 1.0, 9000: 0.6, 10_000: 0.2, 12_000: 0.2}
    for images, share in expected.items():
        assert rate_share(recipe, images) == pytest.approx(share)
    flat = problems.recipe("stylex", ["training.total_kimg=10"])
    assert {rate_share(flat, images) for images in expected} == {1.0}


def test_the_decay_is_a_half_life_in_images() -> None:
    recipe = problems.recipe("fast", ["training.ema_halflife_kimg=1", "training.ema_rampup=0.05"])
    assert ema_decay(recipe, 10**6, 1000) == pytest.approx(0.5)
    assert ema_decay(recipe, 10**6, 10) ** 100 == pytest.approx(0.5)
    assert ema_decay(recipe, 1000, 50) == pytest.approx(0.5)  # ramp-up: 5 % of the images seen
    assert ema_decay(recipe, 0, 10) == 0.0
    steady = problems.recipe("fast", ["training.ema_halflife_kimg=1", "training.ema_rampup=null"])
    assert ema_decay(steady, 1, 1000) == pytest.approx(0.5)
    assert ema_decay(problems.recipe("study"), 1, 4) == pytest.approx(0.5 ** (32 / 10_000))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_averages_follow_the_weights(tmp_path: Path, accumulate: int) -> None:
    settings = ["training.ema_rampup=null", "training.ema_halflife_kimg=0.008"]
    trainer = problems.make_trainer(
        tmp_path / "run", "stylex", [*settings, f"training.accumulate={accumulate}"]
    )
    assert set(trainer.state.averages) == {"generator", "encoder", "mapping"}
    networks = trainer.state.networks
    expected = {
        (name, key): value.clone()
        for name in trainer.state.averages
        for key, value in networks.parts()[name].named_parameters()
    }
    decay = 0.5 ** (4 * accumulate / 8)
    for _ in range(3):
        trainer.step()
        for (name, key), value in expected.items():
            weight = networks.parts()[name].get_parameter(key)
            expected[name, key] = decay * value + (1 - decay) * weight
    for (name, key), value in expected.items():
        torch.testing.assert_close(trainer.state.averages[name].get_parameter(key), value.detach())
    assert networks.mapping is not None
    mean = trainer.state.averages["mapping"].get_buffer("mean_w")
    assert bool((mean == networks.mapping.mean_w).all())
    assert float(mean.abs().max()) > 0


def test_parameter_count() -> None:
    assert parameter_count(torch.nn.Linear(3, 4)) == 16


# Interrupted and continued


def test_killed_in_the_warm_up_and_after_it(tmp_path: Path) -> None:
    whole, run = begin(tmp_path / "whole", "fast", *WARM), begin(tmp_path / "run", "fast", *WARM)
    go(whole)
    for images in (24, 40):
        with pytest.raises(Killed):
            go(run, interrupt_at(images, Killed()))
    go(run)
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize("name", problems.RECIPES)
def test_killed_and_continued_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, name: str, uninterrupted: Callable[[str], Run]
) -> None:
    """Killed twice, each time with steps since the last checkpoint that are lost."""
    run = begin(tmp_path / "run", name)
    for images in (24, 40):
        with pytest.raises(Killed):
            go(run, interrupt_at(images, Killed()))
    result = go(run)
    assert result.images == 40
    assert outcome(run) == outcome(uninterrupted(name))


@pytest.mark.parametrize("name", ["fast", "evidence"])
def test_killed_before_the_first_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, uninterrupted: Callable[[str], Run]
) -> None:
    """What was prepared is kept, and nothing passes for a trained model."""
    run = begin(tmp_path / "run", name)
    with pytest.raises(Killed):
        go(run, interrupt_at(8, Killed()))
    assert [file.name for file in run.checkpoint_files()] == ["step-00000000.safetensors"]
    assert not run.model_file.exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "prepare_evidence", lambda *_: pytest.fail("evidence was looked for again"))
        go(run)
    assert outcome(run) == outcome(uninterrupted(name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_writes_a_checkpoint(
    tmp_path: Path, number: int, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]

    def stop(progress: Progress) -> None:
        if progress.images == 24:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="continues") as caught:
        go(run, stop)
    assert str(run.path) in str(caught.value)
    found = run.newest_checkpoint()
    assert found is not None
    assert found[1]["images"] == 24  # not a step more; and not one of the checkpoints that are due anyway
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers
    go(run)
    assert outcome(run) == outcome(uninterrupted("fast"))


def test_ctrl_c_in_the_first_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    original = loop.Trainer._batch

    def interrupted(self: loop.Trainer, part: int) -> Batch:
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_batch", interrupted)
        with pytest.raises(Stopped, match="step 1 "):
            go(run)
    assert run.checkpoint_files()[-1].name == "step-00000001.safetensors"
    go(run)
    assert outcome(run)[:2] == outcome(uninterrupted("fast"))[:2]


def test_a_stop_in_a_step_that_logs_and_saves_writes_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    original = loop.Trainer.step

    def interrupted(self: loop.Trainer) -> dict[str, torch.Tensor]:
        if self.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", interrupted)
        with pytest.raises(Stopped, match="step 4 "):
            go(run)
    go(run)
    assert outcome(run) == outcome(uninterrupted("fast"))


def test_a_stop_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_samples", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="step 0 "):
            go(run)
    assert not run.model_file.exists()
    go(run)
    assert outcome(run) == outcome(uninterrupted("fast"))


def test_a_second_ctrl_c_interrupts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    original = StylexLoss.accumulate_gradients

    def impatient(self: StylexLoss, phase: Phase, batch: Batch, gain: float) -> None:
        if batch.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        original(self, phase, batch, gain)

    with monkeypatch.context() as patch:
        patch.setattr(StylexLoss, "accumulate_gradients", impatient)
        with pytest.raises(KeyboardInterrupt):
            go(run)
    assert run.checkpoint_files()[-1].name == "step-00000004.safetensors"
    go(run)
    assert outcome(run) == outcome(uninterrupted("fast"))


def test_a_stop_in_the_last_step_finishes(tmp_path: Path, uninterrupted: Callable[[str], Run]) -> None:
    run = begin(tmp_path / "run")

    def stop(progress: Progress) -> None:
        if progress.images == progress.total_images:
            os.kill(os.getpid(), signal.SIGTERM)

    assert go(run, stop).images == 40
    assert outcome(run) == outcome(uninterrupted("fast"))


def test_training_outside_the_main_thread(tmp_path: Path, uninterrupted: Callable[[str], Run]) -> None:
    run = begin(tmp_path / "run")
    results: list[TrainingResult] = []
    thread = threading.Thread(target=lambda: results.append(go(run)))
    thread.start()
    thread.join(60)
    assert results[0].images == 40
    assert outcome(run) == outcome(uninterrupted("fast"))


def test_a_damaged_newest_checkpoint_is_passed_over(
    tmp_path: Path, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    with pytest.raises(Killed):
        go(run, interrupt_at(40, Killed()))
    good, newest = run.checkpoint_files()
    newest.write_bytes(newest.read_bytes()[:-100])
    (run.checkpoints / f".{newest.name}.xyz.partial").write_bytes(b"killed while writing")
    steps = []
    go(run, lambda progress: steps.append(progress.images))
    assert steps[0] == 24  # went on from 16 images, not from 32
    assert outcome(run) == outcome(uninterrupted("fast"))
    assert list(run.checkpoints.glob(".*")) == []
    for file in run.checkpoint_files():
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints can be read"):
        go(run)
    assert good.name < newest.name


def test_one_training_at_a_time(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    with run.locked(), pytest.raises(RunError, match="another process"):
        go(run)


# A finished run


def test_a_finished_run_gives_its_result_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    first = go(run)
    assert first.statistics["l1"] > 0
    before = outcome(run), modified(run)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Trainer", lambda *arguments: pytest.fail("built networks"))
        again = go(run)
    assert (again.step, again.images, again.seconds) == (first.step, first.images, first.seconds)
    assert again.statistics == pytest.approx(first.statistics, rel=1e-5)
    assert (outcome(run), modified(run)) == before
    with pytest.raises(RunError, match="another classifier"):
        go(run, classifier=problems.classifier(seed=1))


@pytest.mark.parametrize("spoil", ["missing", "damaged", "older"])
def test_a_finished_run_has_a_model_whatever_happened(
    tmp_path: Path, spoil: str, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    result = go(run)
    tensors, header = read_tensors(run.model_file)
    run.model_file.unlink()
    if spoil == "damaged":
        run.model_file.write_bytes(b"half")
    elif spoil == "older":
        run_module.write_tensors(run.model_file, tensors, header | {"step": 1})
    lines = run.metrics_file.read_text()
    again = go(run)
    assert again.statistics == pytest.approx(result.statistics, rel=1e-5)
    assert outcome(run) == outcome(uninterrupted("fast"))
    assert run.metrics_file.read_text() == lines


# What cannot be trained


def test_images_that_do_not_fit_the_run(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    with pytest.raises(DataError, match=r"32 × 32 pixels, the run's resolution is 16; load them"):
        go(run, images=problems.images(resolution=32))
    with pytest.raises(DataError, match="at least 2"):
        go(run, images=problems.images(1))
    with pytest.raises(DataError, match="watched images"):
        train(
            run,
            problems.images(),
            problems.classifier(),
            problems.HARDWARE,
            watch=problems.images(2, resolution=8),
        )
    assert run.checkpoint_files() == []


def test_a_run_whose_networks_were_changed(tmp_path: Path) -> None:
    from stylex.config import dump_yaml

    run = begin(tmp_path / "run")
    with pytest.raises(Killed):
        go(run, interrupt_at(24, Killed()))
    changed = run.config.model_copy(update={"recipe": problems.recipe("fast", ["network.channel_max=4"])})
    run.config_file.write_text(dump_yaml(changed))
    with pytest.raises(CheckpointError, match=r"network\.channel_max 8, now 4"):
        go(run)


# Divergence


@pytest.mark.parametrize("noticed", ["at the log", "at the checkpoint"])
def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    noticed: str,
    uninterrupted: Callable[[str], Run],
) -> None:
    run = begin(tmp_path / "run", "fast", f"training.log_kimg={0.008 if noticed == 'at the log' else 1}")
    original = StylexLoss._generator

    def poisoned(self: StylexLoss, batch: Batch) -> Tensor:
        loss = original(self, batch)
        if batch.step == 4:
            loss = loss * math.nan
            batch.statistics["l1"] = loss.detach()
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(StylexLoss, "_generator", poisoned)
        with pytest.raises(TrainingDiverged) as caught:
            go(run)
    message = str(caught.value)
    assert "l1" in message
    assert "not finite at step 5;" in message  # the fifth step, number 4 from 0
    assert "checkpoint of step 4 is good" in message
    assert "\n" not in message
    assert run.checkpoint_files()[-1].name == "step-00000004.safetensors"
    assert "halved already, after step 5" in message
    assert read_tensors(run.model_file)[1]["step"] == 4
    assert go(run).images == 40
    assert outcome(run)[:2] != outcome(uninterrupted("fast"))[:2]  # the rate stays halved


@pytest.mark.parametrize("where", ["weight", "average", "moment"])
def test_no_checkpoint_is_written_with_a_number_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Also where no loss has noticed yet."""
    run = begin(tmp_path / "run")
    original = loop.Trainer._average

    def poisoned(self: loop.Trainer) -> None:
        original(self)
        if self.state.step == 8:
            weight = self.parameters["discriminator"][-1]
            tensors = {
                "weight": weight.data,
                "average": self.state.averages["encoder"].get_parameter("output.bias").data,
                "moment": self.state.optimisers["discriminator"].state[weight]["exp_avg_sq"],
            }
            tensors[where].fill_(math.inf)

    monkeypatch.setattr(loop.Trainer, "_average", poisoned)
    with pytest.raises(TrainingDiverged, match="not finite at step 8; the checkpoint of step 4 is good"):
        go(run)
    assert run.checkpoint_files()[-1].name == "step-00000004.safetensors"


def test_divergence_before_the_first_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a way back to the start, once, with half the rate."""
    run = begin(tmp_path / "run")
    original, times = StylexLoss._discriminator, [0]

    def poisoned(self: StylexLoss, batch: Batch) -> Tensor:
        times[0] += batch.step == 1
        return original(self, batch) * (math.inf if times[0] == 1 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(StylexLoss, "_discriminator", poisoned)
        assert go(run).images == 40
    (event,) = run_module.read_json(run.path / "stability.json")["returns"]
    assert (event["returned_to"], event["step"] <= 4) == (0, True)

    other = begin(tmp_path / "other")
    monkeypatch.setattr(StylexLoss, "_discriminator", lambda self, batch: original(self, batch) * math.inf)
    with pytest.raises(TrainingDiverged, match=r"the checkpoint of step 0 is good and was kept.* halved"):
        go(other)
    assert [file.name for file in other.checkpoint_files()] == ["step-00000000.safetensors"]
    assert not other.model_file.exists()


def test_weights_that_are_broken_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run")

    def broken(self: loop.Trainer, *_: object) -> None:
        next(self.state.networks.discriminator.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(loop.Trainer, "fit_evidence", broken)
    with pytest.raises(TrainingDiverged, match="not finite at step 0; no checkpoint had been written yet"):
        go(run)
    assert run.checkpoint_files() == []


def test_a_return_to_the_start_takes_the_model_away(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast")
    trainer._begin()
    trainer.step()
    trainer.stability.record.failed_checks = 1
    trainer._save()
    assert read_tensors(trainer.run.model_file)[1]["step"] == 1
    trainer._return(Trouble(1, "l1 not finite"))
    assert trainer.state.step == 0
    assert not trainer.run.model_file.exists()


# A full disk


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], Run]
) -> None:
    run = begin(tmp_path / "run")
    original = os.fsync
    before: dict[str, bytes] = {}

    def full(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        if "step-00000008" in target:
            before.update({file.name: file.read_bytes() for file in run.checkpoint_files()})
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            go(run)
    kept = {file.name: file.read_bytes() for file in run.checkpoints.iterdir()}
    assert kept.pop("best.safetensors") == before["step-00000004.safetensors"]
    assert kept == before
    assert list(before) == ["step-00000000.safetensors", "step-00000004.safetensors"]
    assert list(run.path.rglob(".*.partial")) == []
    go(run)
    assert outcome(run) == outcome(uninterrupted("fast"))


# What one sees


def test_progress_is_reported(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    seen: list[Progress] = []
    result = go(run, seen.append)
    assert [progress.images for progress in seen] == [8, 16, 24, 32, 40]
    assert {progress.total_images for progress in seen} == {40}
    assert all(progress.images_per_second > 0 for progress in seen)
    for progress in seen:
        left = (40 - progress.images) / progress.images_per_second
        assert progress.seconds_left == pytest.approx(left)
    assert result.statistics == seen[-1].statistics
    assert {"adversarial", "l1", "perceptual", "encode/agreement", "swap/kl", "path_length"} <= set(
        result.statistics
    )
    names = {file.name for file in (run.path / "samples").iterdir()}
    assert names == {"000000.png"}  # every sample so far is of less than a thousand images
    assert any((run.path / "tensorboard").iterdir())
