"""Every command of docs/bring-your-own.md, run at a small size on files in the formats that it names.

Of every command what it leaves behind is looked at, not its exit code alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model

import classifier_sources
import golden
import test_cli
import test_data_formats as formats
import training_problems
from classifier_sources import SIZE, TIMM_NAME, endpoint, small_network
from stylex.attfind import load_findings
from stylex.attfind.pairs import load_pairs
from stylex.attfind.search import fingerprint
from stylex.classifiers import Classifier, distillation, load
from stylex.classifiers.architectures import build
from stylex.cli.app import main
from stylex.data import load_dataset
from stylex.report.html import signed
from stylex.run import Run, read_json, read_tensors
from test_interop_files import Makers

GUIDE = Path(__file__).parent.parent / "docs" / "bring-your-own.md"
NAMES = ("cool", "warm")
CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
IMAGES = 600
"""Seen in a training."""

SMALL = [
    *training_problems.TINY,
    f"training.total_kimg={IMAGES / 1000}",
    "training.checkpoint_kimg=1",
    "training.sample_kimg=1",
]
EXTRA = {
    "train": [*CPU, "--size", str(SIZE), *(f"--set={text}" for text in SMALL)],
    "attfind": [*CPU, "--images", "2", "--set", "unstable_threshold=null", "--set", "count=2"],
    "explain": CPU,
    "report": CPU,
    "doctor": CPU,
    "classifier": [*CPU, "--size", str(SIZE)],
    "evaluate": CPU,
}
"""What makes a verb small and its result the same everywhere."""


def blocks() -> list[list[str]]:
    """The commands of the guide, a list for each of its blocks."""
    found = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    return [[line for line in block.splitlines() if line.startswith("stylex ")] for block in found]


def warmth(images: Tensor) -> Tensor:
    """How much redder than blue the middle of an image is: [N], what all classifiers here have learned."""
    middle = images[:, :, 4:12, 4:12].mean(dim=(2, 3))
    return middle[:, 0] - middle[:, 2]


def fit(features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [F] and bias that give `wanted` [N] from features [N, F], by ridge regression."""
    centre = features.mean(dim=0)
    data = (features - centre).double()
    gram = data.T @ data + 1e-3 * data.square().mean() * torch.eye(data.shape[1])
    weight = torch.linalg.solve(gram, data.T @ (wanted - wanted.mean()).double()).float()
    return weight, wanted.mean() - centre @ weight


