"""`stylex doctor`: what was understood, answers beside thumbnails, warnings of a wrong normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from classifier_sources import save_torchscript
from stylex.classifiers import Classifier, inspect, load
from stylex.classifiers.architectures import build
from stylex.cli.app import main
from stylex.data.images import ImageSet
from stylex.errors import ClassifierError

CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


class Redness(nn.Module):
    """Red where the mean of the first channel is above half of its range, which is 0 to 255."""

    def forward(self, pixels: Tensor) -> Tensor:
        margin = (pixels[:, 0].mean(dim=(1, 2)) - 127.5) / 20
        return torch.stack([margin, -margin], dim=1)


def plain() -> Classifier:
    torch.manual_seed(0)
    network = build("small_cnn", 2, {})
    return Classifier(network, class_names="ab", input_size=16, architecture="small_cnn").freeze()


def colours() -> ImageSet:
    """Twenty red and twenty blue images of 16 px."""
    pixels = np.zeros((40, 16, 16, 3), np.uint8)
    pixels[:20, :, :, 0] = np.arange(200, 220)[:, None, None]
    pixels[20:, :, :, 2] = np.arange(200, 220)[:, None, None]
    names = tuple(f"{number}.png" for number in range(40))
    return ImageSet(pixels, names, np.repeat([1, 0], 20).astype(np.int64), ("blue", "red"), {})


def test_the_right_way_to_feed_a_network_is_found() -> None:
    names = ("red", "blue")
    right = inspect(load(Redness(), class_names=names, range=(0, 255)), colours())
    assert (right.accuracy, right.alternatives, right.warnings) == (1.0, {}, ())
    assert right.settings["white"] == [255.0] * 3
    wrong = inspect(load(Redness(), class_names=names), colours())
    assert wrong.accuracy == 0.5
    assert list(wrong.alternatives) == ["values from 0 to 255 (range=0:255)"]
    assert wrong.warnings[0].startswith("with values from 0 to 255 (range=0:255) it is right on 100%")
    assert "count as 'blue'" in wrong.warnings[1]
    swapped = inspect(load(Redness(), class_names=names, range=(0, 255), order="bgr"), colours())
    assert next(iter(swapped.alternatives)) == "the channels in the other order (order=)"


def test_labels_of_other_classes() -> None:
    found = inspect(load(Redness(), class_names=("cat", "dog"), range=(0, 255)), colours())
    assert found.accuracy is None
    assert "no label of the images (blue, red …) is one of its classes (cat, dog …)" in found.warnings[0]


def test_a_classifier_whose_gradient_stops() -> None:
    found = inspect(load(lambda pixels: 0.1 * pixels.detach().mean(dim=(2, 3)), class_names="abc"), colours())
    assert any("no gradient reaches the images" in warning for warning in found.warnings)


def test_no_images() -> None:
    with pytest.raises(ClassifierError, match="no images to look at"):
        inspect(load(Redness(), range=(0, 255)), colours().select([]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, pixels in enumerate(colours().images):
        place = tmp_path / "colours" / ("red" if number < 20 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "colours"


def doctor(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, arguments), *CPU])
    return int(ended.value.code or 0), *capfd.readouterr()


def test_the_command(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_torchscript(Redness(), tmp_path / "m.pt")
    source = f"{tmp_path / 'm.pt'}#classes=red:blue,size=16"
    figure = tmp_path / "answers.png"
    code, out, err = doctor(capfd, "--classifier", source, "--data", folder, "--out", figure)
    assert code == 0
    assert "black becomes -1, white 1" in out
    assert "right on 50%" in out
    assert "range=0:255" in err
    with Image.open(figure) as picture:
        assert picture.width > 500
    code, out, _ = doctor(
        capfd, "--classifier", f"{source},range=0:255", "--data", folder, "--out", figure, "--json"
    )
    found: dict[str, Any] = json.loads(out)["classifier"]
    assert (code, found["accuracy"], found["warnings"]) == (0, 1.0, [])
    assert {row["answer"] for row in found["images"]} == {"red", "blue"}


def test_without_images_and_without_a_classifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain().save(tmp_path / "c.safetensors")
    code, out, _ = doctor(capfd, "--classifier", tmp_path / "c.safetensors")
    assert (code, "classes: a, b (softmax)" in out, "give --data" in out) == (0, True, True)
    code, out, _ = doctor(capfd, "--json")
    content = json.loads(out)
    assert (code, content["classifier"]) == (0, None)
    assert content["packages"]["onnxruntime"] is True


def test_a_figure_of_another_kind(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain().save(tmp_path / "c.safetensors")
    code, _, err = doctor(
        capfd, "--classifier", tmp_path / "c.safetensors", "--data", folder, "--out", tmp_path / "a.pdf"
    )
    assert (code, "must end in .png" in err) == (2, True)
