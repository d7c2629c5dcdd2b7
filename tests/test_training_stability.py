"""Trouble is noticed; training returns once with half the rate, the second time it stops in clear words."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import training_problems as problems
from stylex.errors import TrainingDiverged
from stylex.run import Run, read_tensors
from stylex.training import stability
from stylex.training.loop import Trainer, TrainingResult
from stylex.training.losses import Batch, StylexLoss
from stylex.training.stability import HealthRecord, LossWatch, measure_health


def go(run: Run) -> TrainingResult:
    return problems.train_on(run, 6)


def poison(monkeypatch: pytest.MonkeyPatch, bad: Callable[[Batch], bool], factor: float = math.nan) -> None:
    """Generator losses that are `factor` times what they are, where `bad` says so."""
    original = StylexLoss._generator

    def poisoned(self: StylexLoss, batch: Batch) -> Tensor:
        loss = original(self, batch)
        if bad(batch):
            loss = loss * factor
            batch.statistics["l1"] = loss.detach()
        return loss

    monkeypatch.setattr(StylexLoss, "_generator", poisoned)


def test_after_trouble_training_goes_on_with_half_the_rate_and_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = problems.make_run(tmp_path / "run", "stylex")
    times: list[int] = []
    rates: list[tuple[int, float, float]] = []

    def first_time(batch: Batch) -> bool:
        if batch.step == 5:
            times.append(5)
        return batch.step == 5 and len(times) == 1

    poison(monkeypatch, first_time)
    step = Trainer.step

    def noting(self: Trainer) -> dict[str, Tensor]:
        draw = float(self._batch(0).random.uniform(1))
        result = step(self)
        rates.append((self.state.step, self.state.optimisers["generator"].param_groups[0]["lr"], draw))
        return result

    monkeypatch.setattr(Trainer, "step", noting)
    with caplog.at_level(logging.WARNING):
        assert go(run).images == 40
    again = [(rate, draw) for number, rate, draw in rates if number == 6]
    assert len(again) == 2
    assert again[1][0] == pytest.approx(again[0][0] / 2)
    assert again[1][1] != again[0][1]
    assert "returned to the checkpoint of step 4, going on with half the learning rate" in caplog.text
    kept = json.loads((run.path / "stability.json").read_text())
    assert kept["returns"] == [{"step": 6, "cause": "l1 not finite", "returned_to": 4}]
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    shares = {line["step"]: line.get("health/learning_rate_share") for line in lines}
    assert shares == {2: None, 4: None, 6: 0.5, 8: 0.5, 10: 0.5}


def test_a_run_that_returned_is_continued_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for name, kill in (("whole", False), ("killed", True)):
        run = problems.make_run(tmp_path / name, "stylex")
        times: list[int] = []

        def bad(batch: Batch, times: list[int] = times, kill: bool = kill) -> bool:
            if batch.step == 5:
                times.append(5)
            if kill and batch.step == 7 and len(times) == 2:
                times.append(7)
                raise KeyboardInterrupt
            return batch.step == 5 and len(times) == 1

        with monkeypatch.context() as patch:
            poison(patch, bad)
            if kill:
                with pytest.raises(KeyboardInterrupt):
                    go(run)
            go(run)
        results.append(read_tensors(run.model_file)[1]["sha256"])
    assert results[0] == results[1]


def test_the_second_time_it_stops_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = problems.make_run(tmp_path / "run", "fast")
    poison(monkeypatch, lambda batch: batch.step >= 5)
    with pytest.raises(TrainingDiverged) as caught:
        go(run)
    message = str(caught.value)
    assert "l1 not finite at step 6; the checkpoint of step 4 is good and was kept" in message
    assert "halved already, after step 6 (l1 not finite)" in message
    found = run.newest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 4
    assert read_tensors(run.model_file)[1]["step"] == 4


# Losses against their median


def test_a_loss_that_stays_far_over_its_median_is_trouble() -> None:
    watch = LossWatch()
    for number in range(20):
        assert watch.add({"l1": 0.1 + 0.01 * (number % 3), "discriminator": 1.2}) is None
    assert watch.add({"l1": 0.5}) is None
    assert watch.suspects
    assert watch.add({"l1": 0.12}) is None  # one line over the limit is noise
    assert not watch.suspects
    assert watch.add({"l1": 0.5}) is None
    assert watch.add({"discriminator": 1.0}) is None
    assert watch.add({"l1": 0.6}) is None
    cause = watch.add({"l1": 0.7})
    assert cause is not None
    assert "l1 was 0.7, over 3 times its running median of 0.11" in cause


def test_slow_growth_and_a_rough_start_are_no_trouble() -> None:
    watch = LossWatch()
    value = 0.05
    for _ in range(200):
        value *= 1.02
        assert watch.add({"l1": value}) is None
    fresh = LossWatch()
    for value in (0.01, 5.0, 5.0, 5.0, 5.0):
        assert fresh.add({"l1": value}) is None


def test_an_explosion_returns_to_a_checkpoint_from_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those written while losses were already over their limit do not count as good."""
    settings = ["training.log_kimg=0.004", "training.checkpoint_kimg=0.004", "training.total_kimg=0.08"]
    run = problems.make_run(tmp_path / "run", "study", settings)
    times: list[int] = []

    def bad(batch: Batch) -> bool:
        times.append(batch.step)
        return batch.step >= 14 and times.count(14) < 2

    poison(monkeypatch, bad, 1e4)
    go(run)
    (event,) = json.loads((run.path / "stability.json").read_text())["returns"]
    assert event["cause"].startswith("l1 was")
    assert (event["step"], event["returned_to"]) == (17, 14)