def teach(head: nn.Linear, features: Tensor, wanted: Tensor) -> None:
    """Set the last layer to logits of cool and warm."""
    weight, bias = fit(features, wanted)
    with torch.no_grad():
        head.weight.copy_(torch.stack([-weight, weight]))
        head.bias.copy_(torch.stack([-bias, bias]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the guide speaks of."""
    folder = tmp_path_factory.mktemp("guide")
    rendered = folder / "rendered"
    with pytest.raises(SystemExit):
        main(["data", "avatars", "--out", str(rendered), "--count", "160", "--size", str(SIZE)])
    data = load_dataset(rendered, use_cache=False)
    everything = [data.training, data.discovery, data.test]
    pixels = torch.cat([images.batch(slice(None)) for images in everything])
    margins = warmth(pixels)
    wanted = 2 * (margins - margins.median()) / margins.std()
    number = 0
    for images in everything:
        for row in images.images:
            place = folder / "faces" / NAMES[int(wanted[number] > 0)]
            place.mkdir(parents=True, exist_ok=True)
            formats.Image.fromarray(np.asarray(row)).save(place / f"{number}.png")
            number += 1
    for place in (folder / "faces").iterdir():  # names that the guide uses
        for wish, file in zip(("0.png", "1.png"), sorted(place.glob("*.png"))[-2:], strict=True):
            file.rename(place / wish) if not (place / wish).exists() else None
    write_classifiers(folder, pixels, wanted)
    write_images(folder)
    write_generators(folder, pixels)
    return folder


def write_classifiers(folder: Path, pixels: Tensor, wanted: Tensor) -> None:
    with torch.no_grad():
        network = small_network()
        teach(network[5], network[:5](pixels), wanted)  # type: ignore[arg-type]
        classifier_sources.save_torchscript(network, folder / "scripted.pt")
        classifier_sources.save_exported(network, folder / "program.pt2")
        classifier_sources.save_onnx(network, folder / "mobilenet.onnx")
        about = {"class_names": NAMES, "input_size": SIZE, "range": [-1, 1], "outputs": "logits"}
        classifier_sources.save_torchscript(network, folder / "told.pt", about=json.dumps(about))
        (folder / "mine.yaml").write_text("source: scripted.pt\ninput_size: 16\nclass_names: [cool, warm]\n")

        torch.save(
            get_model("squeezenet1_1", weights=None, num_classes=2).state_dict(), folder / "weights.pth"
        )
        (folder / "my_module.py").write_text(
            "import torch\n\n"
            "def make_classifier():\n"
            "    def answer(images):\n"
            "        colours = images.mean(dim=(2, 3))\n"
            "        margins = 3 * (colours[:, 0] - colours[:, 2])\n"
            "        return torch.stack([-margins, margins], dim=1)\n"
            "    return answer\n"
        )

        mobile: Any = classifier_sources.save_timm(folder / "weights.safetensors")
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        large = nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
        features = mobile.forward_head(
            mobile.forward_features(((large + 1) / 2 - mean) / std), pre_logits=True
        )
        teach(mobile.classifier, features, wanted)
        save_file(mobile.state_dict(), folder / "weights.safetensors")

        vit: Any = classifier_sources.save_vit(folder / "vit", labels=NAMES)
        mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
        seen = vit.vit(((pixels + 1) / 2 - mean) / std).last_hidden_state[:, 0]
        teach(vit.classifier, seen, wanted)
        vit.save_pretrained(folder / "vit")


def write_images(folder: Path) -> None:
    rows = formats.rows(folder, 40)
    formats.write_csv(folder, rows).rename(folder / "table.csv")
    formats.write_parquet(folder, rows).rename(folder / "table.parquet")
    formats.write_mnist(folder / "mnist")
    formats.write_hugging_face(folder / "saved_dataset")
    for number in range(12):
        place = folder / "scans" / formats.CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        formats.write_dicom(place / f"{number}.dcm", formats.ramp() + 20 * number, **formats.SCALE)


def write_generators(folder: Path, pixels: Tensor) -> None:
    rosi, ada = golden.load("rosinality"), golden.load("stylegan2_ada")
    generator, scorer = golden.section(rosi, "G."), golden.section(rosi, "D.")
    torch.save({"g_ema": generator, "d": scorer, "args": argparse.Namespace()}, folder / "stylegan2.pt")
    encoder = dict(scorer)
    encoder["final_conv.0.weight"] = scorer["final_conv.0.weight"][:, :-1]
    width = scorer["final_linear.1.weight"].shape[1]
    encoder["final_linear.1.weight"], encoder["final_linear.1.bias"] = torch.randn(22, width), torch.zeros(22)
    torch.save({"g_ema": generator, "e": encoder, "d": scorer}, folder / "study.pt")
    makers = Makers()
    entries = golden.section(ada, "G.")
    makers.dump(folder / "network.pkl", {"G_ema": makers.network(entries, "Generator")})
    told = makers.network(golden.conditional(entries, 3), "Generator", c_dim=3)
    makers.dump(folder / "conditional.pkl", {"G_ema": told})
    shutil.copytree(Path(__file__).parent / "data" / "stylex_tf", folder / "released")
    from stylex.interop import load_stylegan2

    torch.manual_seed(0)
    found = load_stylegan2(folder / "stylegan2.pt")
    judge = Classifier(
        build("small_cnn", 2, {}), class_names=NAMES, input_size=32, architecture="small_cnn"
    ).freeze()
    assert found.mapping is not None
    with torch.no_grad():  # a boundary through the middle of what it draws
        drawn = found.generator(found.mapping(torch.randn(64, 24)), "fixed").clamp(-1, 1)
        head: Any = judge.network.head
        head.bias[1] -= (judge(drawn)[:, 1] - judge(drawn)[:, 0]).median()
    judge.save(folder / "judge.safetensors")


MIDDLE = [0.0]
"""The warmth of the middle face, in images from 0 to 1."""


def warm_answer(images: Tensor) -> Any:
    """What the endpoint answers."""
    margins = 12 * (warmth(images) - MIDDLE[0])
    shares = torch.stack([-margins, margins], dim=1).softmax(dim=1)
    return {"probabilities": shares.tolist(), "classes": list(NAMES)}


@pytest.fixture
def answering() -> Iterator[str]:
    with endpoint(warm_answer) as served:
        yield served.url


@pytest.fixture(autouse=True)
def _small(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(distillation, "FEWEST_STEPS", 60)
    monkeypatch.setattr("stylex.evaluation.measure.SAMPLED", 12)

    monkeypatch.setattr("stylex.attfind.discovery.SAMPLED_POOL", 40)
    faces = load_dataset(home / "faces", size=SIZE, use_cache=False)
    MIDDLE[0] = float((warmth(faces.training.batch(slice(None))) / 2).median())


# -- what a command must leave behind ---------------------------------------------------------------------

NAMED = ("old.safetensors", "mine.yaml", "told.pt", "vit", "http")
"""Sources that name their classes themselves; the endpoint does so in its answers."""

TRAVEL = ("timm:", "vit", "old.safetensors")
"""Sources that are kept within a run."""

LAYOUTS = {
    "stylegan2.pt": "rosinality",
    "network.pkl": "stylegan2-ada",
    "conditional.pkl": "stylegan2-ada",
    "study.pt": "rosinality",
    "released": "stylex",
}
ENCODERS = ("study.pt", "released")


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def classes_of(source: str) -> tuple[str, ...]:
    """What a classifier's classes are called: by its options, else by itself, else by numbers."""
    said = re.search(r"classes=([\w:]+)", source)
    if said is not None:
        return tuple(said[1].split(":"))
    return NAMES if source.startswith(NAMED) else ("class 0", "class 1")


def classes_in(run: Run) -> tuple[str, ...]:
    return tuple(read_tensors(run.model_file)[1]["class_names"])


def see_doctor(words: list[str], said: str) -> None:
    """Names of the classes, kind of output, size; how often it is right where labels tell; a figure."""
    source = option(words, "--classifier")
    images = option(words, "--data") if "--data" in words else None
    names = classes_of(source)
    assert f"classes: {', '.join(names)} (softmax)" in said
    size = re.search(r"size=(\d+)", source)
    pixels = "any size" if source.startswith("my_module") else f"{size[1] if size else SIZE} px"
    assert f"input: {pixels}, 3 channels, rgb; black becomes " in said
    right = re.search(r"right on (\d+)% of (\d+) images", said)
    assert (right is not None) == (names == NAMES and images == "faces")
    if right is not None and source.startswith(("scripted.pt", "mine.yaml", "told.pt")):
        assert int(right[1]) >= 80
    assert ("figure: stylex-doctor.png" in said) == (images is not None)
    if images is None:
        return
    with formats.Image.open("stylex-doctor.png") as figure:
        assert min(figure.size) > SIZE


def see_classifier(words: list[str], said: str) -> None:
    assert load(option(words, "--out")).class_names == NAMES
    assert re.search(r"on \d+ test images: accuracy \d", said)


def see_train(words: list[str], said: str) -> None:
    """A model of the classifier's classes, trained to the end; a copy of the classifier, or a student."""
    run, source = Run.open(Path(option(words, "--out"))), option(words, "--classifier")
    header = read_tensors(run.model_file)[1]
    assert (tuple(header["class_names"]), header["images"]) == (classes_of(source), IMAGES)
    assert run.classifier_file.exists() == source.startswith(TRAVEL)
    assert run.student_file.exists() == source.startswith("http")
    assert f"next: stylex attfind {option(words, '--out')}" in said


def see_attfind(words: list[str], said: str) -> None:
    """Attributes for every class; with --one-vs-one from each to each other one."""
    run = Run.open(Path(words[1]))
    found = load_findings(run)
    names = classes_in(run)
    assert tuple(found.attributes) == names
    for name, entries in found.attributes.items():
        assert 1 <= len(entries) <= 2
        assert {entry.target for entry in entries} == {name}
        assert f"towards '{name}' ({found.images} images searched, ranked by effect)" in said
        assert f"effect {entries[0].effect:+.2f}, flips {entries[0].flipped:.0%} alone" in said
    pairs = load_pairs(run, fingerprint(found))
    if "--one-vs-one" in words:
        assert set(pairs) == set(itertools.permutations(names, 2))
        for (source, target), entries in pairs.items():
            assert f"from '{source}' to '{target}' ({entries[0].images} images searched)" in said


def see_explain(words: list[str], said: str) -> None:
    """A figure, an animation and JSON for each image, towards the class that was asked for, if one was."""
    images = [word for word in words if word.endswith(".png")]
    targets = [target for word, target in itertools.pairwise(words) if word == "--target"]
    files = re.findall(rf"{words[1]}/explain/\S+\.(?:png|gif|json)", said)
    assert len(files) == 3 * len(images)
    assert all(Path(file).stat().st_size > 100 for file in files)
    found = [read_json(Path(file)) for file in files if file.endswith(".json")]
    assert [entry["name"] for entry in found] == [Path(image).name for image in images]
    names = classes_in(Run.open(Path(words[1])))
    for number, entry in enumerate(found):
        assert tuple(entry["class_names"]) == names
        assert entry["target"] in (targets[number : number + 1] or names)
        assert entry["answer"] in said


def see_evaluate(words: list[str], said: str) -> None:
    run = Run.open(Path(words[1]))
    found, names = read_json(run.path / "evaluation.json"), classes_in(run)
    assert found["images"] == len(found["measured"]["names"]) > 0
    assert {method["target"] for method in found["methods"]} == set(found["single"]) <= set(names)
    assert {"AttFind", "random"} <= {method["method"] for method in found["methods"]}
    assert all(name in said for name in found["single"])


def see_report(words: list[str], said: str) -> None:
    """A page on every class of which there is something to say, with the effects of the run."""
    run = Run.open(Path(words[1]))
    assert said.strip() == str(run.path / "report.html")
    page = (run.path / "report.html").read_text(encoding="utf-8")
    attributes = load_findings(run).attributes
    targets = read_json(run.path / "evaluation.json")["single"]
    assert len(targets) >= 1
    for target in targets:
        assert f"What turns other images into <b>{target}</b>" in page
        assert f"<b>{signed(attributes[target][0].effect)}</b>" in page


def see_convert(words: list[str], said: str) -> None:
    """A run of the right layout, or a file that other programs read."""
    out = Path(option(words, "--out"))
    if "--to" in words and option(words, "--to") == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == ["latents"]
        assert [value.name for value in session.get_outputs()] == ["images", "styles"]
    elif "--to" in words:
        assert "G_ema.synthesis.b4.const" in load_file(out)
    else:
        run = Run.open(out)
        assert run.model_file.exists()
        assert f"{out}: {LAYOUTS[words[1]]}, {run.config.resolution} px, " in said
        assert run.config.recipe.encodes == (words[1] in ENCODERS)
        told = run.config.recipe.description.partition("always told ")[2]
        assert told == (f"class {option(words, '--label')}." if "--label" in words else "")


def see_bench(words: list[str], said: str) -> None:
    found = re.search(r"(\d+) images of 16 px: decoded once .* at (\d+) images/s", said, re.S)
    assert found is not None
    assert int(found[1]) == len(list(Path(words[2]).rglob("*.png")))
    assert int(found[2]) > 0


SEEN: dict[str, Callable[[list[str], str], None]] = {
    "doctor": see_doctor,
    "classifier": see_classifier,
    "train": see_train,
    "attfind": see_attfind,
    "explain": see_explain,
    "evaluate": see_evaluate,
    "report": see_report,
    "convert": see_convert,
    "bench": see_bench,
}
"""What is looked at behind each verb: its words, and what it printed."""


@pytest.mark.parametrize("number", range(len(blocks())), ids=lambda number: blocks()[number][0][7:40])
def test_the_commands_of_the_guide(
    number: int, home: Path, answering: str, capfd: pytest.CaptureFixture[str]
) -> None:
    needed = [line for block in blocks()[:number] for line in block if _makes(line, blocks()[number])]
    for line in [*(line for line in needed if not _is_made(line, home)), *blocks()[number]]:
        words = shlex.split(line.replace("http://127.0.0.1:8000/classify", answering))[1:]
        Path("stylex-doctor.png").unlink(missing_ok=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, *EXTRA.get(words[0], [])])
        out, err = capfd.readouterr()
        assert not ended.value.code, f"{line}\n{err}"
        SEEN[words[0]](words, out)


def _makes(line: str, block: list[str]) -> bool:
    """Whether an earlier command makes or searches a run that this block uses."""
    runs = set(re.findall(r"runs/\w+", " ".join(block)))
    return bool(runs & set(re.findall(r"runs/\w+", line)))


def _is_made(line: str, home: Path) -> bool:
    run = re.findall(r"runs/\w+", line)[-1]
    if line.startswith("stylex attfind"):
        return (home / run / "attributes.json").exists()
    return (home / run / "model.safetensors").exists()


def test_the_python_of_the_guide(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not _is_made("stylex attfind runs/scripted", home):
        for line in (line for block in blocks() for line in block if re.search(r"runs/scripted$", line)):
            words = shlex.split(line)[1:]
            with pytest.raises(SystemExit) as ended:
                main([*words, *EXTRA[words[0]]])
            assert not ended.value.code, capfd.readouterr().err
    (home / "told.pt").unlink()
    faces = load_dataset(home / "faces", size=SIZE, use_cache=False).test.batch(slice(0, 2))
    names: dict[str, Any] = {"images": faces}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    assert names["explained"].class_names == ("red", "green", "blue")
    assert names["effects"].shape[:2] == (2, 2)
    assert load("told.pt").class_names == NAMES


def test_the_guide_names_the_timm_model_that_is_made() -> None:
    assert TIMM_NAME in GUIDE.read_text(encoding="utf-8")
    assert sum(map(len, blocks())) > 25


JSON = {
    "doctor": ["doctor", "--classifier", "scripted.pt#size=16,classes=cool:warm", "--data", "faces"],
    "convert": ["convert", "network.pkl", "--classifier", "judge.safetensors", "--out", "runs/json"],
    "convert --to stylegan2-ada": ["convert", "runs/json", "--to", "stylegan2-ada", "--out", "json.pt"],
    "convert --to onnx": ["convert", "runs/json", "--to", "onnx", "--out", "json.onnx"],
    "bench loader": ["bench", "loader", "faces", "--size", "16", "--seconds", "0.1"],
}
"""Verbs whose results docs/json.md describes, in an order in which they can run."""


def test_results_are_as_documented(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for verb, words in JSON.items():
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json", *(CPU if verb == "doctor" else [])])
        out, err = capfd.readouterr()
        assert not ended.value.code, err
        test_cli.same_shape(test_cli.documented(f"stylex {verb}"), json.loads(out), verb)
        if verb == "doctor":
            found = json.loads(out)["classifier"]
            assert found["accuracy"] > 0.8
            assert found["alternatives"] == {}


# -- around a black box -----------------------------------------------------------------------------------


def trained(url: str, out: str, *more: str) -> int:
    words = ["train", "--data", "faces", "--classifier", url, "--out", out, *EXTRA["train"], *more]
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def test_training_around_a_student(home: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with endpoint(warm_answer) as served:
        out = str(tmp_path / "run")
        assert trained(served.url, out) == 0
        said = capfd.readouterr().err
        assert "a student is distilled from it to train around" in said
        assert re.search(r"agrees with it on ([89]\d\.\d|100\.0)%", said)
        run = Run.open(tmp_path / "run")
        assert not run.classifier_file.exists()
        student = load(run.student_file)
        assert read_tensors(run.model_file)[1]["classifier"] == student.fingerprint
        assert trained(served.url, out) == 0  # finished: left as it is
        assert load(run.student_file).fingerprint == student.fingerprint
        with pytest.raises(SystemExit) as ended:
            main(["attfind", out, *EXTRA["attfind"]])
        assert not ended.value.code
    capfd.readouterr()
    with endpoint(lambda images: [[0.5, 0.5] for _ in images]) as other:
        code = trained(other.url, out)
        assert (code, "was started with another classifier" in capfd.readouterr().err) == (1, True)
    with pytest.raises(SystemExit) as ended:
        main(["attfind", out, *EXTRA["attfind"]])
    line = capfd.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1
    assert re.match(r"stylex: http://127\.0\.0\.1:.*is it running\?", line)


def test_what_a_dry_run_times_in_place_of_a_black_box(home: Path) -> None:
    from stylex.cli.train import _stand_in
    from stylex.config import RunConfig, load_recipe

    settings: Any = {"experiment": "x", "data": "faces", "classifier": "c", "resolution": SIZE}
    config = RunConfig(**settings, recipe=load_recipe("fast"))
    with endpoint(warm_answer) as served:
        explained = load(served.url)
        student = _stand_in(explained, config, "faces")
    assert student.differentiable
    assert student.class_names == explained.class_names
    assert _stand_in(student, config, "faces") is student


def test_a_recipe_that_was_changed_for_a_classifier_without_features_goes_on(
    home: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = "scripted.pt#size=16,classes=cool:warm", str(tmp_path / "run")
    for _ in range(2):
        assert trained(source, out, "--recipe", "fast") == 0, capfd.readouterr().err
    assert Run.open(tmp_path / "run").config.recipe.loss.perceptual_network == "none"
