"""Settings that are chosen: the decision on measurements made by hand, and the schedule that scales along."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

import training_problems as problems
from stylex.config import Recipe, RunConfig, changed, load_recipe
from stylex.data import Preview
from stylex.errors import ConfigError
from stylex.parallel import ALONE, World
from stylex.training.costs import Size, StepCost
from stylex.training.plan import (
    Measurement,
    Plan,
    decide,
    finest_resolution,
    keep_choices,
    parse_duration,
    plan,
    scale_total,
    scale_widths,
)
from stylex.training.schedule import never_begins

PLAIN = ("loss.adversarial_start_kimg=0", "loss.adversarial_ramp_kimg=0", "loss.r1=0", "loss.path_length=0")
"""No warm-up and no regulariser: a training's time is its images times the seconds of one."""

GIB = 2**30


def measured(scale: float, images_per_second: float, activations: int = GIB) -> Measurement:
    recipe = scale_widths(
        load_recipe("fast", [*PLAIN, "training.total_kimg=100", "training.batch_size=16"]), scale
    )
    seconds = 16 / images_per_second
    cost = StepCost(16, {"encode": seconds, "swap": seconds}, {}, None, activations, 0, 3)
    return Measurement(scale, recipe, Size({"generator": 1}, 1, 1, 0), cost)


def three(wide: float, own: float, narrow: float) -> list[Measurement]:
    """Images a second at twice the recipe's widths, at its own, at half of them."""
    return [measured(0.5, narrow), measured(1.0, own), measured(2.0, wide)]


@pytest.mark.parametrize(
    ("speeds", "budget_s", "scale", "kimg"),
    [
        ((20, 50, 80), 3600, 1.0, 170),  # 171 kimg; twice as wide only 68 of the 200 that it would need
        ((20, 50, 80), 14400, 2.0, 270),  # 273 kimg are enough for twice the width
        ((20, 50, 80), 600, 0.5, 45),  # 28 kimg are too few for the recipe's widths, less than half of 100
        ((20, 50, 80), 60, 0.5, 4.5),
    ],
)
def test_images_seen_count_for_more_than_width(
    speeds: tuple[float, float, float], budget_s: float, scale: float, kimg: float
) -> None:
    choice = decide(three(*speeds), budget_s=budget_s)
    assert choice is not None
    assert choice.scale == scale
    assert choice.recipe.training.total_kimg == kimg
    assert choice.recipe.network.channel_max == 64 * scale
    assert 0.85 * budget_s < choice.seconds <= 0.95 * budget_s
    assert any(f"{kimg:g} kimg in place of 100" in reason for reason in choice.reasons)


def test_without_a_budget_the_total_stays_and_nothing_is_widened() -> None:
    choice = decide(three(20, 50, 80))
    assert choice is not None
    assert (choice.scale, choice.recipe.training.total_kimg, choice.seconds) == (1.0, 100, 2000)
    assert choice.recipe == measured(1.0, 1).recipe


def test_a_total_that_the_user_set_stays_and_decides_the_width() -> None:
    fixed = {"training.total_kimg"}
    for budget_s, scale in ((2100, 1.0), (1500, 0.5), (100, 0.5)):
        choice = decide(three(20, 50, 80), budget_s=budget_s, fixed=fixed)
        assert choice is not None
        assert (choice.scale, choice.recipe.training.total_kimg) == (scale, 100)
    assert "more than the budget of 2 min" in choice.reasons[-1]


def test_what_does_not_fit_the_memory_gets_smaller_batches_then_narrower_networks() -> None:
    own, narrow = measured(1.0, 50, activations=8 * GIB), measured(0.5, 80, activations=4 * GIB)
    expected = {11: (1.0, 16, 1), 9: (1.0, 8, 2), 3: (1.0, 4, 4), 2: (0.5, 4, 4), 1: None}
    for gib, wanted in expected.items():
        choice = decide([own, narrow], memory_bytes=gib * GIB)
        training = choice and choice.recipe.training
        found = choice and training and (choice.scale, training.batch_size, training.accumulate)
        assert found == wanted, gib
    assert decide([own], memory_bytes=9 * GIB, fixed={"training.batch_size"}) is None


def test_the_schedule_scales_with_the_total() -> None:
    recipe = scale_total(load_recipe("fast"), 2 * load_recipe("fast").training.total_kimg)
    before = load_recipe("fast")
    assert recipe.loss.adversarial_start_kimg == 2 * before.loss.adversarial_start_kimg > 0
    assert recipe.loss.adversarial_ramp_kimg == 2 * before.loss.adversarial_ramp_kimg
    assert recipe.sparsity.start_kimg == 2 * before.sparsity.start_kimg > 0
    assert recipe.sparsity.ramp_kimg == 2 * before.sparsity.ramp_kimg
    assert recipe.training.ema_halflife_kimg == 2 * before.training.ema_halflife_kimg
    assert recipe.training.checkpoint_kimg == before.training.checkpoint_kimg
    kept = scale_total(before, 1.0, fixed={"sparsity.start_kimg"})
    assert kept.sparsity.start_kimg == before.sparsity.start_kimg
    assert load_recipe("vdv").loss.path_length_start_kimg == 160
    assert scale_total(load_recipe("vdv"), 480).loss.path_length_start_kimg == 16