# Encoder and reconstructions


def measured(trainer: Trainer, count: int = 12) -> dict[str, float]:
    images = problems.images(count).batch(range(count))
    told = trainer.recipe.network.condition
    found = measure_health(trainer.state, images, trainer.classifier, told)
    return {key: float(value) for key, value in found.items()}


def test_health_of_known_reconstructions(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast")
    images = problems.images(12).batch(range(12))

    class Perfect(torch.nn.Module):
        def forward(self, latents: Tensor) -> Tensor:
            return images

    class Constant(torch.nn.Module):
        def forward(self, latents: Tensor) -> Tensor:
            return images.median(dim=0, keepdim=True).values.expand_as(images)

    trainer.state.averages["generator"] = Perfect()
    found = measured(trainer)
    assert found["health/l1"] == found["health/l1_share"] == 0
    assert found["health/agreement"] == found["health/agreement_over_chance"] == 1
    encoder = trainer.state.averages["encoder"]
    assert found["health/encoder_variance"] == pytest.approx(float(encoder(images).var(dim=0).mean()))
    trainer.state.averages["generator"] = Constant()
    found = measured(trainer)
    assert found["health/l1_share"] == pytest.approx(1)
    assert found["health/agreement_over_chance"] == pytest.approx(0, abs=1e-6)
    encoder.get_parameter("output.weight").data.zero_()
    assert measured(trainer)["health/encoder_variance"] == 0
    del trainer.state.averages["encoder"]
    assert measured(trainer) == {}


GOOD = {
    "health/l1_share": 0.3,
    "health/agreement_over_chance": 0.9,
    "health/encoder_variance": 1.0,
}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"health/l1_share": 1.1}, "no better than one constant image"),
        ({"health/agreement_over_chance": 0.0}, "fallen to chance"),
        ({"health/encoder_variance": 1e-4, "health/l1_share": 1.0}, "nearly the same latent"),
    ],
)
def test_what_was_there_and_has_gone_is_trouble(now: dict[str, float], words: str) -> None:
    record = HealthRecord(variance_at_start=1.0)
    assert record.failures(GOOD, 0.5) == ([], [])
    record.add(GOOD)
    wrong, _ = record.failures(GOOD | now, 0.5)
    assert any(words in text for text in wrong)
    fresh, notable = HealthRecord(variance_at_start=1.0).failures(GOOD | now, 0.01)
    assert bool(fresh) == ("health/encoder_variance" in now)
    assert not notable
    assert HealthRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_an_encoder_that_collapses_is_noticed_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One latent for everything from step 6 on: twice so at a check, then back, then the end."""
    run = problems.make_run(tmp_path / "run", "fast", ["training.total_kimg=0.1"])
    average = Trainer._average

    def collapsing(self: Trainer) -> None:
        average(self)
        if self.state.step >= 6:
            for part in (self.state.averages["encoder"], self.state.networks.encoder):
                assert part is not None
                part.get_parameter("output.weight").data.zero_()

    monkeypatch.setattr(Trainer, "_average", collapsing)
    monkeypatch.setattr(stability, "measure_health", with_useless_reconstructions(stability.measure_health))
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingDiverged) as caught:
        go(run)
    assert "the encoder gives nearly the same latent for every image" in str(caught.value)
    assert "at step 12; the checkpoint of step 4 is good" in str(caught.value)  # 8 and 12 failed
    warnings = [record.getMessage() for record in caplog.records]
    latent = [text for text in warnings if "same latent" in text and "returned" not in text]
    assert len(latent) == 1  # warned once, though it was seen four times
    assert latent[0].endswith("at step 8")


def with_useless_reconstructions(
    original: Callable[..., dict[str, Tensor]],
) -> Callable[..., dict[str, Tensor]]:
    """As the tiny networks' are from the start: no better than a constant image."""

    def measure(*arguments: object) -> dict[str, Tensor]:
        found = original(*arguments)
        found["health/l1_share"] = torch.tensor(1.5)
        found.pop("health/agreement_over_chance", None)
        return found

    return measure


