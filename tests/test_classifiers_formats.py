"""Classifiers of other projects' formats: the same answers as where they come from, and gradients."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import classifier_sources
from classifier_sources import NAMES, SIZE, TIMM_NAME, small_network
from stylex.classifiers import Classifier, load
from stylex.classifiers.graphs import _check_sizes
from stylex.classifiers.onnx_models import _names as names_in
from stylex.classifiers.options import Hints, split
from stylex.errors import CheckpointError, ClassifierError, StylexError


def images(count: int = 3, size: int = SIZE, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def grey(pixels: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (pixels * weights[None, :, None, None]).sum(dim=1, keepdim=True)


def assert_gradients(classifier: Classifier) -> None:
    pixels = images().requires_grad_()
    classifier(pixels)[:, 0].sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().max()) > 0


# -- TorchScript and torch.export -------------------------------------------------------------------------


def test_torchscript(tmp_path: Path) -> None:
    network = small_network()
    file = classifier_sources.save_torchscript(network, tmp_path / "model.pt")
    classifier = load(f"{file}#size={SIZE},classes=old:young")
    assert torch.allclose(classifier(images()), network(images()), atol=1e-5)
    assert classifier.class_names == NAMES
    assert classifier.differentiable
    assert not classifier.can_be_saved
    assert_gradients(classifier)


def test_torchscript_takes_its_options_and_is_known_by_its_file(tmp_path: Path) -> None:
    file = classifier_sources.save_torchscript(small_network(), tmp_path / "model.pt")
    other = classifier_sources.save_torchscript(small_network(seed=1), tmp_path / "other.pt")
    assert load(f"{file}#size=16").fingerprint == load(f"{file}#size=16").fingerprint
    assert load(f"{file}#size=16").fingerprint != load(f"{other}#size=16").fingerprint


def test_damaged_torchscript(tmp_path: Path) -> None:
    file = classifier_sources.save_torchscript(small_network(), tmp_path / "model.pt")
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in archive.namelist():
            if not name.endswith("data.pkl"):
                bad.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match="not a whole TorchScript file"):
        load(tmp_path / "bad.pt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Programs for any number of images, and for two."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        dynamic: classifier_sources.save_exported(small_network(), folder / f"{dynamic}.pt2", dynamic=dynamic)
        for dynamic in (True, False)
    }


@pytest.mark.parametrize("dynamic", [True, False])
def test_torch_export(dynamic: bool, exported: dict[bool, Path]) -> None:
    classifier = load(str(exported[dynamic]))
    assert (classifier.input_size, classifier.channels) == (SIZE, 3)
    for count in (1, 2, 5):
        assert torch.allclose(classifier(images(count)), small_network()(images(count)), atol=1e-5)
    assert_gradients(classifier)


def test_a_program_with_code_inside_is_refused(exported: dict[bool, Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    content = io.BytesIO()
    torch.save(Trap(), content)
    file = tmp_path / "trap.pt2"
    with zipfile.ZipFile(exported[True]) as archive, zipfile.ZipFile(file, "w") as bad:
        for name in archive.namelist():
            sample = "/sample_inputs/" in name
            bad.writestr(name, content.getvalue() if sample else archive.read(name))
    with pytest.raises(CheckpointError, match="holds code"):
        load(file)
    assert not (tmp_path / "owned").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "s0 + open(1)", "s0; 1", "[s0]"])
def test_a_size_that_is_code_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/models/model.json", json.dumps({"a": [{"expr_str": text}]}))
    with pytest.raises(CheckpointError, match="code rather than arithmetic"):
        load(file)


def test_a_program_of_images_that_are_not_square(tmp_path: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    file = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 16),)), str(file))
    with pytest.raises(
        ClassifierError, match=r"m\.pt2: takes 16 × 8 pixels; only square inputs are supported"
    ):
        load(file)


def test_sizes_that_are_arithmetic_pass(tmp_path: Path) -> None:
    file = tmp_path / "good.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/models/model.json", json.dumps({"expr_str": "Max(1, 2*s0 + s77)"}))
    _check_sizes(file)


# -- what graphs say of themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "save"),
    [("m.pt", classifier_sources.save_torchscript), ("m.pt2", classifier_sources.save_exported)],
)
def test_a_graph_says_itself_what_it_takes(name: str, save: Any, tmp_path: Path) -> None:
    network = small_network()
    about = {"class_names": NAMES, "input_size": SIZE, "order": "bgr", "range": [0, 255], "mean": [100]}
    file = save(network, tmp_path / name, about=json.dumps(about))
    classifier = load(file)
    assert (classifier.class_names, classifier.input_size, classifier.order) == (NAMES, SIZE, "bgr")
    with torch.no_grad():
        wanted = network((images().flip(1) + 1) * 127.5 - 100)
        torch.testing.assert_close(classifier(images()), wanted, rtol=1e-4, atol=1e-2)
        said = load(f"{file}#classes=a:b,order=rgb,range=-1:1")  # what the user says wins
        assert (said.class_names, said.input_size) == (("a", "b"), SIZE)
        torch.testing.assert_close(said(images()), network(images()), rtol=1e-4, atol=1e-5)
        # Mean and std are of values in the file's range.
        said = load(f"{file}#order=rgb,mean=127.5,std=127.5")
        torch.testing.assert_close(said(images()), network(images()), rtol=1e-4, atol=1e-4)


def test_a_graph_says_itself_that_it_gives_probabilities(tmp_path: Path) -> None:
    network = nn.Sequential(small_network(), nn.Softmax(dim=1))
    about = {"input_size": SIZE, "outputs": "probabilities"}
    file = classifier_sources.save_torchscript(network, tmp_path / "m.pt", about=json.dumps(about))
    with torch.no_grad():
        torch.testing.assert_close(load(file)(images()).softmax(dim=1), network(images()))
        said = load(f"{file}#outputs=logits")  # what the user says wins, right or wrong
        torch.testing.assert_close(said(images()), network(images()))


@pytest.mark.parametrize("outputs", ["logits", None])
def test_logits_that_look_like_probabilities_are_taken_for_what_the_file_says(
    outputs: str | None, tmp_path: Path
) -> None:
    network = nn.Sequential(small_network(3), nn.Sigmoid())
    about = {"input_size": SIZE, "activation": "sigmoid"} | ({"outputs": outputs} if outputs else {})
    file = classifier_sources.save_torchscript(network, tmp_path / "m.pt", about=json.dumps(about))
    classifier = load(file)
    assert classifier.activation == "sigmoid"
    if outputs:
        assert classifier.check(data()).shape == (16, 3)
    else:
        with pytest.raises(ClassifierError, match="look like probabilities"):
            classifier.check(data())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"m\.pt: stylex\.json within: not readable as JSON"),
        ("[1, 2]", "is a list; expected an object"),
        ('{"colour": "red"}', "colour: unknown key"),
        ('{"order": "grb"}', "order: "),
        ('{"std": [0]}', "std must be greater than 0"),
        ('{"weights": "w.safetensors"}', "weights means nothing there"),
        ('{"source": "other.onnx"}', "source means nothing there"),
    ],
)
def test_bad_words_within_a_graph(text: str, message: str, tmp_path: Path) -> None:
    file = classifier_sources.save_torchscript(small_network(), tmp_path / "m.pt", about=text)
    with pytest.raises(ClassifierError, match=message) as caught:
        load(f"{file}#size={SIZE}")
    assert "\n" not in str(caught.value)


def test_a_graph_that_names_more_classes_than_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = json.dumps({"class_names": ["a", "b", "c"], "input_size": SIZE})
    file = classifier_sources.save_torchscript(small_network(), tmp_path / "m.pt", about=about)
    assert load(file).class_names == ("class 0", "class 1")
    assert "m.pt: holds 3 class names where 2 are expected" in caplog.text


# -- ONNX -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_onnx(backend: str, dynamic: bool, tmp_path: Path) -> None:
    network = small_network()
    file = classifier_sources.save_onnx(network, tmp_path / "model.onnx", dynamic=dynamic)
    classifier = load(f"{file}#backend={backend}")
    assert (classifier.input_size, classifier.channels) == (SIZE, 3)
    assert classifier.differentiable == (backend == "torch")
    for count in (1, 2, 5):
        assert torch.allclose(classifier(images(count)), network(images(count)), atol=1e-4)
    if backend == "torch":
        assert_gradients(classifier)
        assert classifier.exposes_features


def test_onnx_that_takes_grey_images_channels_last(tmp_path: Path) -> None:
    network = small_network(channels=1)
    file = classifier_sources.save_onnx(network, tmp_path / "m.onnx", channels=1, channels_last=True)
    classifier = load(file)
    assert (classifier.channels, classifier.input_size) == (1, SIZE)
    assert torch.allclose(classifier(images()), network(grey(images())), atol=1e-4)


@pytest.mark.parametrize(
    ("format_", "range_", "wanted"),
    [
        ("Bgr8", "NominalRange_0_255", lambda pixels: (pixels.flip(1) + 1) * 127.5),
        ("Rgb8", "Normalized_0_1", lambda pixels: (pixels + 1) / 2),
        ("rgb8", "NominalRange_16_235", lambda pixels: 16 + (pixels + 1) / 2 * 219),
        (None, "Normalized_1_1", lambda pixels: pixels),
        (None, None, lambda pixels: pixels),
    ],
)
def test_onnx_says_order_range_and_names_itself(
    format_: str | None, range_: str | None, wanted: Any, tmp_path: Path
) -> None:
    import onnx

    network = small_network()
    file = classifier_sources.save_onnx(network, tmp_path / "model.onnx")
    model = onnx.load(file)
    told = {"Image.BitmapPixelFormat": format_, "Image.NominalPixelRange": range_}
    onnx.helper.set_model_props(
        model, {key: value for key, value in told.items() if value} | {"names": "{0: 'cat', 1: 'dog'}"}
    )
    onnx.save(model, file)
    classifier = load(file)
    assert classifier.class_names == ("cat", "dog")
    with torch.no_grad():
        logits = network(wanted(images()))
    torch.testing.assert_close(classifier(images()), logits, atol=1e-3, rtol=1e-4)
    said = load(f"{file}#order=rgb,range=-1:1,classes=old:young")  # what the user says wins
    assert said.class_names == NAMES
    with torch.no_grad():
        torch.testing.assert_close(said(images()), network(images()), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["a", "b"]', ("a", "b")),
        ('{"1": "b", "0": "a"}', ("a", "b")),
        ("{0: 'a', 2: 'b'}", None),
        ("__import__('os')", None),
        ("a, b", None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_names_in_metadata(text: str, names: tuple[str, ...] | None) -> None:
    assert names_in(text) == names


def test_onnx_with_an_operator_that_cannot_be_converted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Det", ["squares"], ["determinants"]),  # of every channel's pixels
        helper.make_node("Tanh", ["determinants"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "determinants",
        [helper.make_tensor_value_info("squares", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    classifier = load(tmp_path / "m.onnx")
    assert not classifier.differentiable
    assert "cannot be converted to PyTorch" in caplog.text
    assert "train uses a distilled student" in caplog.text
    pixels = images(4, 4)
    assert torch.allclose(classifier(pixels), torch.linalg.det(pixels).tanh(), atol=1e-4)
    with pytest.raises(ClassifierError, match="leave backend=torch out"):
        load(f"{tmp_path / 'm.onnx'}#backend=torch")


def test_onnx_whose_conversion_answers_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx2torch

    network = small_network()
    file = classifier_sources.save_onnx(network, tmp_path / "m.onnx")
    monkeypatch.setattr(onnx2torch, "convert", lambda model: small_network(seed=1))
    classifier = load(file)
    assert not classifier.differentiable
    assert "its conversion to PyTorch differs from onnxruntime by" in caplog.text
    assert "train uses a distilled student" in caplog.text
    assert torch.allclose(classifier(images()), network(images()), atol=1e-4)
    monkeypatch.setattr(onnx2torch, "convert", lambda model: small_network(3))
    with pytest.raises(
        ClassifierError, match=r"shape \[2, 3\], onnxruntime \[2, 2\]; leave backend=torch out"
    ):
        load(f"{file}#backend=torch")


def test_onnx_is_known_by_the_weights_beside_it_too(tmp_path: Path) -> None:
    import onnx

    found = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        file = classifier_sources.save_onnx(small_network(seed=seed), folder / "m.onnx")
        model = onnx.load(file)
        outside = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}
        onnx.save_model(model, file, **outside)
        found.append((file.read_bytes(), load(file).fingerprint))
        assert load(f"{file}#backend=onnxruntime").fingerprint == found[-1][1]
    assert found[0] == found[1]
    assert found[0][0] == found[2][0]
    assert found[0][1] != found[2][1]


def means_of_channels(path: Path, height: int, width: int, **metadata: str) -> Path:
    """An ONNX file of images [N, 3, height, width] → [N, 3]."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
            helper.make_node("Flatten", ["means"], ["logits"]),
        ],
        "means",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_onnx_of_images_that_are_not_square(tmp_path: Path) -> None:
    file = means_of_channels(tmp_path / "m.onnx", 128, 256)
    with pytest.raises(ClassifierError, match=r"m\.onnx: takes 256 × 128 pixels; only square inputs"):
        load(file)