def test_what_a_length_leaves_no_time_for_is_said() -> None:
    recipe = load_recipe("fast")
    assert never_begins(recipe) == []
    short = never_begins(changed(recipe, {"training.total_kimg": 50}))
    assert [sentence.split()[0] for sentence in short] == [
        "loss.adversarial_start_kimg",
        "sparsity.start_kimg",
    ]
    assert "is 50" in short[0]
    assert "total_kimg 50" in short[0]
    only = never_begins(changed(recipe, {"training.total_kimg": 60}))
    assert [sentence.split()[0] for sentence in only] == ["sparsity.start_kimg"]
    dense = changed(recipe, {"training.total_kimg": 60, "sparsity.threshold": 0})
    assert never_begins(dense) == []
    assert never_begins(scale_total(recipe, 14)) == []


def test_a_budget_is_met_with_a_warm_up_of_fixed_length() -> None:
    recipe = load_recipe("fast", [*PLAIN[2:], "training.total_kimg=100", "loss.adversarial_start_kimg=50"])
    cost = StepCost(16, {"encode": 0.4, "swap": 0.4}, {}, 0.1, 0, 0, 1)
    found = Measurement(1.0, recipe, Size({}, 1, 1, 0), cost)
    choice = decide([found], budget_s=3600, fixed={"loss.adversarial_start_kimg"})
    assert choice is not None
    assert choice.recipe.loss.adversarial_start_kimg == 50
    exact = 50_000 + (0.95 * 3600 - 50_000 * 0.1 / 16) / (0.4 / 16)
    assert 0.94 * exact < choice.recipe.training.total_kimg * 1000 <= exact


def test_seconds_weigh_every_phase_by_its_interval() -> None:
    recipe: Recipe = changed(
        load_recipe("fast"),
        {
            "training.total_kimg": 1.6,
            "loss.adversarial_start_kimg": 0.4,
            "loss.r1_interval": 5,
            "loss.path_length_interval": 15,
            "loss.path_length_start_kimg": 0.8,
        },
    )
    cost = StepCost(4, {"encode": 1.0, "swap": 3.0}, {"r1": 5.0, "path_length": 30.0}, 0.5, 0, 0, 1)
    # 100 steps of warm-up, 300 of 2 s on average, R1 on a fifth of 300, path length on a fifteenth of 200
    assert cost.seconds(recipe) == pytest.approx(100 * 0.5 + 300 * 2 + 60 * 5 + 200 / 15 * 30)
    assert cost.seconds(recipe, 1_200) == pytest.approx(100 * 2 + 20 * 5 + 100 / 15 * 30)
    assert cost.seconds(recipe, 1_600) == 0
    # Before the first step the classifier is asked, and a student sees a hundred thousand images at most.
    prepared = replace(cost, asking=7.0, evidence_image=0.01)
    assert prepared.seconds(recipe) == pytest.approx(cost.seconds(recipe) + 7 + 1600 * 0.01)
    assert prepared.seconds(recipe, 1_200) == pytest.approx(cost.seconds(recipe, 1_200) + 7 + 1600 * 0.01)
    for begin in (0, 1_200):
        assert prepared.seconds(recipe, begin, prepared=True) == cost.seconds(recipe, begin)
    assert prepared.preparation(changed(recipe, {"training.total_kimg": 500})) == pytest.approx(7 + 1000)


