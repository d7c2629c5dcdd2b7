"""A screened search finds what the whole search finds, on less work, and says what it left out."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import problems
import training_problems
from stylex.attfind import (
    class_effects,
    first_order,
    load_discovery,
    load_findings,
    screened_sweep,
    search,
    sweep_request,
)
from stylex.attfind.attributes import select
from stylex.attfind.discovery import Discovery, discover
from stylex.attfind.effects import log_odds_effects
from stylex.attfind.first_order import FirstOrder, first_order_effects
from stylex.attfind.screening import (
    FIRST_IMAGES,
    GROWTH,
    Resampled,
    Stages,
    stages,
    survivors,
)
from stylex.attfind.search import load_logits
from stylex.attfind.selection import unstable_images
from stylex.attfind.shards import Record, ScreenedShards
from stylex.attfind.sweep import sweep
from stylex.attfind.sweep_request import resolve
from stylex.data.images import ImageSet
from stylex.errors import ConfigError, DataError, RunError
from stylex.model import Model
from stylex.run import Run, read_json, read_tensors
from stylex.stylespace import StyleSpace

search_module = import_module("stylex.attfind.search")  # of its name is the function in the package, too

SETTINGS = problems.everything(images_per_class=40, sweep="screened", batch_size=8)
"""80 images: 16 in the first stage, 64 in the second."""

FEW = SETTINGS.model_copy(update={"images_per_class": 10})
"""20 images."""


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
    assert plan.ends == (48, 50)  # with and without each of three labels


def made_effects(count: int, coordinates: int, seed: int) -> npt.NDArray[np.float32]:
    """Most coordinates do next to nothing; 12 move images by 0.1 to 1.2, the other end the other way."""
    random = np.random.default_rng(seed)
    effects = random.normal(0, 0.01, (count, 2, coordinates, 2))
    for number in range(12):
        for end, sign in ((number % 2, 1), (1 - number % 2, -1)):
            effects[:, end, 7 * number, 1] += sign * 0.1 * (number + 1) * random.uniform(0.7, 1.3, count)
    effects[..., 0] = -effects[..., 1]
    return effects.astype(np.float32)


@pytest.mark.parametrize("method", ["subset", "removal", "independent"])
def test_resampled_selections_are_those_of_repeated_images(method: Any) -> None:
    settings = problems.everything(count=9, method=method, max_image_effect=0.7, independent_min_share=0.1)
    random = np.random.default_rng(1)
    effects = (random.normal(0, 0.4, (30, 2, 25, 1)) + random.normal(0, 0.3, (1, 2, 25, 1))).astype(
        np.float32
    )
    coordinates = np.tile(np.arange(25), 2)
    resampled = Resampled(effects[..., 0].reshape(30, 50), coordinates, settings)
    for _ in range(40):
        drawn = random.integers(0, 30, 30)
        repeated = effects[drawn]
        expected = [each for _, each in select(repeated, 0, settings, np.ones(30, bool), None)]
        picked = resampled.select(np.bincount(drawn, minlength=30).astype(float), 9)
        assert resampled.coordinates(picked) == expected
        # What it picks is all that bears on the selection: nothing else need be measured.
        alone = np.zeros_like(repeated).reshape(30, 50)
        alone[:, picked] = repeated.reshape(30, 50)[:, picked]
        again = select(alone.reshape(repeated.shape), 0, settings, np.ones(30, bool), None)
        assert [each for _, each in again] == expected


def test_what_all_images_select_is_among_what_few_leave_open() -> None:
    settings = problems.everything(count=8)
    before = two_logits(400)
    effects = made_effects(400, 300, 0)
    few = list(stages(before, "softmax", 0).images(0))
    changes = np.tile(np.arange(300), 2)
    flat = effects.reshape(400, 600, 2)
    kept, sure = survivors(flat[few], changes, before[few], np.ones(16, bool), settings, "softmax", 0)
    assert sure >= 0.99
    assert kept.sum() < 60
    left = kept.reshape(2, 300)
    for target in (0, 1):
        images = before.argmax(axis=1) != target
        chosen = select(effects, target, settings, images, None)
        assert len(chosen) == 8
        assert all(left[change] for change in chosen)


def test_nothing_is_given_up_for_a_target_without_images() -> None:
    before = two_logits(16, 0.0)  # all of class 1: nobody to send there
    effects, changes = made_effects(16, 90, 0).reshape(16, 180, 2), np.tile(np.arange(90), 2)
    left, sure = survivors(effects, changes, before, np.ones(16, bool), SETTINGS, "softmax", 0)
    assert left.all()
    assert sure is None
    left, sure = survivors(effects, changes, two_logits(16), np.zeros(16, bool), SETTINGS, "softmax", 0)
    assert left.all()
    assert sure is None


def test_where_everything_stays_no_confidence_is_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylex.attfind.screening.FIRST_IMAGES", 2)
    found = search(run, problems.tiny_model(), pictures(60), FEW)
    notes = [(note.images, note.first_order) for note in found.screening]
    assert notes == [(20, True), (4, False), (16, False)]
    assert [note.sure is None for note in found.screening] == [True, True, False]
    assert found.screening[1].changes_left == found.screening[0].changes_left
    assert found.confidence == found.screening[2].sure
    assert replace(found, screening=found.screening[:2]).confidence is None


def test_first_order_effects_of_a_linear_model_are_its_effects() -> None:
    model = problems.linear_model()
    styles = problems.linear_styles([[0.3] * 6, [-0.2] * 6, [0.1] * 6])
    space = problems.unit_space()
    found = first_order_effects(model, space, styles, "softmax", 0.5)
    before = model.classify(model.synthesise(styles)).numpy()
    expected = log_odds_effects(before, sweep(model, space, styles, shift=0.5).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_first_order_effects_are_of_logits_where_the_search_is() -> None:
    """A shift of all logits is an effect there, and none on log-odds."""
    matrix = [[weight, 2 * weight] for weight in problems.WEIGHTS]
    model = problems.linear_model(problems.linear_classifier(matrix, [0.0, 0.0], ("no", "yes")))
    styles = problems.linear_styles([[0.3] * 6, [-0.2] * 6])
    space = problems.unit_space()
    found = first_order_effects(model, space, styles, "softmax", 1.0, "logits")
    before = model.classify(model.synthesise(styles)).numpy()
    expected = sweep(model, space, styles).numpy() - before[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found[..., 0] - first_order_effects(model, space, styles, "softmax", 1.0)[..., 0]).max() > 1


def test_a_long_ranking_has_enough_to_choose_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_order, "LIKELY_LEAST", 1)
    monkeypatch.setattr(first_order, "LIKELY_SHARE", 0.0)
    found = search(run, problems.tiny_model(), pictures(), SETTINGS.model_copy(update={"count": 12}))
    assert [len(entries) for entries in found.attributes.values()] == [12, 12]


def test_first_order_effects_say_what_is_likely_and_which_images_are_unstable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = problems.tiny_model()
    found = discover(model, pictures(), SETTINGS)
    size = found.space.size
    effects = np.full((len(found.names), 2, size, 2), 1e-3, np.float32)
    effects[:, 0, 3, :] = 0.5  # strong on all
    for target in (0, 1):
        members = np.flatnonzero((found.logits.argmax(dim=1).numpy() == target) & (np.arange(80) != 30))
        effects[members[:3], 1, 11, :] = 0.9  # strong on three
        effects[members[3], 0, 20, :] = 0.9  # strong on one
    effects[30] = 9.0  # by everything
    effects[30, 1, 33, :] = 9e6  # what moves an unstable image most does not count
    rest = iter(range(0, len(effects), 8))
    monkeypatch.setattr(
        first_order, "first_order_effects", lambda *_: effects[(first := next(rest)) : first + 8]
    )
    monkeypatch.setattr(first_order, "STRONGEST", 1)
    monkeypatch.setattr(first_order, "LIKELY_LEAST", 3)
    monkeypatch.setattr(first_order, "LIKELY_SHARE", 0.0)
    monkeypatch.setattr(first_order, "LIKELY_EACH", 0)
    settings = SETTINGS.model_copy(update={"unstable_threshold": 2.0})
    told = first_order.first_order(
        model, found.space, found.styles, found.logits.numpy(), settings, "softmax"
    )
    assert told is not None
    assert np.argwhere(told.strongest).tolist() == [[0, 3], [1, 11]]
    assert np.argwhere(told.likely).tolist() == [[0, 3], [0, 20], [1, 11]]
    assert told.large is not None
    assert np.flatnonzero(told.large.all(axis=1)).tolist() == [30]
    assert told.large.sum() == 2 * 2 * size  # an entry for each class


def test_where_gradients_tell_nothing_of_a_target_everything_is_likely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = problems.tiny_model()
    found = discover(model, pictures(60), FEW)
    effects = np.zeros((20, 2, found.space.size, 2), np.float32)
    effects[found.logits.argmax(dim=1).numpy() == 1, 0, 3] = [0.5, -0.5]
    monkeypatch.setattr(first_order, "first_order_effects", lambda *_: effects)

    def likely() -> npt.NDArray[np.bool_]:
        before = found.logits.numpy()
        told = first_order.first_order(model, found.space, found.styles, before, FEW, "softmax", 20)
        assert told is not None
        return told.likely

    assert likely().all(), "images outside class 1 say nothing"
    effects[found.logits.argmax(dim=1).numpy() == 0, 1, 5] = [-0.5, 0.5]
    assert np.argwhere(likely()).tolist() == [[0, 3], [1, 5]]


def test_a_saturated_classifier_is_searched_as_by_an_exact_search(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the images themselves it has no slope; the ends of the ranges lie beyond that."""
    monkeypatch.setattr("stylex.attfind.screening.FIRST_IMAGES", 4)
    model = problems.tiny_model()
    slopes = first_order.first_order_effects
    monkeypatch.setattr(first_order, "first_order_effects", lambda *told: 0 * slopes(*told))
    screened = search(run, model, pictures(60), FEW)
    other = training_problems.make_run(tmp_path / "exact", "fast")
    exact = search(other, model, pictures(60), FEW.model_copy(update={"sweep": "exact"}))
    for target, entries in exact.attributes.items():
        assert entries
        assert [each.change for each in screened.attributes[target]] == [each.change for each in entries]


