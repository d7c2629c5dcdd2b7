from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import problems
import training_problems
from stylex.attfind import discover, load_discovery, load_findings, search
from stylex.classifiers import Classifier
from stylex.data.images import ImageSet
from stylex.errors import DataError, RunError
from stylex.model import Model
from stylex.run import Run

SETTINGS = problems.everything(images_per_class=4)


def images(count: int = 24) -> ImageSet:
    """Pictures [4 px] of which the linear classifier puts about half into either class."""
    pixels = np.random.default_rng(0).integers(100, 156, (count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(pixels, tuple(f"{i}.png" for i in range(count)), None, None, {})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return training_problems.make_run(tmp_path / "run", "fast")


def shards(run: Run) -> list[Path]:
    return sorted((run.path / "effects").glob("shard-*"))


def test_discovery_takes_images_of_every_class() -> None:
    model = problems.linear_model()
    found = discover(model, images(), problems.everything(images_per_class=2))
    classes = found.logits.argmax(dim=1).tolist()
    assert sorted(classes) == [0, 0, 1, 1]
    for name, style in zip(found.names, found.styles, strict=True):
        number = int(name.removesuffix(".png"))
        expected, _ = model.encode(images().batch([number]))
        torch.testing.assert_close(style, expected[0])
    assert torch.equal(found.space.low, found.space.searchable(found.styles).amin(0))


def test_discovery_holds_a_batch_of_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes the same images as with everything at once."""
    model = problems.tiny_model()
    whole = discover(model, training_problems.images(40), SETTINGS)
    held: list[int] = []
    encode, classify = Model.encode, Model.classify

    def encoded(self: Model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        held.append(len(images))
        return encode(self, images)

    def classified(self: Model, images: torch.Tensor) -> torch.Tensor:
        held.append(len(images))
        return classify(self, images)

    monkeypatch.setattr(Model, "encode", encoded)
    monkeypatch.setattr(Model, "classify", classified)
    found = discover(replace(model, batch_size=8), training_problems.images(40), SETTINGS)
    assert max(held) == 8
    assert found.names == whole.names
    torch.testing.assert_close(found.styles, whole.styles)


def test_a_class_that_is_missing() -> None:
    with pytest.raises(DataError, match=r"none of 24 .* counts as 'yes'"):
        discover(problems.linear_model(problems.two_classes(bias=-100)), images(), SETTINGS)
    with pytest.raises(DataError, match="no discovery images"):
        discover(problems.linear_model(), None, SETTINGS)


def test_results_are_kept_in_the_run(run: Run) -> None:
    model = problems.linear_model()
    findings = search(run, model, images(), SETTINGS)
    assert load_findings(run) == findings
    kept, found = load_discovery(run, model), discover(model, images(), SETTINGS, run.config.seed)
    assert kept.names == found.names
    assert torch.equal(kept.styles, found.styles)
    assert torch.equal(kept.space.high, found.space.high)
    assert len(shards(run)) == 2


def test_a_killed_search_goes_on_with_the_same_result(run: Run, tmp_path: Path) -> None:
    whole = search(
        training_problems.make_run(tmp_path / "other", "fast"), problems.linear_model(), images(), SETTINGS
    )

    def kill(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(run, problems.linear_model(), images(), SETTINGS, kill)
    assert len(shards(run)) == 1
    with pytest.raises(RunError, match="no attributes yet"):
        load_findings(run)
    seen: list[int] = []
    kept = shards(run)[0].stat().st_mtime_ns
    again = search(run, problems.linear_model(), images(), SETTINGS, lambda done, total: seen.append(done))
    assert again == whole
    assert seen == [4, 5, 6, 7, 8], "the four images of the first shard are not measured again"
    assert shards(run)[0].stat().st_mtime_ns == kept


@pytest.mark.parametrize("change", ["shift", "classifier"])
def test_another_search_starts_over(run: Run, change: str) -> None:
    search(run, problems.linear_model(), images(), SETTINGS)
    settings, classifier = SETTINGS, problems.two_classes()
    if change == "shift":
        settings = problems.everything(images_per_class=4, shift=0.5)
    else:
        classifier = problems.two_classes(bias=0.01)
    seen: list[int] = []
    model = problems.linear_model(classifier)
    search(run, model, images(), settings, lambda done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_another_selection_measures_nothing_again(run: Run) -> None:
    search(run, problems.linear_model(), images(), SETTINGS)
    seen: list[int] = []
    settings = problems.everything(images_per_class=4, method="independent", count=2)
    findings = search(run, problems.linear_model(), images(), settings, lambda done, total: seen.append(done))
    assert seen == [8]
    assert len(findings.attributes["yes"]) == 2


@pytest.mark.parametrize("damage", [b"", b"not a shard", None])
def test_a_damaged_shard_is_measured_again(run: Run, damage: bytes | None) -> None:
    whole = search(run, problems.linear_model(), images(), SETTINGS)
    file = shards(run)[1]
    content = file.read_bytes()
    file.write_bytes(content[:-40] if damage is None else damage)
    seen: list[int] = []
    again = search(run, problems.linear_model(), images(), SETTINGS, lambda done, total: seen.append(done))
    assert again == whole
    assert seen == [4, 5, 6, 7, 8]
    assert file.read_bytes() == content


def test_attributes_of_other_weights_are_refused(run: Run) -> None:
    search(run, problems.linear_model(), images(), SETTINGS)
    trained_on = problems.linear_model()
    trained_on.generator.nothing += 1
    with pytest.raises(RunError, match="other weights"):
        load_discovery(run, trained_on)


def test_damaged_attributes(run: Run) -> None:
    search(run, problems.linear_model(), images(), SETTINGS)
    file = run.path / "attributes.json"
    content = json.loads(file.read_text())
    del content["merged"]
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"attributes\.json: damaged"):
        load_findings(run)


def test_a_model_without_encoder_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylex.attfind.discovery.SAMPLED_POOL", 40)
    model = problems.tiny_model("stylegan2")
    found = discover(model, None, problems.everything(images_per_class=3), seed=5)
    assert found.logits.argmax(dim=1).bincount().tolist() == [3, 3]
    numbers = [int(name.removeprefix("sample ")) for name in found.names]
    torch.testing.assert_close(found.latents, model.sample(40, 5)[numbers])


def test_a_rare_class_is_looked_for_in_all_images() -> None:
    model = problems.linear_model()
    pixels = np.full((40, 4, 4, 3), 128, np.uint8)
    pixels[:, 0, 0, 0] = 100  # style 0 (weight 0.5) low: "no"
    last = np.random.default_rng(0).permutation(40)[-2:]
    pixels[last, 0, 0, 0] = 156
    pool = ImageSet(pixels, tuple(f"{i}.png" for i in range(40)), None, None, {})
    logits = model.classify(pool.batch(range(40)))
    assert set(np.flatnonzero(logits.argmax(1))) == set(last)
    found = discover(model, pool, problems.everything(images_per_class=2), seed=0)
    assert found.logits.argmax(dim=1).bincount().tolist() == [2, 2]
    assert {f"{i}.png" for i in last} < set(found.names)
    batch = pool.batch([int(name.removesuffix(".png")) for name in found.names])
    torch.testing.assert_close(found.styles, model.encode(batch)[0])


def test_styles_and_attributes_of_two_searches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is killed between writing the one and the other."""
    search(run, problems.linear_model(), images(), SETTINGS)
    before = load_findings(run)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["stylex.attfind.search"], "save_findings", kill)
        with pytest.raises(KeyboardInterrupt):
            search(run, problems.linear_model(), images(), problems.everything(images_per_class=2))
    assert load_findings(run) == before
    with pytest.raises(RunError, match="from two searches"):
        load_discovery(run, problems.linear_model())
    search(run, problems.linear_model(), images(), SETTINGS)
    load_discovery(run, problems.linear_model())


def test_a_classifier_without_weights_that_changed(run: Run) -> None:
    """Its fingerprint is its name; what it says of the reconstructions tells."""

    class Code(torch.nn.Module):
        bias = 0.0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            odds = images.flatten(1)[:, :8] / problems.SCALE @ torch.tensor(problems.WEIGHTS) + self.bias
            return torch.stack([-odds / 2, odds / 2], dim=1)

    code = Code()
    classifier = Classifier(code, class_names=("no", "yes"), input_size=None).freeze()
    search(run, problems.linear_model(classifier), images(), SETTINGS)
    code.bias = 0.01
    seen: list[int] = []
    search(run, problems.linear_model(classifier), images(), SETTINGS, lambda done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