def test_checks_are_logged_and_the_best_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By agreement, then by L1: of the three that agree with 0.75, step 12 has the least L1."""
    run = problems.make_run(tmp_path / "run", "fast", ["training.total_kimg=0.08"])
    given = {0: (0.5, 1.0), 4: (0.5, 0.1), 8: (0.75, 0.5), 12: (0.75, 0.3), 16: (0.75, 0.4), 20: (0.5, 0.1)}

    def measure(state: object, *_: object) -> dict[str, Tensor]:
        agreement, l1 = given[state.step]  # type: ignore[attr-defined]
        values = GOOD | {"health/agreement": agreement, "health/l1": l1}
        return {key: torch.tensor(value) for key, value in values.items()}

    monkeypatch.setattr(stability, "measure_health", measure)
    go(run)
    best = run.checkpoints / "best.safetensors"
    assert read_tensors(best)[1]["step"] == 12
    assert [file.name for file in run.checkpoint_files()] == [
        "step-00000016.safetensors",
        "step-00000020.safetensors",
    ]
    assert list(run.checkpoints.glob(".*")) == []
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    logged = {line["step"]: line["health/l1"] for line in lines if "health/l1" in line}
    assert logged == {step: l1 for step, (_, l1) in given.items() if step}


def test_the_best_is_copied_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old")

    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(stability.os, "link", refused)
    stability._duplicate(source, target)
    assert target.read_bytes() == b"new"
    monkeypatch.undo()
    for _ in range(2):  # also when both are one file already
        stability._duplicate(source, target)
        assert target.samefile(source)
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_killed_before_the_best_got_its_name(tmp_path: Path) -> None:
    run = problems.make_run(tmp_path / "run", "fast", ["training.total_kimg=0.016"])
    go(run)
    best = run.checkpoints / "best.safetensors"
    best.unlink()
    trainer = Trainer(run, problems.images(), problems.classifier(), problems.HARDWARE, problems.images(6))
    trainer.resume()
    assert read_tensors(best)[1]["step"] == 4


def three_checkpoints(path: Path) -> Trainer:
    """Of steps 1 to 3, the first the best, the others written under suspicion."""
    trainer = problems.make_trainer(path, "fast", ["training.keep_checkpoints=1"])
    for _ in range(3):
        trainer.step()
        trainer.stability.record.best_step = 1
        trainer._save()
        trainer.stability.record.failed_checks = 1
    return trainer


@pytest.mark.parametrize("only_best_is_left", [False, True])
def test_the_way_back_leads_past_suspects_and_clears_them_away(
    tmp_path: Path, only_best_is_left: bool
) -> None:
    trainer = three_checkpoints(tmp_path / "run")
    names = [f"step-0000000{step}.safetensors" for step in (1, 2, 3)]
    assert [file.name for file in trainer.run.checkpoint_files()] == names
    if only_best_is_left:
        (trainer.run.checkpoints / names[0]).unlink()
    found = trainer.stability.last_good()
    assert found is not None
    assert (found[1]["step"], found[2].name) == (1, names[0])
    assert [file.name for file in trainer.run.checkpoint_files()] == names[:1]
    assert trainer.stability.best_file.exists()


def test_the_model_goes_back_too(tmp_path: Path) -> None:
    trainer = three_checkpoints(tmp_path / "run")
    assert read_tensors(trainer.run.model_file)[1]["step"] == 3
    trainer._return(stability.Trouble(3, "l1 not finite"))
    assert trainer.state.step == 1
    assert read_tensors(trainer.run.model_file)[1]["step"] == 1


def test_nothing_is_the_best_while_losses_are_suspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast")
    good = GOOD | {"health/agreement": 1.0, "health/l1": 0.1}
    monkeypatch.setattr(
        stability, "measure_health", lambda *_: {key: torch.tensor(value) for key, value in good.items()}
    )
    watch = trainer.stability
    for value in [0.1] * 10 + [0.9]:
        watch.losses.add({"l1": value})
    watch.check(trainer.state, 0.5)
    assert watch.record.best_step is None
    watch.losses.add({"l1": 0.1})
    watch.check(trainer.state, 0.5)
    assert watch.record.best_step == 0


def test_a_continued_run_remembers_its_losses(tmp_path: Path) -> None:
    run = problems.make_run(tmp_path / "run", "fast")
    go(run)
    trainer = Trainer(run, problems.images(), problems.classifier(), problems.HARDWARE, problems.images(6))
    trainer.resume()
    lines = [json.loads(line)["l1"] for line in run.metrics_file.read_text().splitlines()]
    assert len(lines) == 5
    assert list(trainer.stability.losses._history["l1"]) == lines
