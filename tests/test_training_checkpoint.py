"""Checkpoints: everything comes back, in the same memory layout, and what does not belong is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import training_problems as problems
from stylex.config import dump_yaml
from stylex.errors import CheckpointError, RunError
from stylex.model import read_model
from stylex.run import Run, read_tensors, write_tensors
from stylex.training.checkpoint import (
    check_same_run,
    classifier_fingerprint,
    model_step,
    save_model,
    section,
)
from stylex.training.loop import Trainer


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    trainer = problems.make_trainer(tmp_path / "run", "stylex", ["loss.path_length_interval=2"])
    for _ in range(2):
        trainer.step()
    return trainer


def again(trainer: Trainer) -> Trainer:
    """Another trainer of the same run, with networks of its own."""
    return Trainer(
        Run.open(trainer.run.path),
        problems.images(),
        problems.classifier(),
        problems.HARDWARE,
        problems.images(3),
    )


def test_everything_comes_back(trainer: Trainer) -> None:
    trainer.state.seconds = 12.5
    file = trainer.state.save(trainer.run, 2)
    assert file.name == "step-00000002.safetensors"
    other = again(trainer)
    other.resume()
    assert (other.state.step, other.state.images, other.state.seconds) == (2, 8, 12.5)
    before, after = trainer.state.tensors(), other.state.tensors()
    assert set(before) == set(after)
    kinds = {key.partition("/")[0] for key in before}
    assert kinds == {"network", "average", "optimiser", "path_length_mean"}
    for key, value in before.items():
        assert bool((after[key] == value).all()), key


def test_adams_moments_have_the_layout_of_their_weights(trainer: Trainer) -> None:
    """A file keeps no memory layout, and the fused Adam walks through memory: others would be mixed up."""
    trainer.state.save(trainer.run, 2)
    other = again(trainer)
    other.resume()
    seen = 0
    for optimiser in other.state.optimisers.values():
        for parameter, entry in optimiser.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                assert entry[key].stride() == parameter.stride()
                seen += parameter.dim() == 4 and not parameter.is_contiguous()
    assert seen > 10


def test_the_step_after_is_the_same(trainer: Trainer) -> None:
    trainer.state.save(trainer.run, 2)
    other = again(trainer)
    other.resume()
    trainer.step()
    other.step()
    for key, value in trainer.state.tensors().items():
        assert bool((other.state.tensors()[key] == value).all()), key


def test_only_the_newest_are_kept(trainer: Trainer) -> None:
    for step in range(1, 6):
        trainer.state.step = step
        trainer.state.save(trainer.run, 2)
    assert [file.name for file in trainer.run.checkpoint_files()] == [
        "step-00000004.safetensors",
        "step-00000005.safetensors",
    ]


def test_damaged_newer_checkpoints_do_not_count_as_kept(trainer: Trainer) -> None:
    trainer.state.save(trainer.run, 1)
    damaged = trainer.run.checkpoints / "step-00000099.safetensors"
    damaged.write_bytes(b"cut short")
    other = again(trainer)
    other.resume()
    assert other.state.step == 2
    assert damaged.with_suffix(".damaged").read_bytes() == b"cut short"
    other.step()
    other.state.save(other.run, 1)
    assert [file.name for file in other.run.checkpoint_files()] == ["step-00000003.safetensors"]


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("network.channel_max=4", "network.channel_max 8, now 4"),
        ("network.deviation_group=2", "network.deviation_group 4, now 2"),
        ("training.schedule=[encode]", "mapping True, now False"),
    ],
)
def test_a_checkpoint_of_other_networks_is_refused(trainer: Trainer, assignment: str, named: str) -> None:
    """Also where the shapes would fit."""
    trainer.state.save(trainer.run, 2)
    changed = trainer.run.config.model_copy(update={"recipe": problems.recipe("stylex", [assignment])})
    trainer.run.config_file.write_text(dump_yaml(changed))
    with pytest.raises(CheckpointError) as caught:
        again(trainer).resume()
    assert named in str(caught.value)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_settings_may_change(trainer: Trainer) -> None:
    trainer.state.save(trainer.run, 2)
    recipe = problems.recipe("stylex", ["training.total_kimg=9", "training.learning_rate=0.001", "loss.l1=3"])
    changed = trainer.run.config.model_copy(update={"recipe": recipe})
    trainer.run.config_file.write_text(dump_yaml(changed))
    other = again(trainer)
    other.resume()
    assert other.state.step == 2


def test_another_resolution_is_refused(trainer: Trainer) -> None:
    header = {"config": trainer.run.config.model_dump(mode="json") | {"resolution": 32}}
    with pytest.raises(CheckpointError, match="resolution 32, now 16"):
        check_same_run(header, trainer.run, trainer.classifier, Path("file"))


@pytest.mark.parametrize("header", [{}, {"config": None}, {"config": {"speed": 3}}])
def test_a_checkpoint_without_a_config_is_refused(trainer: Trainer, header: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="no config that this stylex understands"):
        check_same_run(header, trainer.run, trainer.classifier, Path("file"))


def test_another_classifier_is_refused(trainer: Trainer) -> None:
    trainer.state.save(trainer.run, 2, trainer.keeper.fingerprint)
    other = Trainer(
        trainer.run, problems.images(), problems.classifier(seed=1), problems.HARDWARE, problems.images(3)
    )
    with pytest.raises(RunError, match="another classifier"):
        other.resume()
    again(trainer).resume()


def test_a_function_as_classifier_has_no_fingerprint() -> None:
    from stylex.classifiers import Classifier

    function = Classifier(nn.Flatten(), class_names=("a", "b"), input_size=None)
    assert classifier_fingerprint(function) is None
    assert classifier_fingerprint(problems.classifier()) is not None


@pytest.mark.parametrize("spoil", ["missing", "shape", "step", "optimiser"])
def test_a_file_that_does_not_fit_is_one_line(trainer: Trainer, spoil: str) -> None:
    file = trainer.state.save(trainer.run, 2)
    tensors, header = read_tensors(file)
    if spoil == "missing":
        del tensors["network/generator/affine_bias"]
    elif spoil == "shape":
        tensors["average/encoder/output.bias"] = torch.zeros(1)
    elif spoil == "step":
        del header["step"]
    else:
        tensors["optimiser/generator/x/step"] = torch.zeros(())
    write_tensors(file, tensors, header)
    with pytest.raises(CheckpointError, match=r"step-00000002\.safetensors: does not fit") as caught:
        again(trainer).resume()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_numbers_are_found_wherever_they_are(trainer: Trainer, value: float) -> None:
    assert trainer.state.broken() == []
    for key in ("network/discriminator/output.bias", "average/generator/affine_bias", "path_length_mean"):
        tensor = trainer.state.tensors()[key]
        flat = tensor.data.view(-1)
        before = float(flat[0])
        flat[0] = value
        assert trainer.state.broken() == [key]
        flat[0] = before
    optimiser = trainer.state.optimisers["generator"]
    optimiser.state[trainer.parameters["generator"][0]]["exp_avg_sq"].view(-1)[0] = value
    assert trainer.state.broken() == ["optimiser/generator/0/exp_avg_sq"]


def test_the_model_file_holds_the_averages_and_opens(trainer: Trainer) -> None:
    assert model_step(trainer.run) is None
    save_model(trainer.run, trainer.state, ("a", "b"))
    assert model_step(trainer.run) == 2
    tensors, header = read_tensors(trainer.run.model_file)
    assert header["class_names"] == ["a", "b"]
    for name, part in trainer.state.averages.items():
        for key, value in part.state_dict().items():
            assert bool((section(tensors, f"{name}/")[key] == value).all())
    live = trainer.state.networks.generator.affine_bias
    assert bool((section(tensors, "generator/")["affine_bias"] != live).any())
    model = read_model(trainer.run.model_file, problems.classifier(), problems.HARDWARE)
    latents, logits = model.encode(problems.images().batch(range(2)))
    assert model.synthesise(model.styles(latents)).shape == (2, 3, 16, 16)
    assert logits.shape == (2, 2)
    trainer.run.model_file.write_bytes(b"")
    assert model_step(trainer.run) is None


def test_a_model_opens_with_the_classifier_it_was_trained_around(trainer: Trainer) -> None:
    explained = problems.classifier()
    save_model(trainer.run, trainer.state, ("a", "b"), explained.fingerprint)
    read_model(trainer.run.model_file, explained, problems.HARDWARE)
    with pytest.raises(CheckpointError, match="another classifier of the same classes"):
        read_model(trainer.run.model_file, problems.classifier(seed=1), problems.HARDWARE)


def test_other_images_do_not_go_unnoticed(trainer: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    trainer._save()
    again(trainer).resume()
    assert not caplog.records
    more = Trainer(
        trainer.run, problems.images(13), problems.classifier(), problems.HARDWARE, problems.images(3)
    )
    more.resume()
    assert "other training images than before (13 now)" in caplog.text