def test_a_search_of_which_no_change_is_left_finds_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylex.attfind.screening.FIRST_IMAGES", 4)
    model = problems.tiny_model()
    nothing = np.zeros((2, discover(model, pictures(60), FEW).space.size), bool)
    monkeypatch.setattr(screened_sweep, "first_order", lambda *_: FirstOrder(nothing, nothing, None))
    found = search(run, model, pictures(60), FEW)
    assert [entries for entries in found.attributes.values() if entries] == []
    assert [note.changes_left for note in found.screening] == [0, 0]


def test_without_gradients_there_are_no_first_order_effects() -> None:
    model = problems.tiny_model()
    found = discover(model, pictures(), SETTINGS)
    model.classifier.network.differentiable = False  # type: ignore[assignment]
    before = found.logits.numpy()
    assert first_order.first_order(model, found.space, found.styles, before, SETTINGS, "softmax") is None


def test_the_same_attributes_from_less_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_order, "LIKELY_LEAST", 30)  # of 80 changes
    monkeypatch.setattr(first_order, "LIKELY_EACH", 5)
    model = problems.tiny_model()
    whole_run = training_problems.make_run(tmp_path / "whole", "fast")
    whole = search(whole_run, model, pictures(), SETTINGS.model_copy(update={"sweep": "exact"}))
    screened = search(run, model, pictures(), SETTINGS)
    for target, exact in whole.attributes.items():
        found = screened.attributes[target]
        assert [entry.change for entry in found[:10]] == [entry.change for entry in exact[:10]]
        for one, other in zip(found[:10], exact[:10], strict=True):
            assert one.effect == pytest.approx(other.effect, abs=1e-4)
            assert one.images == other.images
    assert screened.merged[:10] == whole.merged[:10]
    notes = screened.screening
    assert [(note.images, note.first_order) for note in notes] == [(80, True), (16, False), (64, False)]
    left = [note.changes_left for note in notes]
    assert left == sorted(left, reverse=True)
    assert left[0] < 2 * whole.coordinates
    first, *rest = (note.sure for note in notes)
    assert first is None
    assert screened.confidence == min(rest)
    assert load_findings(run) == screened
    assert read_json(run.path / "attributes.json")["confidence"] == screened.confidence
    assert (whole.screening, whole.confidence) == ((), None)


