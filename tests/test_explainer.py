from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import problems
import stylex
import training_problems
from stylex.attfind import search
from stylex.errors import CheckpointError, ConfigError, DataError, RunError
from stylex.evaluation.measure import prepare
from stylex.explainer import Explainer, load_images
from stylex.run import Run, write_tensors


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explainer")
    model = problems.tiny_model()
    run = problems.save_tiny_run(folder / "run", model)
    search(run, model, training_problems.images(12), run.config.attfind)
    return run.path


@pytest.fixture(scope="module")
def explainer(run_path: Path) -> Explainer:
    return stylex.load(run_path, device="cpu", precision="fp32")


def picture() -> np.ndarray:
    return np.asarray(training_problems.images(1).images[0])


def test_attributes_come_ranked(explainer: Explainer) -> None:
    found = explainer.attributes(target="b")
    assert [entry.rank for entry in found] == list(range(1, len(found) + 1))
    assert found[0].target == "b"
    with pytest.raises(ConfigError, match="no class 'c'; the classifier knows a, b"):
        explainer.attributes(target="c")


def test_every_kind_of_image_gives_the_same(explainer: Explainer, tmp_path: Path) -> None:
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "face.png")
    tensor = training_problems.images(1).batch([0])
    found = [
        explainer.counterfactual(image, target="b").to_json()
        for image in (pixels, Image.fromarray(pixels), tensor, tensor[0], tmp_path / "face.png")
    ]
    assert found[-1].pop("name") == "face.png"
    for entry in found[:-1]:
        assert entry.pop("name") == "image"
    for entry in found:
        del entry["answer"]
        del entry["warning"]
        assert entry == found[0]
    logits = explainer.model.classify(tensor)
    expected = logits.softmax(dim=1)[0].tolist()
    assert found[0]["probabilities"]["original"] == pytest.approx(expected, abs=1e-6)
    assert explainer.probabilities(pixels) == pytest.approx(dict(zip("ab", expected, strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(2, 3, 16, 16),
        torch.zeros(3, 16, 16, dtype=torch.uint8),
        torch.full((3, 16, 16), 200.0),
        torch.full((3, 16, 16), torch.nan),
        np.zeros((16, 16, 3), np.float32),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 7), np.uint8),
    ],
)
def test_what_is_no_image(explainer: Explainer, image: torch.Tensor | np.ndarray) -> None:
    with pytest.raises(DataError, match="must be"):
        explainer.counterfactual(image, target="b")


def test_a_file_that_is_no_image(explainer: Explainer, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"cut\.png"):
        explainer.counterfactual(tmp_path / "cut.png", target="b")


def test_a_run_without_attributes(tmp_path: Path) -> None:
    run = problems.save_tiny_run(tmp_path / "run", problems.tiny_model())
    with pytest.raises(RunError, match="stylex attfind"):
        stylex.load(run.path, device="cpu", precision="fp32")
    run.model_file.unlink()
    with pytest.raises(RunError, match="no trained model yet"):
        stylex.load(run.path, device="cpu", precision="fp32")


def test_a_file_that_holds_no_model(tmp_path: Path) -> None:
    run = problems.save_tiny_run(tmp_path / "run", problems.tiny_model())
    write_tensors(run.model_file, {"weight": torch.zeros(2)}, {"kind": "something else"})
    with pytest.raises(CheckpointError, match="no model; 'stylex train' writes one"):
        stylex.load(run.path, device="cpu", precision="fp32")


