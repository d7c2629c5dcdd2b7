"""A run that begins with another's weights, for a classifier of the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import problems as models
import training_problems as problems
from stylex.config import changed
from stylex.data import Dataset
from stylex.errors import CheckpointError, ConfigError, RunError
from stylex.networks import build
from stylex.run import Run, read_json, read_tensors, write_json
from stylex.training.loop import train
from stylex.training.origin import Origin, adopt, check_same_origin, read_origin
from stylex.training.setup import Request, create_run


def pictures() -> Dataset:
    images = problems.images()
    return Dataset("pictures", images, images, images, "fingerprint", ())


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    models.save_tiny_run(tmp_path / "old", models.tiny_model(), "pictures")
    return read_origin(tmp_path / "old")


def test_a_new_run_begins_with_the_weights_and_trains_on(origin: Origin, tmp_path: Path) -> None:
    request = Request(classifier="new", origin=origin)
    config = request.settings(tmp_path / "new")
    assert (config.data, config.resolution, config.classifier) == ("pictures", 16, "new")
    assert config.recipe.loss.adversarial_start_kimg == 0
    other = problems.classifier(seed=5)
    run = create_run(tmp_path / "new", config, pictures(), other, problems.HARDWARE, origin)
    tensors, header = read_tensors(run.checkpoint_files()[0])
    assert (header["step"], header["images"]) == (0, 0)
    for key, value in origin.tensors.items():
        assert torch.equal(tensors[f"network/{key}"], value)
        if not key.startswith("discriminator/"):
            assert torch.equal(tensors[f"average/{key}"], value)
    assert tensors["path_length_mean"] > 0
    about = read_json(run.path / "run.json")["from"]
    assert about["run"] == str(origin.path.resolve())
    assert about["sha256"] == read_tensors(origin.path / "model.safetensors")[1]["sha256"]
    done = train(Run.open(run.path), problems.images(), other, problems.HARDWARE)
    assert done.images == 40


def test_the_warm_up_can_be_had_again(origin: Origin, tmp_path: Path) -> None:
    request = Request(
        classifier="new",
        origin=origin,
        assignments=["loss.adversarial_start_kimg=3", "training.batch_size=2"],
    )
    recipe = request.settings(tmp_path / "new").recipe
    assert (recipe.loss.adversarial_start_kimg, recipe.training.batch_size) == (3, 2)
    assert request.fixed() >= {"resolution", "network.channel_max", "training.batch_size"}


def test_a_trained_generator_waits_for_nothing(origin: Origin, tmp_path: Path) -> None:
    """Adversarial steps, path length and sparsity begin with the first image, unless the user says when."""
    recipe = changed(
        origin.config.recipe,
        {
            "loss.adversarial_start_kimg": 3,
            "loss.path_length_start_kimg": 0,
            "sparsity.start_kimg": 7,
            "sparsity.ramp_kimg": 2,
        },
    )
    waiting = replace(origin, config=origin.config.model_copy(update={"recipe": recipe}))
    request = Request(classifier="new", origin=waiting)
    chosen = request.settings(tmp_path / "new").recipe
    assert (chosen.loss.adversarial_start_kimg, chosen.sparsity.start_kimg) == (0, 0)
    assert chosen.sparsity.ramp_kimg == 2
    (reason,) = request.reasons()
    assert "loss.adversarial_start_kimg 0, sparsity.start_kimg 0: " in reason
    assert "path_length" not in reason  # nothing was changed there
    own = Request(classifier="new", origin=waiting, assignments=["sparsity.start_kimg=5"])
    assert own.settings(tmp_path / "new").recipe.sparsity.start_kimg == 5
    assert "sparsity" not in own.reasons()[0]
    late = Request(classifier="new", origin=waiting, recipe="vdv")
    assert late._recipe(None)["sparsity"]["exclusive"] == 0  # told the class
    assert "loss.path_length_start_kimg 0" in late.reasons()[0]
    assert Request(data="d", classifier="new").reasons() == ()


def test_an_origin_knows_its_images(tmp_path: Path) -> None:
    config, classifier = Request("d", "c").settings(tmp_path / "run"), problems.classifier()
    config = config.model_copy(update={"recipe": problems.recipe("fast"), "resolution": problems.RESOLUTION})
    run = create_run(tmp_path / "run", config, pictures(), classifier, problems.HARDWARE)
    problems.train_on(run)
    origin = read_origin(run.path)
    assert not origin.other_images("fingerprint")
    assert origin.other_images("another")
    about = read_json(run.path / "run.json")
    del about["hashes"]
    write_json(run.path / "run.json", about)
    assert not read_origin(run.path).other_images("another")


def test_other_classes_start_afresh_and_the_rest_keeps_its_effect(origin: Origin) -> None:
    config = origin.config
    networks = build(config.recipe, 16, 3, seed=9)
    fresh = {key: value.clone() for key, value in networks.discriminator.state_dict().items()}
    adopt(networks, origin, 2, sums_to_one=True)
    old = build(config.recipe, 16, 2)
    adopt(old, origin, 2, sums_to_one=True)
    assert torch.equal(old.generator.affine_weight, origin.tensors["generator/affine_weight"])
    latents = torch.randn(5, 8)
    without = [torch.cat([latents, torch.zeros(5, classes)], dim=1) for classes in (2, 3)]
    torch.testing.assert_close(networks.generator.styles(without[1]), old.generator.styles(without[0]))
    weight = networks.discriminator.state_dict()["output.weight"]
    assert torch.equal(weight[0], origin.tensors["discriminator/output.weight"][0])
    assert torch.equal(weight[1:], fresh["output.weight"][1:])


def test_what_cannot_be_a_start_is_one_line(origin: Origin, tmp_path: Path) -> None:
    wider = Request(classifier="new", origin=origin, assignments=["network.channel_max=4"])
    with pytest.raises(CheckpointError, match=r"network\.channel_max is 8 there, 4 here") as raised:
        wider.settings(tmp_path / "new")
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="resolution is 16 there, 32 here"):
        Request(classifier="new", origin=origin, size=32).settings(tmp_path / "new")
    with pytest.raises(ConfigError, match="needs --data and --classifier"):
        Request(origin=origin).settings(tmp_path / "new")
    problems.make_run(tmp_path / "raw", "fast")
    with pytest.raises(RunError, match="no trained model to start from"):
        read_origin(tmp_path / "raw")


def test_a_start_that_was_interrupted_starts_again(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stylex.training.setup.write_start", dies)
    config = Request(classifier="new", origin=origin).settings(tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        create_run(tmp_path / "new", config, pictures(), problems.classifier(), problems.HARDWARE, origin)
    monkeypatch.undo()
    run = create_run(tmp_path / "new", config, pictures(), problems.classifier(), problems.HARDWARE, origin)
    assert run.newest_checkpoint() is not None


def test_evidence_of_another_classifier_is_found_anew(tmp_path: Path) -> None:
    run = problems.make_run(tmp_path / "run", "evidence")  # four components a class: 8, then 12
    problems.train_on(run)
    started = read_origin(run.path)
    config = Request(data="d", classifier="c", origin=started).settings(tmp_path / "new")
    other = problems.classifier(seed=5, class_names=("a", "b", "c"))
    told: list[tuple[int, int]] = []
    run = create_run(
        tmp_path / "new",
        config,
        pictures(),
        other,
        problems.HARDWARE,
        started,
        on_evidence=lambda done, total: told.append((done, total)),
    )
    assert told[-1][0] == told[-1][1]
    assert len(told) > 2
    tensors = read_tensors(run.newest_checkpoint()[2])[0]  # type: ignore[index]
    kept, found = "encoder/hidden.weight", tensors["network/encoder/hidden.weight"]
    assert torch.equal(started.tensors[kept], found)
    maps = tensors["network/encoder/evidence.head"]
    assert maps.shape[0] == 3
    assert bool((maps != 0).any())
    assert torch.equal(maps, tensors["average/encoder/evidence.head"])
    before, after = started.tensors["generator/affine_weight"], tensors["network/generator/affine_weight"]
    assert (before.shape[1], after.shape[1]) == (8 + 8, 8 + 12)
    # The layers' gain follows their width: what latents do to styles stays.
    torch.testing.assert_close(after[:, :8] / 20**0.5, before[:, :8] / 16**0.5)


def test_a_run_goes_on_from_the_start_that_it_had(origin: Origin, tmp_path: Path) -> None:
    """Told by the weights: the same ones may lie elsewhere, others at the same place are others."""
    config = Request(classifier="new", origin=origin).settings(tmp_path / "new")
    run = create_run(tmp_path / "new", config, pictures(), problems.classifier(), problems.HARDWARE, origin)
    check_same_origin(run, origin.path)
    moved = origin.path.rename(tmp_path / "moved")
    check_same_origin(run, origin.path)  # tidied away
    check_same_origin(run, moved)
    model = models.tiny_model()
    model.generator.affine_weight.data.add_(0.1)
    models.save_tiny_run(tmp_path / "other", model, "pictures")
    other = read_origin(tmp_path / "other")
    assert other.header["sha256"] != origin.header["sha256"]
    with pytest.raises(RunError, match=r"was started with --from .*old, not .*other; leave --from out"):
        check_same_origin(run, other.path)
    other.path.rename(origin.path)
    with pytest.raises(RunError, match="which has other weights now; leave --from out") as raised:
        check_same_origin(run, origin.path)
    assert "\n" not in str(raised.value)
    with pytest.raises(RunError, match="was started without --from"):
        check_same_origin(problems.make_run(tmp_path / "plain", "fast"), moved)


@pytest.mark.parametrize(
    ("condition", "assignments", "expected"),
    [
        ("evidence", [], 1.0),
        ("evidence", ["sparsity.exclusive=0.5"], 0.5),
        ("evidence", ["sparsity.threshold=0"], 0.0),
        ("probabilities", [], 0.0),
    ],
)
def test_what_reads_the_evidence_afresh_reads_it_alone(
    origin: Origin, tmp_path: Path, condition: str, assignments: list[str], expected: float
) -> None:
    told = {"network.condition": condition, "loss.evidence": 1.0 if condition == "evidence" else 0.0}
    recipe = changed(origin.config.recipe, told | {"sparsity.threshold": 0.01, "sparsity.start_kimg": 0})
    config = origin.config.model_copy(update={"recipe": recipe, "resolution": 32})
    request = Request(
        classifier="new", origin=replace(origin, config=config), assignments=assignments, recipe=None
    )
    assert request._recipe(None)["sparsity"]["exclusive"] == expected
    said = [reason for reason in request.reasons() if "sparsity.exclusive 1" in reason]
    assert bool(said) == (expected == 1)