def test_a_screened_search_that_was_broken_off_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the effects that stages are judged by lie in files, a few images read at a time."""
    model = problems.tiny_model()
    other = training_problems.make_run(tmp_path / "other", "fast")
    whole = search(other, model, pictures(), SETTINGS)
    monkeypatch.setattr(class_effects, "MEMORY_BYTES", 0)
    monkeypatch.setattr(class_effects, "BLOCK_ENTRIES", 8000)

    def kill(done: int, total: int) -> None:
        assert total == 80
        if done == 30:
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
    model = problems.tiny_model()
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
    model = problems.tiny_model()
    settings = SETTINGS.model_copy(update={"sweep": "auto", "images_per_class": 60})
    assert search(run, model, pictures(300), settings).settings.sweep == "screened"


def test_an_exact_search_that_is_there_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_request, "FEWEST_IMAGES", 20)
    model = problems.tiny_model()
    automatic = SETTINGS.model_copy(update={"sweep": "auto", "images_per_class": 12})
    search(run, model, pictures(300), automatic.model_copy(update={"sweep": "exact"}))
    changes: list[int] = []
    found = search(run, model, pictures(300), automatic, on_changes=changes.append)
    assert found.settings.sweep == "exact"
    assert not changes
    next((run.path / "effects").glob("*.safetensors")).unlink()
    assert search(run, model, pictures(300), automatic).settings.sweep == "screened"


def test_an_exact_search_of_other_threads_and_processes_is_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads change the last bits of styles: those of the search that is there are found again."""
    model, threads = problems.tiny_model(), torch.get_num_threads()

    def rounded(*arguments: Any) -> Discovery:
        found = discover(*arguments)
        styles = found.styles * (1 + 1e-6 * torch.get_num_threads())
        return replace(found, styles=styles, space=StyleSpace.from_styles(found.space.layout, styles))

    monkeypatch.setattr(search_module, "discover", rounded)
    monkeypatch.setattr(sweep_request, "FEWEST_IMAGES", 20)
    automatic = SETTINGS.model_copy(update={"sweep": "auto", "images_per_class": 12})
    exact = automatic.model_copy(update={"sweep": "exact"})
    try:
        torch.set_num_threads(2)
        search(run, model, pictures(300), exact)
        record = Record(run.path / "effects")
        record.write(record.read() | {"processes": 8})
        torch.set_num_threads(1)
        changes: list[int] = []
        for settings in (automatic, exact):
            found = search(run, model, pictures(300), settings, on_changes=changes.append)
            assert found.settings.sweep == "exact"
        assert not changes
        assert "going on with 2 CPU threads" in caplog.text
        assert "removed" not in caplog.text
        search(run, model, pictures(300), exact.model_copy(update={"images_per_class": 2}))
        assert "of another search (other images, weights or settings), removed" in caplog.text
    finally:
        torch.set_num_threads(threads)


