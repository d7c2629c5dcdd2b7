"""Principal components in the encoder, against scikit-learn's, and what becomes of them in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import training_problems as problems
from stylex.data.images import ImageSet
from stylex.networks import Encoder
from stylex.networks.residual import shrunk
from stylex.run import Run
from stylex.training import components
from stylex.training.components import NEGLIGIBLE, fit_components
from stylex.training.loop import Trainer


def encoder(resolution: int, components: int, latent_features: int = 12) -> Encoder:
    widths = {2**power: 4 for power in range(2, resolution.bit_length())}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(resolution, widths, latent_features, components=components)


def pictures(count: int, resolution: int, rank: int | None = None, seed: int = 0) -> ImageSet:
    """Noise, or mixtures of `rank` patterns with clearly different variances."""
    random = np.random.default_rng(seed)
    shape = (resolution, resolution, 3)
    if rank is None:
        pixels = random.integers(0, 256, (count, *shape))
    else:
        patterns = random.normal(size=(rank, *shape))
        weights = random.normal(size=(count, rank)) * np.geomspace(30, 6, rank)
        pixels = np.clip(np.rint(127 + np.einsum("nr,rhwc->nhwc", weights, patterns)), 0, 255)
    names = tuple(str(number) for number in range(count))
    return ImageSet(pixels.astype(np.uint8), names, None, None, {})


@pytest.mark.parametrize("resolution", [16, 64])
def test_components_are_the_principal_ones_whitened(resolution: int) -> None:
    images = pictures(60, resolution, rank=5)
    network = encoder(resolution, components=4)
    held = fit_components(network, images, deviation=0.5, seed=0)
    rows = shrunk(images.batch(slice(None)))
    reference = PCA(4, svd_solver="full").fit(rows.numpy())
    assert held == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-4)
    projected = network.project(images.batch(slice(None)))
    assert projected.shape == (60, 12)
    assert bool((projected[:, 4:] == 0).all())
    expected = reference.transform(rows.numpy())
    expected = expected / expected.std(axis=0) * 0.5
    signs = np.sign((projected[:, :4].numpy() * expected).sum(axis=0))
    np.testing.assert_allclose(projected[:, :4].numpy() * signs, expected, atol=2e-3)
    largest = network.component_weight.gather(1, network.component_weight.abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())


def test_latents_are_the_sum_of_what_is_learned_and_the_components() -> None:
    images = pictures(20, 16)
    network = encoder(16, components=3)
    batch = images.batch(slice(None))
    before = network(batch)
    torch.testing.assert_close(before, network.learned(batch))
    fit_components(network, images, deviation=0.4, seed=0)
    torch.testing.assert_close(network(batch), before + network.project(batch))
    deviations = network.project(batch)[:, :3].std(dim=0, correction=0)
    assert deviations.tolist() == pytest.approx([0.4] * 3, rel=1e-4)


def test_directions_that_the_images_do_not_fill_stay_0() -> None:
    network = encoder(16, components=10)
    held = fit_components(network, pictures(4, 16), deviation=1.0, seed=0)
    filled = network.component_weight.abs().sum(dim=1) > 0
    assert filled.tolist() == [True] * 3 + [False] * 7
    assert held == pytest.approx(1.0, abs=10 * NEGLIGIBLE)
    same = ImageSet(np.full((5, 16, 16, 3), 9, np.uint8), tuple("abcde"), None, None, {})
    assert fit_components(network, same, deviation=1.0, seed=0) == 1.0
    assert not bool(network.component_weight.any())
    assert bool(network(same.batch(slice(None))).isfinite().all())


def test_a_seed_and_images_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed draws the sample, where there are more images."""
    monkeypatch.setattr(components, "SAMPLE", 200)
    images = pictures(210, 8)
    fitted = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        network = encoder(8, components=2)
        fit_components(network, images, deviation=1.0, seed=seed)
        fitted[name] = network.component_weight
    assert torch.equal(fitted["one"], fitted["again"])
    assert not torch.equal(fitted["one"], fitted["other"])


def test_training_keeps_the_components_and_a_checkpoint_brings_them_back(tmp_path: Path) -> None:
    first = problems.make_trainer(tmp_path / "run", "fast")
    first.resume()
    found = first.state.networks.encoder
    assert found is not None
    assert found.components == 8  # 80 in the recipe, of 8 latent features
    weight = found.component_weight.clone()
    assert bool(weight.any())
    assert torch.equal(first.state.averages["encoder"].component_weight, weight)  # type: ignore[arg-type]
    for _ in range(3):
        first.step()
    assert torch.equal(found.component_weight, weight)
    first._save()
    other = Trainer(
        Run.open(tmp_path / "run"),
        problems.images(seed=5),
        problems.classifier(),
        problems.HARDWARE,
        problems.images(3),
    )
    other.resume()
    again = other.state.networks.encoder
    assert again is not None
    assert torch.equal(again.component_weight, weight)
