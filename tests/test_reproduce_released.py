"""Figure 3 from the command line: the made SavedModels, and latents as TensorFlow's records hold them."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from stylex.attfind import find_attributes
from stylex.classifiers.mobilenet_v1 import MobileNetV1
from stylex.cli.app import main
from stylex.errors import CheckpointError
from stylex.interop.stylex_tf import load_released
from stylex.interop.tensor_bundle import read_variables
from stylex.interop.tf_records import read_published
from stylex.reproduce.figure_3 import SETTINGS
from stylex.stylespace import StyleSpace

RELEASED = Path(__file__).parent / "data" / "stylex_tf"
CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
COUNT = 10


def example_class() -> Any:
    """tf.train.Example, as google.protobuf makes it of its public schema."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="made", syntax="proto3")

    def message(parent: Any, name: str, *fields: tuple[str, int, int, str, bool]) -> Any:
        made = parent.add(name=name)
        for field, number, kind, of, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(name=field, number=number, type=kind, type_name=of or None, label=label)
        return made

    message(file.message_type, "FloatList", ("value", 1, kinds.TYPE_FLOAT, "", True))
    message(file.message_type, "Feature", ("float_list", 2, kinds.TYPE_MESSAGE, ".made.FloatList", False))
    whole = message(
        file.message_type,
        "Features",
        ("feature", 1, kinds.TYPE_MESSAGE, ".made.Features.FeatureEntry", True),
    )
    entry = message(
        whole.nested_type,
        "FeatureEntry",
        ("key", 1, kinds.TYPE_STRING, "", False),
        ("value", 2, kinds.TYPE_MESSAGE, ".made.Feature", False),
    )
    entry.options.map_entry = True
    message(file.message_type, "Example", ("features", 1, kinds.TYPE_MESSAGE, ".made.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("made.Example"))


def write_records(path: Path, examples: list[dict[str, Any]]) -> None:
    """A file as `tf.io.TFRecordWriter` writes it."""
    made = example_class()
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for each in examples:
            example = made()
            for key, values in each.items():
                example.features.feature[key].float_list.value.extend(np.ravel(values).tolist())
            writer.write(example.SerializeToString())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The released folder with a classifier that tells its images apart, and what a slow search measures."""
    folder = tmp_path_factory.mktemp("figure") / "celeb_a_age"
    shutil.copytree(RELEASED, folder)
    found = load_released(folder)
    torch.manual_seed(0)
    latents = torch.cat([found.mapping(torch.randn(COUNT, 24)), torch.rand(COUNT, 1)], dim=1)
    latents = torch.cat([latents, 1 - latents[:, -1:]], dim=1).detach()
    with torch.no_grad():
        styles = found.generator.styles(latents)
        images = found.generator.synthesis(styles, "fixed").clamp(-1, 1)
        turn(folder, images)
        classifier = load_released(folder).classifier
        assert classifier is not None
        space = StyleSpace.from_styles(found.generator.synthesis.layout, styles)
        before = classifier(images)
        effects = torch.empty(COUNT, space.size, 2, 2)
        for coordinate in range(space.size):  # as the notebook: down, then up, coordinate after coordinate
            for direction in (0, 1):
                moved = found.generator.synthesis(space.shift(styles, [(direction, coordinate)]), "fixed")
                effects[:, coordinate, direction] = classifier(moved.clamp(-1, 1)) - before
    write_records(
        folder / "examples_1.tfrecord",
        [{"base_prob": before[n], "dlatent": latents[n], "result": effects[n]} for n in range(COUNT)],
    )
    return folder, {"latents": latents, "logits": before, "effects": effects, "space": space}


def turn(folder: Path, images: Tensor) -> None:
    """Exchange the last kernel of the stored MobileNet for one whose boundary goes through the images."""
    classifier = load_released(folder).classifier
    assert classifier is not None
    assert isinstance(classifier.network, MobileNetV1)
    features = classifier.network.forward_with_features(images)[1][-1].mean(dim=(2, 3))
    middle = features.mean(dim=0)
    direction = torch.linalg.svd(features - middle)[2][0]
    direction = direction - (direction @ middle) / (middle @ middle) * middle
    margin = (features - middle) @ direction
    direction = direction / margin.std()
    kernel = torch.stack([-direction / 2, direction / 2], dim=1).numpy()
    stored = read_variables(folder / "mobilenet.savedmodel")
    before = next(value for name, value in stored.items() if name.endswith("conv_preds/kernel")).numpy()
    file = folder / "mobilenet.savedmodel" / "variables" / "variables.data-00000-of-00001"
    content = file.read_bytes()
    assert content.count(before.tobytes()) == 1
    file.write_bytes(content.replace(before.tobytes(), kernel.astype("<f4").tobytes()))


def reproduce(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Exit code, and the result or the last line of what was said."""
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "figure-3", *map(str, words), "--json", *CPU])
    shown = capfd.readouterr()
    code = int(ended.value.code or 0)
    return code, shown.err.splitlines()[-1] if code else json.loads(shown.out)