def test_labels_that_do_not_exclude_each_other_are_screened_only_with_a_stage_to_judge_by() -> None:
    """Stages begin with images with and without every label: of ten labels, 160 images are one stage."""
    settings = SETTINGS.model_copy(update={"sweep": "auto"})
    logits = torch.randn(150, 10, generator=torch.Generator().manual_seed(0))
    assert len(stages(logits.numpy(), "sigmoid", 0).ends) == 1
    assert resolve(settings, logits, False, "sigmoid").sweep == "exact"
    assert resolve(settings, logits, False, "softmax").sweep == "screened"


def test_files_hold_what_their_stage_measures(tmp_path: Path) -> None:
    model = problems.tiny_model()
    found = discover(model, pictures(), SETTINGS)
    plan = stages(found.logits.numpy(), "softmax", 0)
    shards = ScreenedShards(tmp_path, "k", found.logits, found.space.size, "fp16", plan)
    random = torch.Generator().manual_seed(0)
    shape = (2, found.space.size, 2)
    logits = found.logits[:, None, None] + torch.randn(len(found.logits), *shape, generator=random)
    open_ = shards.open_changes(0)
    for number in shards.numbers(0):
        shards.write(number, logits[list(shards.images(number))])
    after = shards.measured(0)
    assert after.images == list(plan.images(0))
    np.testing.assert_allclose(after[:], logits[after.images].flatten(1, 2).numpy()[:, None], atol=2e-3)
    assert open_.all()
    left = np.zeros_like(open_)
    left[0, [1, 4]] = left[1, 6] = True
    shards.open_changes(1, left)
    assert shards.missing(shards.numbers(1)) == shards.numbers(1)
    for number in shards.numbers(1):
        shards.write(number, logits[list(shards.images(number))])
    assert shards.missing(shards.numbers(0) + shards.numbers(1)) == []
    after = shards.measured(1)
    assert after.images == list(plan.order[:64])
    expected = logits[after.images][:, left].numpy()[:, None]
    assert after.shape == expected.shape
    for block in (slice(0, 64), slice(3, 18), slice(15, 16), slice(5, 5), slice(60, None)):
        np.testing.assert_allclose(after[block], expected[block], atol=2e-3)
    shards.open_changes(2, left)
    for number in shards.numbers(2):
        shards.write(number, logits[list(shards.images(number))])
    everything = shards[0 : len(found.logits)]
    closed = np.broadcast_to(found.logits.numpy()[:, None, None], everything.shape)
    np.testing.assert_allclose(everything[:, left], logits.numpy()[:, left], atol=2e-3)
    np.testing.assert_array_equal(everything[:, ~left], closed[:, ~left])
    # More changes, measured on all images beside the stages, show too.
    whole = Stages(tuple(range(len(logits))), (len(logits),))
    shards.more = ScreenedShards(
        tmp_path, "k", found.logits, found.space.size, "fp16", whole, name="opposite"
    )
    opposite = np.zeros_like(left)
    opposite[1, 4] = True
    shards.more.open_changes(0, opposite)
    for number in range(len(shards.more)):
        shards.more.write(number, logits[list(shards.more.images(number))])
    both = shards[0 : len(found.logits)]
    np.testing.assert_allclose(both[:, left | opposite], logits.numpy()[:, left | opposite], atol=2e-3)
    np.testing.assert_array_equal(both[:, ~(left | opposite)], closed[:, ~(left | opposite)])
    # Another choice of changes is another content: nothing of it is there.
    left[:, 4] = False
    shards.open_changes(1, left)
    assert shards.missing(shards.numbers(1)) == shards.numbers(1)


