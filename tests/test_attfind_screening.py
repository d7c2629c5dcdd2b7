"""A screened search finds what the whole search finds, on less work, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import problems
import training_problems
from stylex.attfind import load_discovery, load_findings, search
from stylex.attfind.attributes import select
from stylex.attfind.effects import log_odds_effects
from stylex.attfind.screening import (
    FIRST_IMAGES,
    GROWTH,
    first_order_effects,
    stages,
    strongest,
    survivors,
)
from stylex.attfind.search import discover, load_logits
from stylex.attfind.shards import ScreenedShards
from stylex.attfind.sweep import sweep
from stylex.data.images import ImageSet
from stylex.errors import DataError, RunError
from stylex.run import Run

SETTINGS = problems.everything(images_per_class=40, sweep="screened", batch_size=8)
"""80 images: 16 in the first stage, 64 in the second."""


def pictures(count: int = 240) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    return ImageSet(pixels, tuple(f"{i}.png" for i in range(count)), None, None, {})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return training_problems.make_run(tmp_path / "run", "fast")


def two_logits(count: int, share: float = 0.5) -> npt.NDArray[np.float32]:
    """Logits [N, 2] of which a share is of class 1."""
    first = np.where(np.arange(count) < share * count, -1.0, 1.0)
    return np.stack([first, -first], axis=1).astype(np.float32)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_stages_grow_and_begin_with_every_class(share: float) -> None:
    before = two_logits(200, share)
    plan = stages(before, "softmax", 3)
    assert sorted(plan.order) == list(range(200))
    assert plan.ends == (2 * FIRST_IMAGES, 2 * FIRST_IMAGES * GROWTH, 200)
    assert [len(plan.images(stage)) for stage in range(3)] == [16, 48, 136]
    classes = before[list(plan.images(0))].argmax(axis=1)
    assert min(np.bincount(classes, minlength=2)) == FIRST_IMAGES
    assert stages(before, "softmax", 3) == plan
    assert stages(before, "softmax", 4).order != plan.order


def test_labels_are_staged_too() -> None:
    before = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    plan = stages(before, "sigmoid", 0)
    assert sorted(plan.order) == list(range(50))
    assert plan.ends == (24, 50)


def made_effects(count: int, coordinates: int, seed: int) -> npt.NDArray[np.float32]:
    """Most coordinates do next to nothing; 12 move images by 0.1 to 1.2, one more a tenth of them alone."""
    random = np.random.default_rng(seed)
    effects = random.normal(0, 0.01, (count, 2, coordinates, 2))
    for number in range(12):
        for end, sign in ((number % 2, 1), (1 - number % 2, -1)):
            effects[:, end, 7 * number, 1] += sign * 0.1 * (number + 1) * random.uniform(0.7, 1.3, count)
    effects[..., 0] = -effects[..., 1]
    return effects.astype(np.float32)


def test_what_all_images_select_is_among_what_few_leave_open() -> None:
    settings = problems.everything(count=8, unstable_threshold=None)
    before = two_logits(400)
    effects = made_effects(400, 300, 0)
    few = list(stages(before, "softmax", 0).images(0))
    open_ = np.ones((2, 300), bool)
    left, sure = survivors(effects[few], before[few], open_, settings, "softmax", 0)
    assert sure >= 0.99
    assert left.sum() < 100
    assert np.array_equal(left[0], left[1])
    for target in (0, 1):
        images = before.argmax(axis=1) != target
        chosen = select(effects, target, settings, images, None)
        assert len(chosen) == 8
        assert all(left[change] for change in chosen)
    # What was closed stays closed.
    open_[:, 77] = False
    assert not survivors(effects[few], before[few], open_, settings, "softmax", 0)[0][:, 77].any()


def test_what_moves_rare_images_comes_back() -> None:
    before = two_logits(400)
    effects = made_effects(400, 300, 0)
    rare = np.arange(300, 340)  # of class 0; the first stage may have none of them
    effects[rare, 1, 250, 1] += 3
    few = [image for image in stages(before, "softmax", 0).images(0) if image not in rare]
    left, _ = survivors(effects[few], before[few], np.ones((2, 300), bool), SETTINGS, "softmax", 0)
    assert not left[:, 250].any()
    kept = strongest(effects, before, "softmax")
    assert kept[:, 250].all()
    assert kept.sum() < 150


def test_first_order_effects_of_a_linear_model_are_its_effects() -> None:
    model = problems.linear_model()
    styles = problems.linear_styles([[0.3] * 6, [-0.2] * 6, [0.1] * 6])
    space = problems.unit_space()
    found = first_order_effects(model, space, styles, "softmax", 0.5)
    before = model.classify(model.synthesise(styles)).numpy()
    expected = log_odds_effects(before, sweep(model, space, styles, shift=0.5).numpy())
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_same_attributes_from_less_work(run: Run, tmp_path: Path) -> None:
    model = problems.tiny_model("fast")
    whole_run = training_problems.make_run(tmp_path / "whole", "fast")
    whole = search(whole_run, model, pictures(), SETTINGS.model_copy(update={"sweep": "exact"}))
    screened = search(run, model, pictures(), SETTINGS)
    for target, exact in whole.attributes.items():
        found = screened.attributes[target]
        assert [entry.change for entry in found[:10]] == [entry.change for entry in exact[:10]]
        for one, other in zip(found[:10], exact[:10], strict=True):
            assert one.effect == pytest.approx(other.effect, abs=1e-4)
            assert one.images == other.images
    notes = json.loads((run.path / "effects" / "sweep.json").read_text())["stages"]
    assert [note["images"] for note in notes] == [16, 64]
    assert notes[1]["changes_left"] <= notes[0]["changes_left"] < 2 * whole.coordinates
    assert load_findings(run) == screened


def test_a_killed_screened_search_goes_on(run: Run, tmp_path: Path) -> None:
    model = problems.tiny_model("fast")
    other = training_problems.make_run(tmp_path / "other", "fast")
    whole = search(other, model, pictures(), SETTINGS)
    for at in (6, 30, 75):

        def kill(done: int, total: int, at: int = at) -> None:
            assert total == 80
            if done == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search(run, model, pictures(), SETTINGS, kill)
    seen: list[int] = []
    assert search(run, model, pictures(), SETTINGS, lambda done, total: seen.append(done)) == whole
    assert seen[-1] == 80
    assert seen == sorted(seen)
    names = sorted(file.name for file in (run.path / "effects").glob("stage-*"))
    assert names == sorted(file.name for file in (other.path / "effects").glob("stage-*"))
    for name in names:
        assert (run.path / "effects" / name).read_bytes() == (other.path / "effects" / name).read_bytes()


def test_what_needs_every_effect_is_refused_or_measured(run: Run) -> None:
    model = problems.tiny_model("fast")
    with pytest.raises(DataError, match="--exact"):
        search(run, model, pictures(), SETTINGS, one_vs_one=True)
    with pytest.raises(DataError, match="--exact"):
        search(run, model, pictures(), SETTINGS.model_copy(update={"discriminator_filter": 1.0}))
    automatic = SETTINGS.model_copy(update={"sweep": "auto"})
    assert search(run, model, pictures(), automatic).settings.sweep == "exact"  # 80 images
    found = search(run, model, pictures(), SETTINGS)
    assert found.settings.sweep == "screened"
    with pytest.raises(RunError, match=r"screened.*--exact"):
        load_logits(run, model, load_discovery(run, model), found.settings)


def test_more_than_a_hundred_images_are_screened(run: Run) -> None:
    model = problems.tiny_model("fast")
    settings = SETTINGS.model_copy(update={"sweep": "auto", "images_per_class": 60})
    assert search(run, model, pictures(300), settings).settings.sweep == "screened"


def test_files_hold_what_their_stage_measures(tmp_path: Path) -> None:
    model = problems.tiny_model("fast")
    found = discover(model, pictures(), SETTINGS)
    plan = stages(found.logits.numpy(), "softmax", 0)
    shards = ScreenedShards(tmp_path, "k", found.logits, found.space.size, "fp16", plan)
    random = torch.Generator().manual_seed(0)
    shape = (2, found.space.size, 2)
    logits = found.logits[:, None, None] + torch.randn(len(found.logits), *shape, generator=random)
    open_ = shards.open_changes(0)
    for number in shards.numbers(0):
        shards.write(number, logits[list(shards.images(number))])
    images, after = shards.measured(0)
    assert images == list(plan.images(0))
    np.testing.assert_allclose(after, logits[images].numpy(), atol=2e-3)
    assert open_.all()
    left = np.zeros_like(open_)
    left[:, [1, 4]] = True
    shards.open_changes(1, left)
    assert shards.missing(shards.numbers(1)) == shards.numbers(1)
    for number in shards.numbers(1):
        shards.write(number, logits[list(shards.images(number))])
    assert shards.missing(shards.numbers(0) + shards.numbers(1)) == []
    shards.open_changes(2, left)
    for number in shards.numbers(2):
        shards.write(number, logits[list(shards.images(number))])
    everything = shards[0 : len(found.logits)]
    closed = np.broadcast_to(found.logits.numpy()[:, None, None], everything.shape)
    np.testing.assert_allclose(everything[:, left], logits.numpy()[:, left], atol=2e-3)
    np.testing.assert_array_equal(everything[:, ~left], closed[:, ~left])
    # Another choice of changes is another content: nothing of it is there.
    left[:, 4] = False
    shards.open_changes(1, left)
    assert shards.missing(shards.numbers(1)) == shards.numbers(1)