def test_names_in_a_file_that_are_not_as_many_as_its_outputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = means_of_channels(tmp_path / "m.onnx", 8, 8, names="['cat', 'dog']")
    assert load(f"{file}#classes=a:b:c").class_names == ("a", "b", "c")
    assert caplog.text == ""
    assert load(file).class_names == ("class 0", "class 1", "class 2")
    assert "m.onnx: holds 2 class names where 3 are expected; " in caplog.text
    assert "classes=" in caplog.text


def test_bad_onnx(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="not a whole ONNX file"):
        load(tmp_path / "m.onnx")
    file = classifier_sources.save_onnx(nn.Flatten(), tmp_path / "four.onnx", channels=4)
    with pytest.raises(ClassifierError, match="takes images of 4 channels; expected 3 or 1"):
        load(file)


# -- timm and transformers --------------------------------------------------------------------------------


def test_timm(tmp_path: Path) -> None:
    network = classifier_sources.save_timm(tmp_path / "w.safetensors", classes=3)
    classifier = load(f"timm:{TIMM_NAME}@{tmp_path / 'w.safetensors'}#classes=a:b:c,size=32")
    assert classifier.class_names == ("a", "b", "c")
    assert classifier.mean == pytest.approx((0.485, 0.456, 0.406))
    pixels = images(2, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (classifier.mean, classifier.std))
    with torch.no_grad():
        assert torch.allclose(classifier(pixels), network(((pixels + 1) / 2 - mean) / std), atol=1e-4)
    assert_gradients(classifier)
    assert [maps.ndim for maps in classifier.features(pixels)] == [4] * 4
    sides = [maps.shape[2] for maps in classifier.features(pixels)]
    assert sides == sorted(sides, reverse=True)
    classifier.save(tmp_path / "ours.safetensors")
    assert torch.equal(load(tmp_path / "ours.safetensors")(pixels), classifier(pixels))