def test_what_was_judged_is_kept_and_what_is_damaged_is_measured_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = problems.tiny_model()
    whole = search(run, model, pictures(), SETTINGS)
    file = next((run.path / "effects").glob("stage-0-000001*"))
    content = file.read_bytes()
    file.write_bytes(b"damaged")
    monkeypatch.setattr(screened_sweep, "survivors", lambda *_: pytest.fail("judged again"))
    seen: list[int] = []
    assert search(run, model, pictures(), SETTINGS, lambda done, total: seen.append(done)) == whole
    assert file.read_bytes() == content
    assert seen[0] == 12, "the four images of that file are missing from the first stage's sixteen"


def test_a_rare_cause_is_protected_to_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What first-order effects bring back may be weak on the images of every stage but the last."""
    model = problems.tiny_model()
    protected = np.zeros((2, discover(model, pictures(), SETTINGS).space.size), bool)
    protected[:, 17] = True
    told = FirstOrder(np.ones_like(protected), protected, None)
    monkeypatch.setattr(screened_sweep, "first_order", lambda *_: told)
    nothing = lambda effects, *_: (np.zeros(effects.shape[1], bool), 1.0)  # noqa: E731
    monkeypatch.setattr(screened_sweep, "survivors", nothing)
    found = search(run, model, pictures(), SETTINGS)
    assert {entry.coordinate for entries in found.attributes.values() for entry in entries} == {17}
    assert [note.changes_left for note in found.screening] == [protected.size, 2, 2]


def test_only_what_is_likely_is_measured_and_the_other_ends_that_the_merged_list_needs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = problems.tiny_model()
    likely = np.zeros((2, discover(model, pictures(), SETTINGS).space.size), bool)
    likely[0, 3] = likely[1, 8] = True
    told = FirstOrder(likely, np.zeros_like(likely), None)
    monkeypatch.setattr(screened_sweep, "first_order", lambda *_: told)
    found = search(run, model, pictures(), SETTINGS)
    chosen = {entry.change for entries in found.attributes.values() for entry in entries}
    assert chosen <= {(0, 3), (1, 3), (0, 8), (1, 8)}
    assert chosen & {(0, 3), (1, 8)}
    held = {file.name: read_tensors(file)[0]["logits"].shape for file in (run.path / "effects").glob("*-0-*")}
    first = [shape for name, shape in held.items() if name.startswith("stage-0-")]
    assert first == [(4, 2, 2)] * 4
    opposite = [shape for name, shape in held.items() if name.startswith("opposite-0-")]
    assert opposite == [(4, len({coordinate for _, coordinate in chosen}), 2)] * 20


def test_without_gradients_everything_is_measured_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = problems.tiny_model()
    monkeypatch.setattr(screened_sweep, "first_order", lambda *_: None)
    found = search(run, model, pictures(), SETTINGS)
    assert [(note.images, note.first_order) for note in found.screening] == [(16, False), (64, False)]


def effects_of_all(model: Model) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.floating]]:
    """Logits [80, 2] of the images that a search with SETTINGS takes, and all their effects [80, 2, S, 2]."""
    found = discover(model, pictures(), SETTINGS)
    before = found.logits.numpy()
    after = sweep(model, found.space, found.styles, batch_size=8).numpy()
    return before, log_odds_effects(before, after)


def test_unstable_images_are_judged_by_what_is_measured_and_else_to_first_order(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First-order effects are right here; of images of which everything is measured, all are wrong."""
    model = problems.tiny_model()
    before, effects = effects_of_all(model)
    threshold = float(np.quantile(np.abs(effects), 0.9))
    unstable = unstable_images(effects, threshold, 0.1)
    large = (np.abs(effects) > threshold).sum(axis=-1).reshape(80, -1).astype(np.uint8)
    first = list(stages(before, "softmax", run.config.seed).images(0))
    assert 0 < unstable[first].sum() < 16
    assert 0 < unstable.sum() < 80
    large[first] = 2 - large[first]
    everything = np.ones(effects.shape[1:3], bool)
    told = FirstOrder(everything, ~everything, large)
    monkeypatch.setattr(screened_sweep, "first_order", lambda *_: told)
    settings = SETTINGS.model_copy(update={"unstable_threshold": threshold, "unstable_max_share": 0.1})
    findings = search(run, model, pictures(), settings)
    assert findings.unstable == unstable.sum()
    for target, name in enumerate(model.class_names):
        searched = (before.argmax(axis=1) != target) & ~unstable
        assert {entry.images for entry in findings.attributes[name]} == {int(searched.sum())}
    # What gradients said is kept for the stages to come; without it they are asked again.
    (run.path / "effects" / "first-order.safetensors").unlink()
    assert search(run, model, pictures(), settings) == findings
    assert (run.path / "effects" / "first-order.safetensors").exists()


