"""Settings: validated, frozen, unknown keys refused, and the published recipes as their sources have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from stylex.config import (
    Recipe,
    RunConfig,
    dump_yaml,
    load_named,
    load_recipe,
    names,
    override,
    read_yaml,
    validate,
)
from stylex.errors import ConfigError


def test_every_recipe_that_comes_with_the_package_loads_under_its_own_name() -> None:
    assert names("recipes") == ["fast", "study", "stylegan2", "stylex", "vdv"]
    for name in names("recipes"):
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert validate(Recipe, recipe.model_dump(mode="json"), "again") == recipe


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("training.batchsize=8", "training.batchsize: unknown key"),
        ("speed=8", "speed: unknown key"),
        ("training.batch_size=0", "training.batch_size"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.learning_rate=.inf", "training.learning_rate"),
        ("training.learning_rate=fast", "training.learning_rate"),
        ("training.betas=[0.0, 1.0]", "training.betas.1"),
        ("training.schedule=[]", "training.schedule"),
        ("training.schedule=[encode, dream]", "training.schedule.1"),
        ("loss.perceptual_network=vgg", "loss.perceptual_network"),
        ("network.condition=none", "conditioned discriminator"),
    ],
)
def test_wrong_settings_get_one_line_that_names_the_key(assignment: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("fast", [assignment])
    assert named in str(caught.value)
    assert "recipe fast" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_swap_steps_and_sparsity_need_a_condition() -> None:
    plain = ["network.condition=none", "network.discriminator=plain"]
    with pytest.raises(ConfigError, match="swap steps"):
        load_recipe("fast", plain)
    with pytest.raises(ConfigError, match="sparsity"):
        load_recipe("fast", [*plain, "training.schedule=[encode]"])


def test_readers_are_set_against_each_other_by_a_threshold() -> None:
    exclusive = "sparsity.exclusive=0.5"
    with pytest.raises(ConfigError, match=r"sparsity\.exclusive needs sparsity\.threshold") as raised:
        load_recipe("fast", [exclusive, "sparsity.threshold=0"])
    assert "\n" not in str(raised.value)
    assert load_recipe("fast", [exclusive, "sparsity.threshold=0.001"]).sparsity.exclusive == 0.5


def test_a_warm_up_needs_an_encoder() -> None:
    with pytest.raises(ConfigError, match="needs an encoder"):
        load_recipe("stylegan2", ["loss.adversarial_start_kimg=1"])


def test_several_errors_are_counted() -> None:
    with pytest.raises(ConfigError, match="and 1 more"):
        load_recipe("fast", ["training.a=1", "training.b=2"])


def test_settings_cannot_be_changed() -> None:
    recipe = load_recipe("fast")
    with pytest.raises(ValidationError):
        recipe.training.batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("assignment", ["batch_size", "=3", "a.b=[1", "name.b=1"])
def test_assignments_that_say_nothing(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override({"name": "x"}, [assignment])


def test_assignments_leave_the_original_alone() -> None:
    original = {"training": {"batch_size": 4}}
    changed = override(original, ["training.batch_size=8", "training.learning_rate=2e-4", "new.key=[1, 2]"])
    assert original == {"training": {"batch_size": 4}}
    assert changed["training"]["batch_size"] == 8
    assert changed["new"] == {"key": [1, 2]}
    assert load_recipe("fast", ["training.learning_rate=2e-4"]).training.learning_rate == 2e-4


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fast, study, stylegan2, stylex, vdv"):
        load_named("recipes", "slow")


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml(load_recipe("fast", ["name=mine", "training.batch_size=7"])))
    assert load_recipe(str(file)).training.batch_size == 7


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"a: [1", b"\xff\xfe\x00", b""])
def test_files_that_are_no_settings(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "damaged.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged\.yaml"):
        read_yaml(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "missing.yaml")


def test_yaml_does_not_run_code(tmp_path: Path) -> None:
    file = tmp_path / "code.yaml"
    file.write_text(f"a: !!python/object/apply:pathlib.Path.touch ['{tmp_path}/touched']\n")
    with pytest.raises(ConfigError):
        read_yaml(file)
    assert not (tmp_path / "touched").exists()


def test_resolution_is_a_power_of_two() -> None:
    settings = {"experiment": "x", "data": "d", "classifier": "c", "recipe": load_recipe("fast").model_dump()}
    assert validate(RunConfig, {**settings, "resolution": 128}, "run").resolution == 128
    with pytest.raises(ConfigError, match="96, not a power of two"):
        validate(RunConfig, {**settings, "resolution": 96}, "run")


def test_a_run_config_survives_the_file(tmp_path: Path) -> None:
    config = RunConfig(experiment="x", data="d", classifier="c", recipe=load_recipe("study"))
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert validate(RunConfig, read_yaml(file), str(file)) == config


def test_channels_fall_with_resolution_and_each_network_can_have_its_own() -> None:
    network = load_recipe("vdv").network
    assert network.channels(64) == {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}
    assert network.encoder_channels(64) == {4: 512, 8: 512, 16: 256, 32: 128, 64: 64}
    assert network.discriminator_channels(64) == network.encoder_channels(64)
    plain = load_recipe("study").network
    assert set(plain.channels(64).values()) == {512}
    assert plain.discriminator_channels(64) == plain.encoder_channels(64) == plain.channels(64)


def test_the_authors_recipe() -> None:
    """The table of losses: authors, 250k steps of 16 images; the rest as StyleGAN2."""
    recipe = load_recipe("stylex")
    loss, training = recipe.loss, recipe.training
    assert (loss.adversarial, loss.l1, loss.perceptual, loss.latent_l1, loss.kl) == (1, 0.1, 0.1, 0.1, 1)
    assert (loss.r1, loss.r1_interval, loss.path_length, loss.path_length_interval) == (10, 16, 2, 4)
    assert loss.path_length_in_turn
    assert (training.learning_rate, training.batch_size, training.betas) == (0.002, 16, (0.0, 0.99))
    assert training.total_kimg * 1000 / training.batch_size == 250_000
    assert training.schedule == ("encode", "sample")
    assert training.style_mixing == 0.9
    assert (recipe.network.condition, recipe.network.discriminator) == ("probabilities", "classes")


def test_the_study() -> None:
    """As its training code has it: weights, intervals, rates, decay 0.5 ** (32 / 10000); 220k steps."""
    recipe = load_recipe("study")
    loss, training = recipe.loss, recipe.training
    assert (loss.adversarial, loss.l1, loss.perceptual, loss.latent_l1, loss.kl) == (1, 1, 0.1, 0.1, 1)
    assert loss.perceptual_network == "lpips-vgg"
    assert (loss.r1, loss.r1_interval, loss.path_length, loss.path_length_interval) == (10, 16, 2, 1)
    assert not loss.path_length_trains_encoder
    assert (training.learning_rate, training.batch_size, training.encoder_betas) == (0.0002, 4, (0.9, 0.999))
    assert training.total_kimg * 1000 / training.batch_size == 220_000
    assert training.schedule == ("encode",)
    assert 0.5 ** (training.batch_size / (training.ema_halflife_kimg * 1000)) == pytest.approx(
        0.5 ** (32 / 10_000)
    )
    assert training.ema_rampup is None
    assert (recipe.network.condition, recipe.network.discriminator) == ("logits", "plain")


def test_van_der_vleuten() -> None:
    """Losses of encoder batches doubled, regularisers not times their intervals, 4 × 8 images a step."""
    recipe = load_recipe("vdv")
    loss, training = recipe.loss, recipe.training
    assert (loss.l1, loss.perceptual, loss.latent_l1, loss.kl) == (2 * 1, 2 * 0.1, 2 * 0.1, 2 * 1)
    assert loss.perceptual_network == "lpips-alex"
    assert (loss.r1_interval, loss.path_length_interval) == (4, 32)
    assert loss.r1 / 2 * loss.r1_interval == 10
    assert loss.path_length * loss.path_length_interval == 1
    step = training.batch_size * training.accumulate
    assert (training.batch_size, training.accumulate, training.learning_rate) == (4, 8, 0.0002)
    assert loss.path_length_start_kimg * 1000 / step == 5000
    assert not training.lazy_adam


def test_plain_stylegan2_has_no_encoder_and_no_condition() -> None:
    recipe = load_recipe("stylegan2")
    assert not recipe.encodes
    assert recipe.samples
    assert not recipe.perceives
    assert recipe.network.condition == "none"


def test_what_a_schedule_needs() -> None:
    recipe = load_recipe("fast")
    assert recipe.encodes
    assert not recipe.samples
    assert recipe.perceives
    assert not load_recipe("fast", ["loss.perceptual=0"]).perceives
    assert not load_recipe("fast", ["loss.perceptual_network=none"]).perceives
    assert not load_recipe("fast", ["training.schedule=[swap]"]).perceives