def test_published_effects_are_read_as_the_notebook_reads_them(
    measured: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = measured
    found = read_published(folder / "examples_1.tfrecord")
    np.testing.assert_array_equal(found.latents, told["latents"].numpy())
    np.testing.assert_array_equal(found.logits, told["logits"].numpy())
    np.testing.assert_array_equal(found.effects, told["effects"].transpose(1, 2).numpy())


def test_figure_3(
    measured: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, told = measured
    code, item = reproduce(capfd, "--model", folder, "--home", tmp_path)
    assert code == 0, item
    content = item["content"]
    assert content["images"] == COUNT
    assert content["settings"]["effect"] == "logits"
    assert content["published"]["latents"] == COUNT
    assert content["published"]["effects_correlation"] > 0.9999
    largest = float(told["effects"].abs().max())
    assert content["published"]["effects_largest_difference"] < 1e-2 * largest
    assert content["published"]["logits_largest_difference"] < 1e-2 * largest
    assert [each["rank"] for each in content["attributes"]] == [1, 2, 3, 4]
    classes = told["logits"].argmax(dim=1)
    for each, amounts in zip(content["attributes"], ((1.5, 2), (1, 1), (1, 1), (2, 1.5)), strict=True):
        assert [shown["class"] for shown in each["shown"]] == ["old", "young"]
        assert tuple(shown["amount"] for shown in each["shown"]) == amounts
        for shown, own in zip(each["shown"], (0, 1), strict=True):
            assert classes[int(shown["image"].removeprefix("latent "))] == own
    after = (told["logits"][:, None, None] + told["effects"].transpose(1, 2)).numpy()
    wanted = find_attributes(told["logits"].numpy(), after, told["space"], ("old", "young"), SETTINGS)
    assert wanted.unstable < COUNT / 2
    shown = [(each["direction"], each["coordinate"]) for each in content["attributes"]]
    assert shown == list(wanted.merged[:4])
    with Image.open(tmp_path / "figure-3.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    page = (tmp_path / "figure-3.md").read_text()
    assert "correlate with 1.000" in page
    run = tmp_path / "released"
    classifier = (run / "classifier.safetensors").read_bytes()
    assert reproduce(capfd, "--model", run, "--home", tmp_path) == (0, item)  # a run that was converted
    assert (run / "classifier.safetensors").read_bytes() == classifier


def test_figure_3_without_the_published_latents(
    measured: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylex.attfind.discovery.SAMPLED_POOL", 40)
    shutil.copytree(measured[0], tmp_path / "model")
    (tmp_path / "model" / "examples_1.tfrecord").unlink()
    code, item = reproduce(capfd, "--model", tmp_path / "model", "--home", tmp_path, "--images", "3")
    assert code == 0, item
    assert item["content"]["images"] == 6
    assert item["content"]["published"] is None
    shown = item["content"]["attributes"][0]["shown"]
    assert all(each["image"].startswith("sample ") for each in shown)


def test_what_was_made_of_other_arguments_is_not_figure_3(
    measured: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylex.attfind.discovery.SAMPLED_POOL", 40)
    model, home = tmp_path / "model", tmp_path / "home"
    shutil.copytree(measured[0], model)
    (model / "examples_1.tfrecord").unlink()
    asked = ("--model", model, "--home", home)
    code, first = reproduce(capfd, *asked, "--images", "2")
    assert code == 0, first
    moved = shutil.move(model, tmp_path / "elsewhere")
    asked = ("--model", moved, "--home", home)
    weights = (home / "released" / "model.safetensors").stat().st_mtime_ns
    assert reproduce(capfd, *asked, "--images", "2") == (0, first)  # the same content is used again
    assert (home / "released" / "model.safetensors").stat().st_mtime_ns == weights
    code, more = reproduce(capfd, *asked, "--images", "3")
    assert (first["content"]["images"], more["content"]["images"]) == (4, 6)

    def refusal(*words: object) -> str:
        code, line = reproduce(capfd, *asked, *words)
        assert code == 2
        assert "give another --home, or delete" in line
        return str(line)

    assert "released.json: was made with seed 0, asked for is 1" in refusal("--seed", 1)
    (tmp_path / "faces").mkdir()
    assert "images sampled latents, asked for is ffhq:" in refusal("--data", f"ffhq={tmp_path / 'faces'}")
    shutil.copy(measured[0] / "examples_1.tfrecord", moved)
    assert "images sampled latents, asked for is (sha256" in refusal()
    (Path(moved) / "examples_1.tfrecord").unlink()
    variables = Path(moved) / "encoder.savedmodel" / "variables" / "variables.data-00000-of-00001"
    content = bytearray(variables.read_bytes())
    content[-1] ^= 1
    variables.write_bytes(content)
    assert re.search(r"was made with model \(sha256 .*asked for is \(sha256", refusal())
    code, line = reproduce(capfd, "--model", home / "released", "--data", f"ffhq={tmp_path / 'faces'}")
    assert (code, "a run stands on its own images; leave out --data" in line) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --model FOLDER: the authors' released age model.*celeb_a_age/.*examples_1.tfrecord"),
        (["--model", "nowhere"], "holds no SavedModel generator and no encoder and no mobilenet; expected"),
    ],
)
def test_where_the_model_comes_from(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, line = reproduce(capfd, *words, "--home", tmp_path / "home")
    assert code == 1
    assert re.search(message, line)
    assert not (tmp_path / "home").exists()


def test_a_model_is_for_figure_3_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "figure-4", "--model", str(RELEASED), "--home", str(tmp_path), *CPU])
    assert ended.value.code == 2
    assert "--model is for figure-3" in capfd.readouterr().err


def test_damaged_records(measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    content = (measured[0] / "examples_1.tfrecord").read_bytes()
    file = tmp_path / "examples_1.tfrecord"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_published(file)
    file.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"ends within record 9.*download it again"):
        read_published(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole file of records"):
        read_published(file)
    write_records(file, [{"dlatent": [1.0]}])
    with pytest.raises(CheckpointError, match=r"lacks 'base_prob'"):
        read_published(file)
    file.write_bytes(struct.pack("<QI", 3, 0) + b"\xff\xff\xff" + bytes(4))
    with pytest.raises(CheckpointError, match="no whole file of records"):
        read_published(file)


def test_latents_of_another_model(
    measured: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(measured[0], tmp_path / "model")
    other = [{"dlatent": [0.0] * 514, "base_prob": [0.0, 1.0], "result": [0.0] * 4}]
    write_records(tmp_path / "model" / "examples_1.tfrecord", other)
    code, line = reproduce(capfd, "--model", tmp_path / "model", "--home", tmp_path)
    assert (code, "latents of 514 numbers, the generator reads 26" in line) == (1, True)