def test_without_gradients_only_who_is_unstable_in_any_case_is_left_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody has measured counts as small: of most images, all but a few effects."""
    model = problems.tiny_model()
    monkeypatch.setattr(screened_sweep, "has_gradients", lambda _: False)
    monkeypatch.setattr(screened_sweep, "first_order", lambda *_: None)
    before, effects = effects_of_all(model)
    threshold = float(np.quantile(np.abs(effects), 0.9))
    unstable = unstable_images(effects, threshold, 0.1)
    first = list(stages(before, "softmax", run.config.seed).images(0))
    settings = SETTINGS.model_copy(update={"unstable_threshold": threshold, "unstable_max_share": 0.1})
    assert 0 < unstable[first].sum() <= search(run, model, pictures(), settings).unstable < unstable.sum()


def test_gradients_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = problems.tiny_model()
    found = discover(model, pictures(), SETTINGS)
    each = 1 << 20
    monkeypatch.setattr(first_order, "used_memory", lambda _: 5 * each)
    monkeypatch.setattr(first_order, "peak_memory", lambda _: 6 * each)
    monkeypatch.setattr(first_order, "available_memory", lambda _: 9 * each)

    def fit(memory: int | None) -> int:
        return first_order.images_at_once(model, found.space, found.styles, SETTINGS, "softmax", memory)

    assert [fit(number * each) for number in (1, 3, 7, 8, 100)] == [1, 2, 4, 8, 8]
    assert fit(None) == 4, "half of what is free"
    with pytest.raises(ConfigError, match=r"memory is 0 MiB.*one image take 1 MiB.*--memory"):
        fit(each - 1)


def test_a_search_that_goes_on_keeps_the_images_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = problems.tiny_model()
    asked: list[Any] = []
    monkeypatch.setattr(screened_sweep, "images_at_once", lambda *told: asked.append(told[-1]) or 3)
    held: list[int] = []
    effects = first_order.first_order_effects

    def watched(model: Any, space: Any, styles: torch.Tensor, *more: Any) -> npt.NDArray[np.float32]:
        held.append(len(styles))
        if len(held) == 5:
            raise KeyboardInterrupt
        return effects(model, space, styles, *more)

    monkeypatch.setattr(first_order, "first_order_effects", watched)
    with pytest.raises(KeyboardInterrupt):
        search(run, model, pictures(), SETTINGS, memory=10 << 30)
    search(run, model, pictures(), SETTINGS, memory=9 << 30)
    assert asked == [10 << 30], "asked once, within the memory given"
    assert held == [3] * 5 + [3] * 26 + [2]
    record = Record(run.path / "effects").read()
    assert (record["first_order_images"], record["batch_size"], record["threads"]) == (3, 8, 1)