def test_several_processes_share_images_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are timed with a share of the batch; a budget pays for the more images the more processes."""
    cost = StepCost(4, {"encode": 0.4, "swap": 0.4}, {}, None, 4 * GIB, 0, 3, asking=100.0)
    timed: list[int] = []

    def measure(config: RunConfig, images: Any, *_: Any, **more: Any) -> StepCost:
        batch = config.recipe.training.batch_size
        timed.append(batch)
        seconds = 0.2 + batch * 0.0125  # a share of a quarter takes 0.25 s, all of the batch 0.4 s
        return replace(cost, batch_size=batch, kinds=dict.fromkeys(cost.kinds, seconds))

    monkeypatch.setattr("stylex.training.plan.measure_step", measure)
    monkeypatch.setattr("stylex.training.plan.available_memory", lambda _: 100 * GIB)
    images = cast(Preview, SimpleNamespace(sample=lambda size, count: None, training=100, side=16))
    recipe = load_recipe("fast", [*PLAIN, "training.batch_size=16", "network.channel_max=64"])
    config = RunConfig(experiment="e", data="d", classifier="c", resolution=16, recipe=recipe)
    fixed = {"resolution", "network.channel_max"}

    def planned(world: World) -> Plan:
        return plan(
            config,
            images,
            problems.classifier(),
            problems.HARDWARE,
            fixed=fixed,
            budget_s=1100.0,
            world=world,
        )

    one, four = planned(ALONE), planned(World(size=4, local_size=4))
    assert timed == [16, 4]
    # 0.95 · 1100 s, of which the 100 s before the first step go away; 40 images a second, and 64 of four
    assert one.config.recipe.training.total_kimg == 37
    assert four.config.recipe.training.total_kimg == 60
    assert one.cost is not None
    assert four.cost is not None
    assert four.cost.batch_size == 16
    assert four.cost.seconds(recipe) - 100 == pytest.approx((one.cost.seconds(recipe) - 100) * 0.25 / 0.4)

    monkeypatch.setattr("stylex.training.plan.available_memory", lambda _: 12 * GIB)
    assert planned(World(size=4)).config.recipe.training.batch_size == 16  # a device each
    shared = planned(World(size=4, local_size=4)).config.recipe.training
    assert (shared.batch_size, shared.accumulate) == (8, 2)  # 3 GiB each: half a share's activations fit


def test_shared_costs_are_those_of_a_batch_as_many_times_as_large() -> None:
    cost = StepCost(4, {"encode": 1.0}, {"r1": 2.0}, None, 100, 7, 1, failed_batch=8, asking=5.0)
    shared = cost.shared(3)
    assert (shared.batch_size, shared.failed_batch) == (12, 24)
    size = Size({}, 1, 1, 50)
    assert shared.peak_bytes(size, 12) == cost.peak_bytes(size, 4) == 157
    recipe = load_recipe("fast", [*PLAIN, "training.schedule=[encode]", "training.total_kimg=12"])
    assert shared.seconds(recipe) - 5 == pytest.approx((cost.seconds(recipe) - 5) / 3)
    assert shared.preparation(recipe) == cost.preparation(recipe) == 5.0
    assert cost.shared(1) == cost


@pytest.mark.parametrize(
    ("classes", "resolution", "condition"),
    [(16, 16, "evidence"), (17, 16, "probabilities"), (2, 8, "probabilities")],
)
def test_where_evidence_cannot_be_the_condition_classes_are(
    classes: int, resolution: int, condition: str
) -> None:
    names = tuple(map(str, range(classes)))
    explained = problems.classifier(class_names=names)
    recipe = problems.recipe("evidence")
    config = RunConfig(experiment="e", data="d", classifier="c", resolution=16, recipe=recipe)
    fixed = {"resolution", "network.channel_base", "training.total_kimg", "training.batch_size"}
    images = cast(Preview, None)  # not looked at where nothing is measured
    given = config.model_copy(update={"resolution": resolution})
    planned = plan(given, images, explained, problems.HARDWARE, fixed=fixed)
    chosen = planned.config.recipe
    assert (chosen.network.condition, chosen.loss.evidence) == (condition, float(condition == "evidence"))
    assert any("network.condition probabilities" in reason for reason in planned.reasons) == (
        condition != "evidence"
    )
    own = plan(given, images, explained, problems.HARDWARE, fixed={*fixed, "network.condition"})
    assert own.config.recipe.network.condition == "evidence"
    if condition != "evidence":
        with pytest.raises(ConfigError, match=r"loss\.evidence: evidence .* leave it out"):
            plan(given, images, explained, problems.HARDWARE, fixed={*fixed, "loss.evidence"})
    # The same command continues the run: what was chosen for the classifier is not held against it.
    assert keep_choices(recipe, chosen, [], everything=False) == chosen


@pytest.mark.parametrize(
    ("side", "input_size", "wanted"),
    [
        (64, 64, 64),
        (1000, 224, 128),
        (48, 224, 32),
        (300, None, 256),
        (28, 28, 16),
        (5000, None, 1024),
        (3, 3, 8),
    ],
)
def test_resolution_is_what_images_and_classifier_both_have(
    side: int, input_size: int | None, wanted: int
) -> None:
    assert finest_resolution(side, input_size) == wanted


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5H", 5400), ("45s", 45)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 hours", "-1h", "0m", "m30", "30m2h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="no duration"):
        parse_duration(text)


def test_widths_scale_and_latents_stay() -> None:
    before = load_recipe("fast").network
    half: Any = scale_widths(load_recipe("fast"), 0.5).network
    assert (half.channel_max, half.encoder_channel_max) == (before.channel_max / 2, 64)
    assert half.latent_features == before.latent_features
    assert half.discriminator_channel_base is None
    assert scale_widths(problems.recipe("fast"), 0.01).network.channel_max == 1
