"""Every experiment from stand-ins in the layouts in which its data are distributed; several at once."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import problems
import test_cli
import training_problems
from stylex import classifiers
from stylex.cli.app import main
from stylex.data import render_avatars
from stylex.model import Model
from stylex.reproduce.experiments import EXPERIMENTS, experiment
from stylex.reproduce.items import BOTH, ITEMS, USES, reproduce
from stylex.reproduce.workshop import STYLEGAN2, Workshop
from stylex.run import Run, read_json
from test_reproduce import CPU, SMALL, afhq, save_classifier

Pixels = npt.NDArray[np.uint8]

COAT, SHIRT = 4, 6
"""Labels of Fashion-MNIST."""


def save(path: Path, picture: Pixels, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).resize(size).save(path)


def ffhq(folder: Path) -> Path:
    """thumbnails128x128, in folders of a thousand: sixty to train on, twelve held out."""
    pictures = training_problems.images(72).images
    for number, picture in zip([*range(60), *range(60_000, 60_012)], pictures, strict=True):
        thousand = f"{number // 1000 * 1000:05d}"
        save(folder / "thumbnails128x128" / thousand / f"{number:05d}.png", picture, (128, 128))
    return folder


def celeba(folder: Path) -> Path:
    """Aligned faces and the two tables, a third of the faces not young."""
    rows, parts = [], []
    for number, picture in enumerate(training_problems.images(90, seed=1).images, 1):
        name = f"{number:06d}.jpg"
        save(folder / "img_align_celeba" / name, picture, (178, 218))
        rows.append(f"{name} -1 {-1 if number % 3 == 0 else 1:2d}")
        parts.append(f"{name} {0 if number <= 60 else 1 if number <= 75 else 2}")
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(rows)), "Male Young", *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return folder


def fashion_mnist(folder: Path) -> Path:
    """Debian's four files: ten labels in turn."""
    folder.mkdir()
    for prefix, count, seed in (("train", 600, 2), ("t10k", 100, 3)):
        images = training_problems.images(count, 28, seed).images.max(axis=3)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def avatars(folder: Path) -> Path:
    pytest.importorskip("python_avatars")
    return render_avatars(folder, count=120, size=16, processes=1).path


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "afhq": afhq,
    "ffhq": ffhq,
    "celeba": celeba,
    "avatars": avatars,
    "fashion-mnist": fashion_mnist,
}