def test_images_named_again_fall_into_the_same_sets(tmp_path: Path) -> None:
    """With the run's grouping: else images that it was trained on would count as test images."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["file,patient"]
    for number, pixels in enumerate(training_problems.images(24).images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number // 4}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    source = str(folder / "table.csv")
    made = problems.save_tiny_run(tmp_path / "run", problems.tiny_model(), data=source)
    run = Run(made.path, made.config.model_copy(update={"group": "patient"}))
    own, again = load_images(run), load_images(run, source)
    patients = {number // 4 for number in (int(name.removesuffix(".png")) for name in own.training.names)}
    assert len(own.training) == 4 * len(patients), "patients stay together"
    assert again.training.names == own.training.names


def save_table(folder: Path, rows: list[tuple[np.ndarray, str, str]], name: str = "image") -> str:
    """Pictures beside a table with their set and patient; the source as `--data` takes it."""
    folder.mkdir(parents=True)
    lines = ["file,split,patient"]
    for number, (pixels, split, patient) in enumerate(rows):
        Image.fromarray(pixels).save(folder / f"{name}-{number}.png")
        lines.append(f"{name}-{number}.png,{split},{patient}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "table.csv")


def grouped_run(folder: Path) -> tuple[Run, list[np.ndarray]]:
    """A run on 4 training, 2 discovery and 2 test images, one patient each, and 12 pictures in all."""
    pixels = list(training_problems.images(12, seed=5).images)
    splits = ["training"] * 4 + ["discovery"] * 2 + ["test"] * 2
    rows = [(pixels[n], split, f"p{n}") for n, split in enumerate(splits)]
    source = save_table(folder / "own", rows)
    made = problems.save_tiny_run(folder / "run", problems.tiny_model(), data=source)
    return Run(made.path, made.config.model_copy(update={"group": "patient"})), pixels


def test_images_that_the_run_has_seen_are_no_test_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, pixels = grouped_run(tmp_path)
    nearly = pixels[2].copy()
    nearly[1, 1, 0] ^= 1  # off the grid that is compared first, and on none of the run's images
    rows = [
        (pixels[8], "training", "a"),
        (pixels[0], "test", "b"),  # a training image under another name
        (pixels[4], "test", "c"),  # a discovery image
        (pixels[6], "test", "d"),  # a test image of the run: still unseen
        (nearly, "test", "e"),
        (pixels[9], "test", "p1"),  # another image of a patient in training
        (pixels[10], "test", ""),
    ]
    found = load_images(run, save_table(tmp_path / "other", rows, "copy"))
    assert found.test.names == ("copy-3.png", "copy-4.png", "copy-6.png")
    assert len(found.training) == 1
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "3 of 6 test images are left out" in line
    assert "1 through their patient" in line
    assert "4 training and 2 discovery images" in line
    copies = save_table(tmp_path / "copies", [(pixels[8], "training", "x"), (pixels[1], "test", "y")])
    with pytest.raises(DataError, match="that the run has not seen"):
        prepare(problems.tiny_model(), load_images(run, copies).test, 0)


def test_a_search_of_other_images_leaves_out_those_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pixels = grouped_run(tmp_path)
    rows = [
        (pixels[8], "training", "a"),
        (pixels[0], "discovery", "b"),  # a training image under another name
        (pixels[4], "discovery", "c"),  # a discovery image of the run: what a search may use
        (pixels[9], "discovery", "p1"),  # another image of a patient in training
        (pixels[0], "test", "d"),
    ]
    found = load_images(run, save_table(tmp_path / "other", rows, "copy"), measured="discovery")
    assert found.discovery.names == ("copy-2.png",)
    assert len(found.test) == 1, "what is not measured is not compared"
    assert "2 of 3 discovery images are left out, for the run has seen them, 1 through" in caplog.text
    monkeypatch.setattr("stylex.explainer.equal_pixels", lambda *_: pytest.fail("compared"))
    assert len(load_images(run, measured="discovery").discovery) == 2


def test_equal_pixels_under_two_names_of_the_runs_own_source(tmp_path: Path) -> None:
    pixels = list(training_problems.images(4, seed=6).images)
    splits = ["training", "discovery", "test", "test"]
    rows = [(pixels[n], split, "") for n, split in enumerate(splits)] + [(pixels[0], "test", "")]
    run = problems.save_tiny_run(
        tmp_path / "run", problems.tiny_model(), data=save_table(tmp_path / "own", rows)
    )
    assert load_images(run).test.names == ("image-2.png", "image-3.png")


def test_another_source_keeps_the_runs_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, _ = grouped_run(tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    lines = ["file,patient,site"]
    for number, pixels in enumerate(training_problems.images(24, seed=7).images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,q{number // 4},{number % 3}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    found = load_images(run, str(folder / "table.csv"))
    sets = [set(part.factors["patient"]) for part in (found.training, found.discovery, found.test)]
    assert sum(len(each) for each in sets) == 6, "patients stay together"
    sites = load_images(run, f"{folder / 'table.csv'}#group=site")
    assert len(set(sites.training.factors["site"]) & set(sites.test.factors["site"])) == 0
    assert "no column 'patient'" not in caplog.text
    (folder / "table.csv").write_text("\n".join(line.split(",")[0] for line in lines) + "\n")
    load_images(run, str(folder / "table.csv"))
    assert "no column 'patient' to group by" in caplog.text


def test_a_run_whose_own_images_are_gone_says_what_was_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, pixels = grouped_run(tmp_path)
    other = save_table(tmp_path / "other", [(pixels[8], "training", "x"), (pixels[0], "test", "y")])
    (tmp_path / "own" / "table.csv").unlink()
    assert len(load_images(run, other).test) == 1
    assert "compared with none of the run's images" in caplog.text
    problems.save_images(run.path / "images", 2)
    carried = load_images(run).training.images[0]
    other = save_table(tmp_path / "again", [(pixels[8], "training", "x"), (carried, "test", "y")])
    assert len(load_images(run, other).test) == 0
    assert "compared with only the 2 training and 2 discovery images that the run carries" in caplog.text


def test_a_classifier_that_was_exchanged(tmp_path: Path) -> None:
    model = problems.tiny_model()
    run = problems.save_tiny_run(tmp_path / "run", model)
    search(run, model, training_problems.images(12), run.config.attfind)
    model.classifier.network.head.bias += 0.1
    model.classifier.save(run.classifier_file)
    with pytest.raises(RunError, match="another classifier"):
        stylex.load(run.path, device="cpu", precision="fp32")
