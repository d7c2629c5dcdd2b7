"""Files that come back as they were or are refused in one line; torchvision by name; Python code."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from stylex.classifiers import Classifier, load
from stylex.classifiers.architectures import build, default_options
from stylex.errors import CheckpointError, ClassifierError, StylexError


def built(architecture: str, size: int, **settings: object) -> Classifier:
    torch.manual_seed(3)
    options = default_options(architecture, size)
    arguments = {"class_names": ["young", "old"], "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), **settings}
    classes = 1 if settings.get("single_logit") else 2
    network = build(architecture, classes, options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return Classifier(
        network, input_size=size, architecture=architecture, options=options, **arguments
    ).freeze()  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    built("small_cnn", 16).save(tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


@pytest.mark.parametrize("architecture", ["small_cnn", "mobilenet_v2"])
def test_round_trip_gives_identical_logits(architecture: str, tmp_path: Path) -> None:
    original = built(
        architecture, 32, temperature=1.5, report={"validation": {"accuracy": 0.9}}, data_fingerprint="abc"
    )
    original.save(tmp_path / "c.safetensors")
    loaded = load(str(tmp_path / "c.safetensors"))
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(loaded(images), original(images))
    assert loaded.fingerprint == original.fingerprint
    for name in ("class_names", "input_size", "mean", "std", "activation", "temperature", "architecture"):
        assert getattr(loaded, name) == getattr(original, name)
    assert (loaded.options, loaded.report, loaded.data_fingerprint) == (
        original.options,
        {"validation": {"accuracy": 0.9}},
        "abc",
    )
    assert loaded.frozen
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_round_trip_of_a_single_logit(tmp_path: Path) -> None:
    original = built("small_cnn", 16, single_logit=True, class_names=["old"])
    original.save(tmp_path / "c.safetensors")
    loaded = load(tmp_path / "c.safetensors")
    images = torch.randn(2, 3, 16, 16)
    assert loaded.class_names == ("not old", "old")
    assert torch.equal(loaded(images), original(images))
    assert torch.equal(loaded(images)[:, 0], -loaded(images)[:, 1])


def test_what_the_caller_says_wins(saved: Path) -> None:
    loaded = load(saved, class_names=["jong", "oud"], mean=(0.5, 0.5, 0.5))
    assert loaded.class_names == ("jong", "oud")
    assert loaded.mean == (0.5, 0.5, 0.5)
    assert loaded.std == (0.2, 0.3, 0.4)


def test_saving_leaves_no_other_file_and_replaces_whole(saved: Path) -> None:
    built("small_cnn", 16, class_names=["a", "b"]).save(saved)
    assert load(saved).class_names == ("a", "b")
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def edit_header(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["stylex"])
    change(ours)
    header["__metadata__"]["stylex"] = json.dumps(ours)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "not a whole safetensors"),
    "truncated in its header": (lambda f: f.write_bytes(f.read_bytes()[:50]), "not a whole safetensors"),
    "empty": (lambda f: f.write_bytes(b""), "not a whole safetensors"),
    "an image": (lambda f: f.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200)), "not a whole safetensors"),
    "a pickle": (lambda f: f.write_bytes(pickle.dumps(Trap(f.with_name("trap")))), "pickled code"),
    "a bit flipped": (flip_last_byte, "checksum"),
    "another version": (lambda f: edit_header(f, lambda h: h.update(format=99)), "format 99"),
    "no checksum": (lambda f: edit_header(f, lambda h: h.pop("sha256")), "checksum"),
    "another kind": (lambda f: edit_header(f, lambda h: h.update(kind="checkpoint")), "not a classifier"),
    "a field missing": (lambda f: edit_header(f, lambda h: h.pop("mean")), "'mean'"),
    "unknown architecture": (lambda f: edit_header(f, lambda h: h.update(architecture="x")), "unknown"),
    "another architecture": (
        lambda f: edit_header(f, lambda h: h.update(architecture="mobilenet_v2")),
        "do not fit together",
    ),
    "other classes": (
        lambda f: edit_header(f, lambda h: h.update(class_names=["a", "b", "c"])),
        "do not fit together",
    ),
    "somebody else's": (lambda f: save_file({"w": torch.zeros(2)}, f), "not one that stylex wrote"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_in_one_line(damage: str, saved: Path) -> None:
    harm, message = DAMAGES[damage]
    harm(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(saved)
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)
    assert not saved.with_name("trap").exists()


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    classifier = built("small_cnn", 16)
    next(classifier.network.parameters()).fill_(float("nan"))
    classifier.save(tmp_path / "c.safetensors")
    with pytest.raises(ClassifierError, match="NaN or infinity"):
        load(tmp_path / "c.safetensors")


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"missing\.safetensors: no such file; a classifier can be"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(ClassifierError, match="a directory"):
        load(tmp_path)
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ClassifierError, match=r"torchvision:NAME@.*model\.pt"):
        load(tmp_path / "model.pt")


# -- torchvision ------------------------------------------------------------------------------------------


@pytest.fixture
def squeezenet(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    network = get_model("squeezenet1_1", weights=None, num_classes=3).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pt")
    return network, tmp_path / "weights.pt"


def test_torchvision_by_name_with_weights(squeezenet: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, file = squeezenet
    classifier = load(f"torchvision:squeezenet1_1@{file}")
    assert classifier.class_names == ("class 0", "class 1", "class 2")
    assert (classifier.input_size, classifier.mean) == (224, (0.485, 0.456, 0.406))
    pixels = torch.rand(2, 3, 224, 224)
    mean, std = torch.tensor(classifier.mean).view(3, 1, 1), torch.tensor(classifier.std).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(classifier(pixels * 2 - 1), network((pixels - mean) / std), atol=1e-4)
    classifier.save(tmp_path / "ours.safetensors")
    assert torch.equal(load(tmp_path / "ours.safetensors")(pixels), classifier(pixels))


def test_torchvision_with_hints_and_safetensors(squeezenet: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, _ = squeezenet
    save_file(
        {f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(ClassifierError, match="entries differ"):
        load("torchvision:squeezenet1_0", weights=tmp_path / "w.safetensors", class_names="abc")
    classifier = load(
        "torchvision:squeezenet1_1", weights=tmp_path / "w.safetensors", class_names="abc", input_size=64
    )
    assert classifier.class_names == ("a", "b", "c")
    assert classifier(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_imagenet_has_a_thousand_distinct_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), tmp_path / "w.pth")
    names = load(f"torchvision:squeezenet1_1@{tmp_path / 'w.pth'}", input_size=64).class_names
    assert names[0] == "tench"
    assert len(set(names)) == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda f: torch.save(Trap(f.with_name("trap")), f), "holds code"),
        (lambda f: f.write_bytes(f.read_bytes()[:5000]), "damaged"),
        (lambda f: torch.save([1, 2], f), "no state dict"),
        (lambda f: torch.save({"a": torch.zeros(1)}, f), "entries differ"),
        (lambda f: f.unlink(), "no such file"),
    ],
    ids=["code", "truncated", "a list", "another model", "missing"],
)
def test_bad_weights_are_refused(
    content: Callable[[Path], object], message: str, squeezenet: tuple[nn.Module, Path]
) -> None:
    content(squeezenet[1])
    with pytest.raises(StylexError, match=message) as caught:
        load(f"torchvision:squeezenet1_1@{squeezenet[1]}")
    assert "\n" not in str(caught.value)
    assert not squeezenet[1].with_name("trap").exists()


def test_torchvision_unknown_name_and_no_file() -> None:
    with pytest.raises(ClassifierError, match="torchvision has no model 'resnet19'"):
        load("torchvision:resnet19@x.pt")
    with pytest.raises(ClassifierError, match=r"needs a file of weights.*https://"):
        load("torchvision:resnet18")


def test_options_that_mean_nothing_are_refused(saved: Path) -> None:
    with pytest.raises(ClassifierError, match="weights means nothing"):
        load(saved, weights=saved)
    with pytest.raises(ClassifierError, match="outputs means nothing"):
        load(saved, outputs="probabilities")


# -- Python -----------------------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.size = size
        self.layer = nn.Linear(3 * size * size, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def test_a_module_is_wrapped_and_frozen() -> None:
    torch.manual_seed(0)
    module = Linear(64, 3)
    classifier = load(module)
    images = torch.randn(2, 3, 64, 64)
    assert classifier.class_names == ("class 0", "class 1", "class 2")
    assert classifier.input_size is None
    assert torch.allclose(classifier(images), module(images))
    assert not module.layer.weight.requires_grad
    with pytest.raises(ClassifierError, match="is Python code"):
        classifier.save("nowhere.safetensors")


def test_a_module_of_224_px_gets_them() -> None:
    classifier = load(Linear(224, 2))
    assert classifier.input_size == 224
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_a_module_of_another_size_must_be_told() -> None:
    with pytest.raises(ClassifierError, match=r"fails on images of 64 px and 224 px .* give its input_size"):
        load(Linear(10, 2))
    assert load(Linear(10, 2), input_size=10)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_a_callable_with_one_column_is_a_single_logit() -> None:
    classifier = load(lambda images: images.mean(dim=(2, 3))[:, :1], class_names=["red"])
    assert classifier.class_names == ("not red", "red")
    assert torch.allclose(classifier(torch.full((1, 3, 8, 8), 0.5)), torch.tensor([[-0.25, 0.25]]))
    assert len(classifier.fingerprint) == 64


def test_probabilities_become_logits() -> None:
    def softmax(images: Tensor) -> Tensor:
        return (3 * images.mean(dim=(2, 3))).softmax(dim=1)

    with pytest.raises(ClassifierError, match="gives probabilities"):
        load(softmax)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = load(softmax, outputs="probabilities")
    assert torch.allclose(classifier.probabilities(classifier(images)), softmax(images), atol=1e-6)

    one = load(lambda images: softmax(images)[:, 0], outputs="probabilities")
    assert torch.allclose(one.probabilities(one(images))[:, 1], softmax(images)[:, 0], atol=1e-6)

    many = load(softmax, outputs="probabilities", activation="sigmoid")
    assert torch.allclose(many.probabilities(many(images)), softmax(images), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "found"),
    [(lambda images: images, r"shape \[2, 3, 64, 64\]"), (lambda images: np.zeros((2, 2)), "ndarray")],
)
def test_a_callable_that_gives_no_logits(function: Callable[[Tensor], object], found: str) -> None:
    with pytest.raises(ClassifierError, match=f"returned {found} for 2 images"):
        load(function)


def test_a_factory_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_models.py").write_text(
        "import torch\n"
        "def factory():\n    return lambda images: images.mean(dim=(2, 3))\n"
        "def broken():\n    raise OSError('no weights\\nhere')\n"
        "def number():\n    return 3\n"
        "module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    for name in ("factory", "module"):
        classifier = load(f"my_own_models:{name}", class_names="rgb")
        assert torch.allclose(classifier(images), images.mean(dim=(2, 3)))
    for name, message in {
        "broken": r"OSError: no weights\)",
        "number": "returned int",
        "absent": "AttributeError",
    }.items():
        with pytest.raises(ClassifierError, match=message):
            load(f"my_own_models:{name}")
    with pytest.raises(ClassifierError, match="ModuleNotFoundError"):
        load("no_such_package_at_all:factory")
    with pytest.raises(ClassifierError, match="SystemExit"):  # must not end the program as if all were done
        load("sys:exit")


def test_a_classifier_is_its_own_source() -> None:
    classifier = Classifier(Linear(8, 2), class_names="ab", input_size=8)
    assert load(classifier) is classifier
    assert classifier.frozen