@pytest.fixture(scope="module", params=[name for name in EXPERIMENTS if name != "study-afhq"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """An experiment with its own recipe, small, on stand-ins for its data; its home is empty."""
    found = experiment(request.param)
    place = tmp_path_factory.mktemp("experiment")
    return Workshop(
        found,
        place / "home",
        {name: str(LAYOUTS[name](place / name)) for name in found.needs},
        training_problems.HARDWARE,
        size=16,
        assignments=(*training_problems.TINY, "loss.perceptual_network=classifier"),
        epochs=1,
        study=SMALL,
        images_per_class=3,
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


COUNTS: dict[str, dict[str, tuple[int, int]]] = {
    "study-ffhq-age": {"StylEx": (60, 12), "classifier": (40 + 10, 10)},  # as many young ones as others
    "avatars-age": {"StylEx and classifier": (0, 0)},  # by hash
    "fashion-mnist": {"StylEx and classifier": (120, 20)},
}
"""Images of training and discovery, and of test."""


def test_an_experiment_from_its_data_alone(shop: Workshop) -> None:
    """Classifiers and both runs are trained on the layout; what needs no balanced classes is made of them."""
    sets = reproduce("table-1", shop).content["sets"]
    for name, (seen, held_out) in COUNTS[shop.experiment.name].items():
        counts = sets[name]
        assert min(counts["training"], counts["discovery"], counts["test"]) > 0
        if seen:
            assert (counts["training"] + counts["discovery"], counts["test"]) == (seen, held_out)
    assert set(sets) == set(COUNTS[shop.experiment.name])
    runs = reproduce("compute", shop).content["runs"]
    assert {recipe: found["images"] for recipe, found in runs.items()} == {
        shop.stylex_recipe: 40,
        STYLEGAN2: 40,
    }
    for recipe in runs:
        run = Run.open(shop.home / recipe)
        assert run.config.experiment == shop.experiment.name
        assert run.hashes["data"] == shop.data.fingerprint
    trained = classifiers.load(shop.home / "classifier.safetensors")
    assert trained.report["architecture"] == shop.experiment.architecture
    assert trained.report["data_fingerprint"] == shop.classifier_data.fingerprint
    shown = reproduce("figure-2", shop).content["images"]
    assert set(shown) <= set(shop.data.test.names)


def balance(model: Model, images: Tensor, spread: float = 2.0) -> None:
    """Shift and scale the classifier's logits so that half the reconstructions are of either class."""
    head = model.classifier.network.head
    with torch.no_grad():
        for _ in range(3):  # what is drawn hangs on the classifier, which is being changed
            latents, _ = model.encode(images)
            logits = model.classify(model.synthesise(model.styles(latents)))
            margin = logits[:, 1] - logits[:, 0]
            head.bias[1] -= margin.median() - 1e-3
            head.weight.mul_(spread / margin.std())
            head.bias.mul_(spread / margin.std())


def test_figures_of_an_experiment(shop: Workshop, tmp_path: Path) -> None:
    """Runs with random weights whose classes are balanced in place of trained ones."""
    own = replace(shop.experiment, architecture="small_cnn")
    made = replace(shop, home=tmp_path / "home", experiment=own, recipe="fast")
    for name, kind in (("fast", "evidence"), (STYLEGAN2, STYLEGAN2)):
        model = problems.tiny_model(kind)
        if model.encoder is not None:
            balance(model, made.data.training.batch(slice(None)))
        problems.save_tiny_run(made.home / name, model, config=made.settings(name))
        if name == "fast":
            save_classifier(made.home / "classifier.safetensors", model.classifier)
    save_classifier(made.home / "judge.safetensors", training_problems.classifier(seed=7))
    columns = reproduce("table-2", made).content["columns"]
    assert set(columns) == {"Wu et al.", "AttFind with StyleGAN2", "AttFind with StylEx"}
    assert columns["AttFind with StylEx"]["original"] is not None
    assert ("by mistake one of AttFind's" in (made.home / "table-2.md").read_text()) == bool(own.flips)
    claims = reproduce("claims", made).content["claims"]
    assert [claim["verdict"] in ("supported", "not supported", "undecided") for claim in claims] == [True] * 3
    for item in ("figure-4", "figure-6", "figure-9"):
        assert reproduce(item, made).content["attributes"]


def ask(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Exit code, result and what was said."""
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *map(str, words), "--json", *CPU])
    shown = capfd.readouterr()
    return int(ended.value.code or 0), json.loads(shown.out) if shown.out else None, shown.err


GIVEN = {"recipe": "fast", "set": "loss.kl=1", "study": "repeats=2", "epochs": 2, "images": 4, "seed": 1}
"""A value of every option that some items use and others do not, but for --size."""


@pytest.mark.parametrize("what", ITEMS)
def test_options_that_an_item_does_not_use_are_refused(
    what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option alone; one that is taken leads to the data, or the released model, that are not there."""
    monkeypatch.chdir(tmp_path)
    elsewhere = ("--experiment", "study-afhq") if what == "methods" else ()  # else it would render faces
    for option, value in (GIVEN | {"size": 16}).items():
        code, _, said = ask(capfd, what, f"--{option}", value, *elsewhere)
        last = said.splitlines()[-1]
        assert code == (1 if option in USES[what] else 2), last
        assert (f"stylex: {what} has no use for --{option}; its setting" in last) == (code == 2)
    assert not [file for file in tmp_path.iterdir() if file.name != "cache"]


def test_one_line_names_all_options_that_do_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--recipe", "fast", "--epochs", 3, "--seed", 0, "--home", tmp_path / "home")
    code, _, said = ask(capfd, "figure-3", *words)
    assert code == 2
    assert said.splitlines()[-1] == (
        "stylex: figure-3 has no use for --recipe and --epochs; its settings are --images, --seed and --model"
    )
    code, _, said = ask(capfd, "table-1", "--seed", 0)  # the value that it would have had
    assert (code, "table-1 has no use for --seed; its setting is --size" in said) == (2, True)


def test_both_experiments_of_the_study_are_the_default(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = {name: LAYOUTS[name](tmp_path / name) for name in ("afhq", "ffhq", "celeba")}
    data = [word for name, folder in folders.items() for word in ("--data", f"{name}={folder}")]
    common = ("--home", tmp_path / "home", "--size", 16)
    code, found, said = ask(capfd, "table-1", *data, *common)
    assert code == 0, said
    assert [each["experiment"] for each in found["results"]] == list(BOTH)
    assert found["missing"] == {}
    documented = test_cli.documented("stylex reproduce` without `--experiment")
    bare = [each | {"content": {}} for each in found["results"]]
    test_cli.same_shape(documented, found | {"results": bare})
    test_cli.same_shape(test_cli.documented("stylex reproduce"), bare[0])
    for name in BOTH:
        page = tmp_path / "home" / name / "table-1.md"
        assert page.exists()
        assert str(page) in next(each for each in found["results"] if each["experiment"] == name)["files"]

    code, found, said = ask(capfd, "table-1", *data[:2], *common)  # one of the two is not there
    assert code == 0, said
    assert [each["experiment"] for each in found["results"]] == ["study-afhq"]
    assert list(found["missing"]) == ["study-ffhq-age"]
    for lines in (said, found["missing"]["study-ffhq-age"]):
        assert (
            "needs --data ffhq=FOLDER: FFHQ: thumbnails128x128 or images1024x1024 (github.com/NVlabs" in lines
        )
        assert "--data celeba=FOLDER: CelebA: img_align_celeba" in lines
    nowhere = ("--data", f"afhq={tmp_path / 'nowhere'}")
    code, found, said = ask(capfd, "table-1", *nowhere, *data[2:], *common)
    assert [each["experiment"] for each in found["results"]] == ["study-ffhq-age"]
    assert f"there is no {tmp_path / 'nowhere'}" in found["missing"]["study-afhq"]

    code, found, said = ask(capfd, "table-1", *common)
    assert (code, found) == (1, None)
    (line,) = [line for line in said.splitlines() if line.startswith("stylex: ")]
    assert all(f"--data {name}=FOLDER" in line for name in folders)

    code, found, said = ask(capfd, "table-1", "--experiment", "study-afhq", *data[:2], *common)
    assert (code, found["experiment"]) == (0, "study-afhq")
    assert (tmp_path / "home" / "table-1.md").exists()
    assert read_json(tmp_path / "home" / "table-1.json")["item"] == "table-1"
    code, found, said = ask(capfd, "table-1", "--data", folders["afhq"], *common)
    assert code == 2
    assert "study-afhq and study-ffhq-age take --data afhq=FOLDER and --data ffhq=FOLDER" in said


@pytest.mark.parametrize("item", ["table-1", "table-2", "figure-2", "figure-6"])
def test_what_is_missing_is_said_of_both(
    item: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, said = ask(capfd, item, "--home", tmp_path / "home")
    assert code == 1
    assert "experiment study-afhq needs --data afhq=FOLDER" in said
    assert "experiment study-ffhq-age needs --data ffhq=FOLDER" in said
    assert not (tmp_path / "home").exists()