def test_timm_of_grey_images(tmp_path: Path) -> None:
    network = classifier_sources.save_timm(tmp_path / "w.safetensors", channels=1)
    classifier = load(f"timm:{TIMM_NAME}#weights={tmp_path / 'w.safetensors'},size=32,range=-1:1")
    assert (classifier.channels, classifier.class_names) == (1, ("class 0", "class 1"))
    with torch.no_grad():
        assert torch.allclose(classifier(images(2, 32)), network(grey(images(2, 32))), atol=1e-4)


def test_timm_folder(tmp_path: Path) -> None:
    classifier_sources.save_timm(tmp_path / "model.safetensors")
    config = {
        "architecture": TIMM_NAME,
        "label_names": list(NAMES),
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 48, 48],
                           "first_conv": "conv_stem", "classifier": "classifier"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    classifier = load(tmp_path)
    assert (classifier.class_names, classifier.input_size, classifier.mean) == (NAMES, 48, (0.1, 0.2, 0.3))


def test_bad_timm(tmp_path: Path) -> None:
    classifier_sources.save_timm(tmp_path / "w.safetensors")
    with pytest.raises(ClassifierError, match="timm has no model 'mobilenetv9'; near it are mobilenet"):
        load(f"timm:mobilenetv9@{tmp_path / 'w.safetensors'}")
    with pytest.raises(ClassifierError, match=r"no weights of timm's resnet10t; .* entries differ"):
        load(f"timm:resnet10t@{tmp_path / 'w.safetensors'}")
    with pytest.raises(ClassifierError, match="needs a file of weights"):
        load(f"timm:{TIMM_NAME}")


