"""Image quality on models whose reconstructions are known, and the extractors by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import problems
import training_problems
from stylex.errors import ConfigError, DataError
from stylex.evaluation import extractors
from stylex.evaluation.extractors import InceptionFeatures, load_extractor
from stylex.evaluation.measure import TestImages
from stylex.evaluation.quality import measure_quality, swapped
from stylex.perceptual import Distance


class Squared(Distance):
    """Mean squared difference."""

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (images - others).square().mean(dim=(1, 2, 3))


def known(shift: float, count: int = 12) -> tuple[Any, Tensor, TestImages]:
    """A linear model, random images and "reconstructions" that are `shift` brighter in the second half."""
    model = problems.linear_model()
    random = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 4, 4, generator=random) - 0.5
    other = images.clone()
    other[count // 2 :] += shift
    logits = [model.classify(part).numpy() for part in (images, other)]
    test = TestImages(images, torch.zeros(count, 8), logits[0], logits[1], other, ("",) * count)
    return model, images, test


def measure(model: Any, images: Tensor, test: TestImages, **given: Any) -> Any:
    tools = {"extractor": problems.PooledPixels(), "perceptual": ("squared", Squared())}
    return measure_quality(model, images, test, **tools, **given)


def test_perfect_reconstructions() -> None:
    found = measure(*known(0.0), judge=problems.two_classes(bias=0.3))
    assert found.fidelity is not None
    assert found.fidelity.l1.estimate == 0
    assert (found.fidelity.agreement.estimate, found.fidelity.judge_agreement.estimate) == (1, 1)
    same = found.realism["reconstructions"]
    assert same.fid == pytest.approx(0, abs=1e-6)
    assert (same.precision, same.recall) == (1, 1)


def test_figures_known_by_hand() -> None:
    model, images, test = known(0.25)
    found = measure(model, images, test, judge=problems.two_classes(bias=5.0))
    fidelity = found.fidelity
    assert fidelity.l1.estimate == pytest.approx(0.125, rel=1e-5)  # half of the images, by a quarter
    assert fidelity.perceptual.estimate == pytest.approx(0.03125, rel=1e-5)
    assert (fidelity.perceptual_network, fidelity.images, fidelity.l1.n) == ("squared", 12, 12)
    before, after = ((part[:, 1] > part[:, 0]) for part in (test.logits_original, test.logits))
    assert 0 < (before == after).mean() < 1
    assert fidelity.agreement.estimate == pytest.approx(np.mean(before == after))
    judge = problems.two_classes(bias=5.0)
    shown = [judge(part).argmax(dim=1).numpy() for part in (images, test.reconstructions)]
    assert fidelity.judge_agreement.estimate == pytest.approx(np.mean(shown[0] == shown[1]))
    assert set(found.realism) == {"reconstructions"}  # no condition to swap, no mapping to sample from
    assert found.realism["reconstructions"].fid > 0.01
    assert found.realism["reconstructions"].extractor == "pooled pixels"
    assert measure(model, images, test).to_json()["fidelity"]["judge_agreement"] is None


def test_too_few_images() -> None:
    with pytest.raises(DataError, match="2 test images are too few"):
        measure(*known(0.0, count=2))


@pytest.mark.parametrize("recipe", ["fast", "evidence"])
def test_swapped_images_have_their_own_w_and_the_condition_of_another(recipe: str) -> None:
    model = problems.tiny_model(recipe)
    width = model.generator.condition_features
    assert width == (8 if recipe == "evidence" else 2)
    pool = training_problems.images(16).batch(range(16))
    with torch.no_grad():  # a classifier that is between its classes, so that conditions differ
        logits = model.classifier(pool)
        model.classifier.network.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    condition = model.encode(pool)[0][:, -1]
    images = pool[[int(condition.argmin()), int(condition.argmax())]]
    latents = model.encode(images)[0]
    mixed = torch.cat([latents[:, :-width], latents[[1, 0], -width:]], dim=1)
    assert torch.allclose(swapped(model, images, 0), model.synthesise(model.styles(mixed)), atol=1e-6)
    assert not torch.allclose(swapped(model, images, 0), model.synthesise(model.styles(latents)), atol=1e-3)
    with pytest.raises(DataError, match="two images or more"):
        swapped(model, images[:1], 0)
    with pytest.raises(DataError, match="a condition"):
        swapped(problems.linear_model(), torch.zeros(2, 3, 4, 4), 0)


def test_kinds_follow_the_networks() -> None:
    pictures = training_problems.images(6).batch(range(6))
    for recipe, kinds in (("fast", {"reconstructions", "swapped"}), ("stylegan2", {"sampled"})):
        model = problems.tiny_model(recipe)
        empty = TestImages(pictures, Tensor(), *[model.classify(pictures).numpy()] * 2, pictures, ())
        found = measure(model, pictures, empty)
        assert set(found.realism) == kinds
        assert (found.fidelity is None) == (recipe == "stylegan2")
        assert {(entry.reals, entry.generated) for entry in found.realism.values()} == {(6, 6)}


def test_efficientnet_features_are_what_its_classifier_reads() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    extractor = load_extractor("efficientnet-lite0")
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    found = extractor.extract(images, batch_size=1)
    network: Any = extractor.network
    pixels = (images + 1) * 127.5  # as the network's authors prepare them: (value − 127) / 128
    with torch.no_grad():
        wanted = network.network.extract_features((pixels - 127) / 128).mean(dim=(2, 3))
    assert found.shape == (2, extractor.num_features)
    assert torch.allclose(found, wanted, atol=1e-4)
    small = extractor.extract(images[:, :, ::4, ::4])
    assert small.shape == found.shape


def test_inception_gets_256_values() -> None:
    class Mean(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            assert pixels.dtype == torch.uint8
            return pixels.double().mean(dim=(2, 3))

    images = torch.tensor([-1.0, 0.0, 1.0, 1.5])[:, None, None, None].expand(4, 3, 2, 2)
    assert InceptionFeatures(Mean())(images)[:, 0].tolist() == [0, 128, 255, 255]


def test_where_inception_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    pytest.importorskip("efficientnet_lite_pytorch")

    def no_network(*arguments: Any, **given: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    assert load_extractor("auto").name.startswith("efficientnet-lite0")
    with pytest.raises(ConfigError, match=r"no route.*put that file into .*checkpoints, or choose"):
        load_extractor("inception-v3")
    with pytest.raises(ConfigError, match="no feature extractor named 'vgg'; choose auto"):
        load_extractor("vgg")


class _Trap:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("trap-was-sprung"),)


def test_a_file_of_weights_that_holds_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / extractors.INCEPTION_URL.rpartition("/")[2]
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(ConfigError, match="not Inception's weights"):
        load_extractor("inception-v3")
    assert not Path("trap-was-sprung").exists()
