"""The noun: resize, normalisation, single logit, precision, features, and the door that checks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stylex.classifiers import Classifier
from stylex.classifiers.architectures import MobileNet, SmallCNN, build, default_options
from stylex.errors import ClassifierError


class Channels(nn.Module):
    """Mean of each of the first `count` channels: logits that are known by hand."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))[:, : self.count]


class Pixels(nn.Module):
    """The pixels themselves."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def small(classes: int = 2, input_size: int = 16) -> Classifier:
    torch.manual_seed(1)
    network = SmallCNN(classes, widths=(8, 8, 16, 16))
    names = [f"k{i}" for i in range(classes)]
    return Classifier(network, class_names=names, input_size=input_size, architecture="small_cnn")


def test_normalisation_by_hand() -> None:
    classifier = Classifier(
        Channels(3), class_names="abc", input_size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)
    )
    images = torch.tensor([-1.0, 0.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    # on the [0, 1] scale 0, 0.5 and 0.75; minus mean, over std
    assert torch.allclose(classifier(images), torch.tensor([[-1.0, 1.0, 0.375]]))


def test_halving_is_an_antialiased_triangle_filter() -> None:
    classifier = Classifier(Pixels(), class_names=[f"p{i}" for i in range(48)], input_size=4)
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0, :, 3] = 0.8  # one bright column, elsewhere in each channel
    images[:, 1, :, 0] = 0.7
    maps = classifier(images).view(3, 4, 4)
    # Output pixel j sees columns 2j - 1 … 2j + 2 with weights 1:3:3:1, at the border those there are.
    assert torch.allclose(maps[0], torch.tensor([0.0, 0.3, 0.1, 0.0]).expand(4, 4), atol=1e-6)
    assert torch.allclose(maps[1], torch.tensor([0.3, 0.0, 0.0, 0.0]).expand(4, 4), atol=1e-6)
    assert torch.equal(maps[2], torch.zeros(4, 4))


def test_resize_agrees_with_pillow() -> None:
    classifier = Classifier(Pixels(), class_names=[f"p{i}" for i in range(300)], input_size=10)
    pixels = torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = classifier(pixels.expand(1, 3, 24, 24)).view(3, 10, 10)[0]
    picture = Image.fromarray(pixels.numpy()).resize((10, 10), Image.Resampling.BILINEAR)
    theirs = torch.from_numpy(np.array(picture))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_images_of_the_right_size_or_without_one_are_not_touched() -> None:
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    names = [f"p{i}" for i in range(108)]
    for size in (6, None):
        assert torch.equal(
            Classifier(Pixels(), class_names=names, input_size=size)(images), images.flatten(1)
        )


@pytest.mark.parametrize("shape", ["[N, 1]", "[N]"])
def test_single_logit_counts_as_two(shape: str) -> None:
    class One(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            z = images.mean(dim=(2, 3))[:, :1]
            return z if shape == "[N, 1]" else z[:, 0]

    classifier = Classifier(One(), class_names=["old"], input_size=4, single_logit=True, activation="sigmoid")
    logits = classifier(torch.full((1, 3, 4, 4), 0.8))
    assert classifier.class_names == ("not old", "old")
    assert torch.allclose(logits, torch.tensor([[-0.4, 0.4]]))
    p = 1 / (1 + math.exp(-0.8))
    assert torch.allclose(classifier.probabilities(logits), torch.tensor([[1 - p, p]]))


def test_sigmoid_is_taken_label_by_label() -> None:
    classifier = Classifier(Channels(), class_names="ab", input_size=4, activation="sigmoid")
    probabilities = classifier.probabilities(torch.tensor([[0.0, math.log(3)]]))
    assert torch.allclose(probabilities, torch.tensor([[0.5, 0.75]]))


def test_temperature_divides_logits() -> None:
    images = torch.full((1, 3, 4, 4), 0.6)
    plain = Classifier(Channels(), class_names="ab", input_size=4)
    cooled = Classifier(Channels(), class_names="ab", input_size=4, temperature=2.0)
    assert torch.allclose(cooled(images), plain(images) / 2)


@pytest.mark.parametrize("way", ["compute_dtype", "autocast around"])
def test_bf16_inside_is_float32_outside(way: str) -> None:
    classifier, images = small().freeze(), torch.randn(4, 3, 16, 16)
    reference = classifier(images)
    if way == "compute_dtype":
        classifier.compute_dtype = torch.bfloat16
        logits, maps = classifier.forward_with_features(images)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, maps = classifier.forward_with_features(images)
    assert maps[-1].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, reference, atol=0.05)
    assert not torch.equal(logits, reference)


def test_frozen_weights_stay_and_gradients_reach_images() -> None:
    classifier = small().freeze()
    parent = nn.ModuleDict({"classifier": classifier}).train()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    before = classifier.fingerprint
    classifier(images).sum().backward()
    assert parent.training
    assert not any(module.training for module in classifier.modules())
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in classifier.parameters())
    assert classifier.fingerprint == before


def test_fingerprint_follows_the_weights() -> None:
    first, second = small(), small()
    assert first.fingerprint == second.fingerprint
    with torch.no_grad():
        second.network.head.bias[0] += 1e-6
    assert first.fingerprint != second.fingerprint


def test_small_cnn_folded_normalisation_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    network = SmallCNN(3)
    images = torch.randn(8, 3, 32, 32)
    for _ in range(3):
        network(images)  # moves the running statistics away from 0 and 1
    for block in network.blocks:
        nn.init.normal_(block.normalisation.weight)
        nn.init.normal_(block.normalisation.bias)
    network.eval()
    current, slow = images, []
    for index, block in enumerate(network.blocks):
        current = nn.functional.avg_pool2d(current, 2) if index else current
        current = block.normalisation(block.convolution(current)).relu()
        slow.append(current)
    logits, maps = network.forward_with_features(images)
    for fast, reference in zip(maps, slow, strict=True):
        assert torch.allclose(fast, reference, atol=1e-5)
    assert torch.allclose(logits, network.head(slow[-1].mean(dim=(2, 3))), atol=1e-5)
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128, 4, 4)]


def test_mobilenet_is_torchvisions_and_its_first_strides_adapt() -> None:
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(num_classes=4).eval()
    ours = MobileNet(4).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, maps = ours.forward_with_features(images)
        assert torch.allclose(logits, theirs(images), atol=1e-5)
        assert [(m.shape[1], m.shape[2]) for m in maps] == [(24, 16), (32, 8), (96, 4), (320, 2)]
        fine = MobileNet(4, **default_options("mobilenet_v2", 64)).eval().forward_with_features(images)[1]
    assert [m.shape[2] for m in fine] == [64, 32, 16, 8]
    assert default_options("mobilenet_v2", 256) == {"first_strides": [2, 2]}


def test_features_are_those_of_the_same_pass() -> None:
    classifier, images = small().freeze(), torch.randn(2, 3, 16, 16)
    logits, maps = classifier.forward_with_features(images)
    assert torch.equal(logits, classifier(images))
    assert all(torch.equal(a, b) for a, b in zip(maps, classifier.features(images), strict=True))


def test_features_that_are_not_exposed() -> None:
    classifier = Classifier(Channels(), class_names="ab", input_size=4)
    assert not classifier.exposes_features
    with pytest.raises(ClassifierError, match="exposes no features"):
        classifier.features(torch.zeros(1, 3, 4, 4))


def test_check_returns_good_logits() -> None:
    images = torch.full((2, 3, 4, 4), 0.75)
    classifier = Classifier(Channels(), class_names="ab", input_size=4)
    assert torch.allclose(classifier.check(images), torch.full((2, 2), 0.75))


class Constant(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> object:
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.tensor([[0.0, math.nan], [0.0, 1.0]]), "NaN or infinity on 1 of 2 images"),
        (torch.tensor([[0.0, math.inf], [-math.inf, 1.0]]), "NaN or infinity on 2 of 2 images"),
        (torch.zeros(2, 3), r"shape \[2, 3\] for 2 images, expected \[2, 2\]"),
        (torch.zeros(2), r"shape \[2\] for 2 images"),
        ((torch.zeros(2, 2),), "returned tuple, not a tensor"),
        (RuntimeError("mat1 and mat2\nsecond line"), r"failed on images .*\(mat1 and mat2\)"),
        (torch.tensor([[0.25, 0.75], [1.0, 0.0]]), "gives probabilities"),
    ],
)
def test_check_refuses(output: object, message: str) -> None:
    classifier = Classifier(Constant(output), class_names=["young", "old"], input_size=4)
    with pytest.raises(ClassifierError, match=message) as caught:
        classifier.check(torch.zeros(2, 3, 4, 4))
    assert "\n" not in str(caught.value)


def test_images_must_have_three_channels() -> None:
    with pytest.raises(ClassifierError, match=r"must be \[N, 3, H, W\], got \[2, 1, 4, 4\]"):
        small()(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["only"]}, "two class names"),
        ({"class_names": ["a", "a"]}, "must differ"),
        ({"class_names": ["a", "b", "c"], "single_logit": True}, "single logit"),
        ({"activation": "tanh"}, "softmax or sigmoid"),
        ({"std": (1.0, 0.0, 1.0)}, "greater than 0"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"input_size": 0}, "input_size is 0"),
    ],
)
def test_settings_at_odds(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        Classifier(Channels(), **{"class_names": ["a", "b"], "input_size": 4, **settings})  # type: ignore[arg-type]


def test_unknown_architecture_and_option() -> None:
    with pytest.raises(ClassifierError, match="'resnet' is unknown; choose from small_cnn"):
        build("resnet", 2, {})
    with pytest.raises(ClassifierError, match="cannot be built with options"):
        build("small_cnn", 2, {"depth": 3})
