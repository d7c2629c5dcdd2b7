"""The small-data comparison in a short form; `python scripts/small_data.py --out small` is the long one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import problems
import training_problems
from script_files import load_script
from stylex.errors import DataError, RunError
from stylex.run import Run
from stylex.training.loop import Trainer
from stylex.training.stability import Stability

TINY = tuple(
    setting
    for setting in (
        *training_problems.TINY,
        "loss.perceptual_network=classifier",
        "training.learning_rate=0.001",  # so few images of noise are no training: nothing may collapse
    )
    if not setting.startswith(("training.total_kimg", "loss.adversarial"))
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("small_data")


@pytest.fixture
def setup(script: ModuleType) -> Any:
    return script.Setup(
        training_problems.images(12),
        training_problems.images(10, seed=1),
        training_problems.images(4, seed=2),
        training_problems.classifier(),
        problems.PooledPixels(),
        training_problems.HARDWARE,
    )


def configs(script: ModuleType, kimg: float = 0.06, *more: str) -> dict[str, Any]:
    return {
        arm: script.settings("fast", kimg, 0.02, 3, training_problems.RESOLUTION, arm, [*TINY, *more])
        for arm in script.ARMS
    }


def savable(setup: Any) -> Any:
    """The random classifier, of a width that its file can say."""
    setup.classifier.options = {"widths": [4, 4, 8, 8]}
    return setup


def test_both_trainings_are_the_same_but_for_the_augmentation(
    script: ModuleType, setup: Any, tmp_path: Path
) -> None:
    wanted = configs(script)
    plain, ada = wanted["none"].recipe, wanted["ada"].recipe
    assert plain.training.augmentation == "none"
    assert plain.model_copy(update={"training": ada.training}) == ada
    same = plain.training.model_copy(update={"augmentation": "ada"})
    assert same == ada.training
    # the recipe's warm-up of 40 kimg is as much shorter as its 120 kimg are
    assert plain.loss.adversarial_start_kimg == pytest.approx(0.02)
    table = script.compare(tmp_path, wanted, savable(setup))
    json.dumps(table, allow_nan=False)
    assert (table["images"], table["held_out"], table["seed"]) == (12, 10, 3)
    assert table["extractor"] == "pooled pixels"
    none, with_ada = table["arms"]["none"], table["arms"]["ada"]
    assert none["augmentation_p"] is None
    assert set(with_ada["augmentation_p"]) == {"last", "highest"}
    for arm in (none, with_ada):
        assert arm["reconstructions"]["reals"] == arm["swapped"]["generated"] == 10
        assert arm["encoder_variance"] > 0
        assert arm["encoder_variance_at_start"] > 0
        assert arm["agreement"]["n"] == 10
        assert set(arm["discriminator"]) >= {"real_training", "real_held_out", "generated", "overfitting"}
    before = (tmp_path / "ada" / "model.safetensors").read_bytes()
    assert script.compare(tmp_path, wanted, setup)["arms"] == table["arms"]  # done already: measured again
    assert (tmp_path / "ada" / "model.safetensors").read_bytes() == before
    with pytest.raises(RunError, match="other settings"):
        script.compare(tmp_path, configs(script, 0.08), setup)


def test_a_collapse_is_called_one(
    script: ModuleType, setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averaged encoder gives one latent for everything from the first step on."""
    average = Trainer._average

    def collapsing(self: Trainer) -> None:
        average(self)
        self.state.averages["encoder"].get_parameter("output.weight").data.zero_()

    monkeypatch.setattr(Trainer, "_average", collapsing)
    plain = (
        "network.condition=none",
        "network.discriminator=plain",
        "network.encoder_components=0",
        "loss.evidence=0",
    )
    config = configs(script, 0.04, *plain, "training.schedule=[encode]", "sparsity.threshold=0")["none"]
    with monkeypatch.context() as patch:
        patch.setattr(Stability, "check", lambda *_: {})  # or there would be no model to measure
        found = script.run_arm(tmp_path / "run", config, savable(setup))
    assert found["encoder_variance"] < 1e-9
    assert found["diversity_of_reconstructions"] < 1e-6
    assert "swapped" not in found
    assert any("same latent" in words for words in found["collapsed"])
    assert any("nearly the same" in words for words in found["collapsed"])
    stopped = script.run_arm(tmp_path / "stopped", config, savable(setup))
    assert any("nearly the same latent" in words for words in stopped["collapsed"])
    assert [event["returned_to"] for event in stopped["returns"]] == [0]
    assert "encoder_variance" not in stopped


def test_figures_are_judged_as_in_training(script: ModuleType) -> None:
    good = {
        "encoder_variance": 1.0,
        "encoder_variance_at_start": 1.0,
        "l1_share_of_constant_image": 0.5,
        "agreement_over_chance": 0.8,
        "diversity_of_reconstructions": 0.7,
    }
    assert script.verdict(good, None) == []
    assert script.verdict(good | {"agreement_over_chance": None}, None) == []
    assert script.verdict({}, "diverged") == ["diverged"]
    for change, words in (
        ({"l1_share_of_constant_image": 1.1}, "constant image"),
        ({"agreement_over_chance": 0.05}, "chance"),
        ({"diversity_of_reconstructions": 0.05}, "nearly the same"),
        ({"encoder_variance": 1e-3, "l1_share_of_constant_image": 1.0}, "same latent"),
    ):
        assert any(words in said for said in script.verdict(good | change, None))


def test_p_is_read_from_the_metrics(script: ModuleType, tmp_path: Path) -> None:
    run = training_problems.make_run(tmp_path / "run", "fast")
    assert script.augmentation_p(run) is None
    run.metrics_file.write_text(
        "".join(json.dumps({"step": n, "augmentation/p": p}) + "\n" for n, p in enumerate((0.0, 0.3, 0.1)))
        + '{"step": 3, "l1": 0.5}\n'
    )
    assert script.augmentation_p(run) == {"last": 0.1, "highest": 0.3}


def test_agreement_over_chance(script: ModuleType) -> None:
    before = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).numpy()
    assert script.over_chance(before, before) == 1
    assert script.over_chance(before, before[[2, 0, 2, 0]]) == 0
    assert script.over_chance(before[:2], before[:2]) is None  # one class: nothing to agree on


def test_the_command(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rendered faces, a classifier of its own, EfficientNet's features; too few images are refused."""
    options = ["--out", str(tmp_path / "small"), "--size", "16", "--faces", "120", "--kimg", "0.04"]
    options += ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--held-out", "6"]
    options += ["--extractor", "efficientnet-lite0", "--seed", "1"]
    for setting in TINY:
        options += ["--set", setting]
    assert script.main([*options, "--images", "500"]) == 2
    assert "500 are asked for" in capsys.readouterr().err
    code = script.main([*options, "--images", "30"])
    shown, said = capsys.readouterr()
    table = json.loads(shown)
    assert table["extractor"].startswith("efficientnet-lite0")
    assert code == bool(table["arms"]["ada"]["collapsed"])
    assert "ada: " in said
    run = Run.open(tmp_path / "small" / "ada")
    assert run.config.recipe.training.augmentation == "ada"


def test_a_set_that_is_too_small(script: ModuleType) -> None:
    with pytest.raises(DataError, match="12 training images, 13 are asked for"):
        script.few(training_problems.images(12), 13, 0, "training")
    first, again = (script.few(training_problems.images(12), 5, 0, "training") for _ in range(2))
    assert first.names == again.names
    assert len(set(first.names)) == 5