def test_transformers(tmp_path: Path) -> None:
    model = classifier_sources.save_vit(tmp_path)
    classifier = load(tmp_path)
    assert (classifier.class_names, classifier.input_size) == (NAMES, SIZE)
    assert classifier.mean == pytest.approx((0.4, 0.5, 0.6))
    assert classifier.activation == "softmax"
    pixels = (images() + 1) / 2
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    normalised = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        assert torch.allclose(classifier(images()), model(normalised).logits, atol=1e-4)
    assert_gradients(classifier)
    assert {maps.shape[2] for maps in classifier.features(images())} == {SIZE // 4}
    assert len(classifier.features(images())) == 4
    classifier.save(tmp_path / "ours.safetensors")
    again = load(tmp_path / "ours.safetensors")
    assert torch.allclose(again(images()), classifier(images()), atol=1e-6)
    assert again.class_names == NAMES


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTImageProcessor", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_rescale": False}),
        ("MobileViTImageProcessor", {"crop_size": {"height": SIZE, "width": SIZE}}),  # BGR, from 0 to 1
        ("EfficientNetImageProcessor", {"rescale_offset": True}),  # divides by std twice
    ],
)
def test_transformers_agrees_with_its_own_preprocessor(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    model = classifier_sources.save_vit(tmp_path)
    told = {"image_processor_type": kind, "size": {"height": SIZE, "width": SIZE}, **settings}
    if kind == "MobileViTImageProcessor":
        told["size"] = {"shortest_edge": SIZE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    prepared = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(pixels), return_tensors="pt")
    ours = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    classifier = load(tmp_path)
    assert classifier.input_size == SIZE
    assert classifier.order == ("bgr" if kind == "MobileViTImageProcessor" else "rgb")
    with torch.no_grad():
        torch.testing.assert_close(classifier(ours), model(**prepared).logits, atol=2e-3, rtol=1e-4)


def test_transformers_with_labels_of_grey_images(tmp_path: Path) -> None:
    problem = {"problem_type": "multi_label_classification"}
    classifier_sources.save_vit(tmp_path, channels=1, labels=("a", "b", "c"), **problem)
    classifier = load(tmp_path)
    assert (classifier.activation, classifier.channels) == ("sigmoid", 1)
    assert classifier(images()).shape == (3, 3)


def test_transformers_of_images_that_are_not_square(tmp_path: Path) -> None:
    classifier_sources.save_vit(tmp_path)
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    told["size"] = {"height": SIZE, "width": 2 * SIZE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    with pytest.raises(ClassifierError, match=r"takes 32 × 16 pixels; only square inputs are supported"):
        load(tmp_path)
    assert load(f"{tmp_path}#size={SIZE}").input_size == SIZE


def test_bad_transformers(tmp_path: Path) -> None:
    classifier_sources.save_vit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(CheckpointError, match=r"lack .* entries of its config"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load(tmp_path)


# -- options ----------------------------------------------------------------------------------------------


def test_value_range_and_channel_order(tmp_path: Path) -> None:
    network = small_network()
    file = classifier_sources.save_torchscript(network, tmp_path / "m.pt")
    classifier = load(f"{file}#size=16,order=bgr,range=0:255,mean=103.9:116.8:123.7,std=58:57:57")
    pixels = (images() + 1) * 127.5
    mean, std = torch.tensor([103.9, 116.8, 123.7]), torch.tensor([58.0, 57.0, 57.0])
    wanted = network((pixels.flip(1) - mean[:, None, None]) / std[:, None, None])
    assert torch.allclose(classifier(images()), wanted, atol=1e-3)
    plain = load(f"{file}#size=16,range=0:255")
    assert torch.allclose(plain(images()), network(pixels), rtol=1e-4, atol=1e-2)


def test_order_and_channels_come_back_from_a_file(tmp_path: Path) -> None:
    from stylex.classifiers.architectures import build

    original = Classifier(
        build("torchvision:squeezenet1_1", 2, {}),
        class_names=NAMES,
        input_size=32,
        order="bgr",
        architecture="torchvision:squeezenet1_1",
    ).freeze()
    original.save(tmp_path / "c.safetensors")
    again = load(tmp_path / "c.safetensors")
    assert again.order == "bgr"
    assert torch.equal(again(images(2, 32)), original(images(2, 32)))


def test_options_in_a_yaml_file(tmp_path: Path) -> None:
    network = small_network()
    classifier_sources.save_torchscript(network, tmp_path / "m.pt")
    (tmp_path / "mine.yaml").write_text(
        "source: m.pt\ninput_size: 16\nmean: [0, 0, 0]\nstd: [1, 1, 1]\n"
        "class_names: ['an old face', 'a young face']\n"
    )
    classifier = load(tmp_path / "mine.yaml")
    assert classifier.class_names == ("an old face", "a young face")
    assert torch.allclose(classifier(images()), network((images() + 1) / 2), atol=1e-5)
    assert load(f"{tmp_path / 'mine.yaml'}#classes=x:y").class_names == ("x", "y")
    (tmp_path / "mine.yaml").write_text("input_size: 16\n")
    with pytest.raises(ClassifierError, match="names no classifier"):
        load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", "no option 'colour'; there are .*order"),
        ("size", "'size' is no option; write key=value"),
        ("size=big", "input_size"),
        ("order=grb", "order"),
        ("range=255:0", "range must rise"),
        ("mean=a:b:c", "give numbers"),
        ("channels=2", "channels"),
        ("rate=3", "rate means nothing for a TorchScript file"),
        ("mean=0.5:0.5", "mean and std are three numbers each"),
        ("classes=a:b:c", r"returned shape \[2, 2\] .*expected \[2, 3\].*a, b, c"),
        ("outputs=probabilities", "probabilities were promised, but values go from"),
    ],
)
def test_bad_options(text: str, message: str, tmp_path: Path) -> None:
    file = classifier_sources.save_torchscript(small_network(), tmp_path / "m.pt")
    size = "" if text.startswith("size") else "size=16,"
    with pytest.raises(StylexError, match=message) as caught:
        load(f"{file}#{size}{text}")
    assert "\n" not in str(caught.value)


def test_a_path_with_a_sharp_sign_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a#b").mkdir()
    file = classifier_sources.save_torchscript(small_network(), tmp_path / "a#b" / "m.pt")
    assert split(str(file))[0] == str(file)


def test_the_caller_wins_over_the_options() -> None:
    assert Hints(range=(-1, 1)).given()["mean"] == (0.5,)
    assert Hints(range=(0, 255), mean=(127.5,), std=(127.5,)).given() == {"mean": (0.5,), "std": (0.5,)}


@pytest.mark.parametrize("kind", ["torchscript", "export", "module"])
def test_a_network_of_other_channels(kind: str, tmp_path: Path) -> None:
    network = small_network(channels=4)
    source: Any = network
    if kind == "torchscript":
        source = classifier_sources.save_torchscript(network, tmp_path / "m.pt", channels=4)
    if kind == "export":
        program = torch.export.export(network, (torch.zeros(2, 4, SIZE, SIZE),))
        source = tmp_path / "m.pt2"
        torch.export.save(program, str(source))
    message = "takes images of 4 channels; expected 3 or 1" if kind == "export" else "3 channels, or of 1"
    with pytest.raises(ClassifierError, match=message) as caught:
        load(source, input_size=SIZE)
    assert "\n" not in str(caught.value)


# -- what a classifier must not do ------------------------------------------------------------------------


def data(count: int = 16) -> Tensor:
    return images(count, SIZE)


def test_a_constant_classifier() -> None:
    class Constant(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.tensor([[0.3, -0.7]]).expand(len(pixels), 2)

    classifier = load(Constant())
    with pytest.raises(ClassifierError, match="constant on the data: the same answer for all of 16 images"):
        classifier.check(data())


@pytest.mark.parametrize("labels", [1, 3])
def test_probabilities_of_labels_where_logits_were_promised(labels: int) -> None:
    network = small_network(labels)
    module = nn.Sequential(network, nn.Sigmoid())
    activation: Any = "sigmoid" if labels > 1 else None
    classifier = load(module, activation=activation, input_size=SIZE)
    with pytest.raises(ClassifierError, match="look like probabilities"):
        classifier.check(data())
    load(module, activation=activation, input_size=SIZE, outputs="logits").check(data())
    right = load(module, activation=activation, input_size=SIZE, outputs="probabilities")
    logits = right.check(data())
    with torch.no_grad():
        wanted = network(data())
    assert torch.allclose(logits[:, -1] * (2 if labels == 1 else 1), wanted[:, -1], atol=1e-2)


def test_a_function_on_another_device() -> None:
    def function(pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3)).to("meta")

    with pytest.raises(ClassifierError, match="sits on another device than the images"):
        load(function).check(data())


def test_a_function_around_a_module_on_another_device() -> None:
    module = small_network().to("meta")
    with pytest.raises(
        ClassifierError, match=r"sits on another device than the images \(cpu\); give the module"
    ):
        load(lambda pixels: module(pixels), input_size=SIZE)


def test_a_network_of_grey_images_is_found_out() -> None:
    network = small_network(channels=1)
    classifier = load(network, input_size=SIZE)
    assert classifier.channels == 1
    assert torch.allclose(classifier(data()), network(grey(data())), atol=1e-5)
