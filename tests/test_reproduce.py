"""Items of the study from stand-ins: every file is written, figures agree with what they are made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import problems
import training_problems
from stylex import config
from stylex.classifiers import Classifier
from stylex.cli.app import main
from stylex.errors import ConfigError, DataError
from stylex.evaluation.study_protocol import StudySettings
from stylex.reproduce.claims import attributes, comparison, reconstruction
from stylex.reproduce.experiments import EXPERIMENTS, experiment, parse_folders
from stylex.reproduce.items import ITEMS, USES, default_experiments, reproduce
from stylex.reproduce.kept import finished
from stylex.reproduce.workshop import STYLEGAN2, Workshop
from stylex.run import read_json, read_tensors, write_json, write_tensors
from stylex.training.loop import train
from stylex.training.progress import Progress
from stylex.training.schedule import total_images
from stylex.training.setup import Request, create_run

SMALL = StudySettings(discovery=40, latents=8, repeats=2, count=3, wu_threshold=0.5)
CPU = ("--device", "cpu", "--precision", "fp32", "--threads", "1")


def afhq(folder: Path, first: int = 0) -> Path:
    """Eighty pictures a class to train on, six to validate, of 16 px, in AFHQ's layout; `first` is a seed."""
    for split, count, seed in (("train", 160, first), ("val", 12, first + 1)):
        for number, picture in enumerate(training_problems.images(count, seed=seed).images):
            path = folder / split / ("cat", "dog")[number % 2] / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return folder


def save_classifier(file: Path, classifier: Classifier) -> Classifier:
    classifier.options = {"widths": [4, 4, 8, 8]}
    classifier.save(file)
    return classifier


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop whose runs are there already, with random weights whose classes are balanced."""
    folder = tmp_path_factory.mktemp("reproduce")
    shop = Workshop(
        replace(experiment("study-afhq"), architecture="small_cnn"),
        folder / "home",
        {"afhq": str(afhq(folder / "afhq"))},
        training_problems.HARDWARE,
        recipe="fast",
        size=16,
        assignments=(*training_problems.TINY, "loss.perceptual_network=classifier"),
        epochs=2,
        study=SMALL,
        images_per_class=4,
    )
    for name, model in (
        ("fast", problems.tiny_model("evidence")),
        (STYLEGAN2, problems.tiny_model(STYLEGAN2)),
    ):
        problems.save_tiny_run(shop.home / name, model, config=shop.settings(name))
    classifier = problems.tiny_model("evidence").classifier
    classifier.options = {"widths": [4, 4, 8, 8]}
    classifier.report = {"architecture": "small_cnn", "seconds": 30.0, "epochs": 2, "training_images": 30}
    save_classifier(shop.home / "classifier.safetensors", classifier)
    save_classifier(shop.home / "judge.safetensors", training_problems.classifier(seed=7))
    metrics = shop.home / "fast" / "metrics.jsonl"
    metrics.write_text('{"images": 40, "seconds": 4.0}\n{"images": 80, "sec')
    return shop


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


OPTIONS = {"set": "assignments", "images": "images_per_class"} | {
    name: name for name in ("recipe", "study", "epochs", "size", "seed")
}
"""Option → the workshop's attribute."""


def watched(shop: Workshop) -> tuple[Workshop, set[str]]:
    """A copy of a workshop, and the names of its attributes that are read."""
    read: set[str] = set()

    class Watched(Workshop):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    return Watched(**{field.name: getattr(shop, field.name) for field in fields(shop)}), read


@pytest.mark.parametrize("what", [what for what in ITEMS if what != "figure-3"])
def test_every_item_is_written_and_uses_the_options_that_it_takes(
    made: Workshop, tmp_path: Path, what: str
) -> None:
    if what == "methods":  # of several recipes, each as the experiment's own
        home = tmp_path / "home"
        shutil.copytree(made.home, home, ignore=shutil.ignore_patterns("fast", STYLEGAN2))
        made = replace(made, home=home, recipe=None, recipes=("fast", "study"))
        problems.save_tiny_run(home / "fast", problems.tiny_model("evidence"), config=made.settings("fast"))
    shop, read = watched(made)
    item = reproduce(what, shop)
    used = {option for option, name in OPTIONS.items() if name in read}
    if what == "methods":
        used.remove("recipe")  # which it reads to refuse it
    assert used == set(USES[what]) & set(OPTIONS)
    assert item.experiment == "study-afhq"
    names = {file.name for file in item.files}
    assert {f"{what}.md", f"{what}.json"} <= names
    if what.startswith("figure"):
        assert f"{what}.png" in names
        with Image.open(made.home / f"{what}.png") as picture:
            assert picture.width > 300
            assert np.asarray(picture.convert("L")).std() > 10
        assert f"]({what}.png)" in (made.home / f"{what}.md").read_text()
    content = json.loads((made.home / f"{what}.json").read_text())
    assert content["content"] == json.loads(json.dumps(item.content))


def test_table_1(made: Workshop) -> None:
    item = reproduce("table-1", made)
    counts = item.content["sets"]["StylEx and classifier"]
    assert counts["training"] + counts["discovery"] == 160
    assert counts["test"] == 12
    assert sum(counts["classes"].values()) == counts["training"]
    assert item.content["study"]["StylEx and classifier"] == {"training": 9895, "validation": 1003}
    assert "| the study's StylEx and classifier | 9,895 | – | 1,003 | – |" in item.text


def test_table_2(made: Workshop) -> None:
    item = reproduce("table-2", made)
    ours = item.content["columns"]["AttFind with StylEx"]
    stored = json.loads((made.home / "fast" / "study.json").read_text())
    assert ours["mean"] == stored["figures"][0]["mean"]
    assert stored["settings"]["repeats"] == 2
    assert ours["confirmed"] is not None
    assert "0.042 ± 0.006 | 0.250" in item.text  # the study's and the paper's
    assert item.content["columns"]["AttFind with StyleGAN2"]["original"] is None
    assert "±: standard deviation over the draws" in item.text
    assert "The ± that the study prints for Wu et al. is by mistake one of AttFind's" in item.text
    # Another number of repeats is measured anew, the same one is not.
    before = (made.home / "fast" / "study.json").stat().st_mtime_ns
    reproduce("table-2", made)
    assert (made.home / "fast" / "study.json").stat().st_mtime_ns == before


def test_figures(made: Workshop) -> None:
    attributes_shown = reproduce("figure-4", made).content["attributes"]
    explainer = made.explainer("fast")
    merged = explainer.findings.merged
    assert [(each["direction"], each["coordinate"]) for each in attributes_shown] == list(merged[:4])
    for each in attributes_shown:
        assert [shown["class"] for shown in each["shown"]] == ["a", "b"]
    again = reproduce("figure-4", made).content["attributes"]
    assert again == attributes_shown
    assert sum(reproduce("figure-7", made).content["classes"].values()) == 24
    assert len(reproduce("figure-2", made).content["images"]) == 8


def test_a_recipe_without_an_encoder_has_no_reconstructions_to_show(made: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="figure-2 shows reconstructions; recipe 'stylegan2' has none"):
        reproduce("figure-2", replace(made, recipe=STYLEGAN2, home=tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_compute(made: Workshop) -> None:
    item = reproduce("compute", made)
    assert item.content["runs"]["fast"]["images_per_second"] == 10  # the last line was cut off
    assert item.content["classifier"]["seconds"] == 30
    assert "| classifier small_cnn | 60 | 0.5 | 2.0 | – |" in item.text


class Killed(BaseException):
    """What no code of ours expects."""


def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    """There is a model from the first checkpoint on; a run with one need not be at its end."""
    shop = Workshop(
        replace(experiment("study-afhq"), architecture="small_cnn"),
        tmp_path / "home",
        {"afhq": str(afhq(tmp_path / "afhq"))},
        training_problems.HARDWARE,
        size=16,
        assignments=(*training_problems.TINY, "loss.perceptual_network=none"),
    )
    classifier = save_classifier(shop.home / "classifier.safetensors", training_problems.classifier())
    run = create_run(shop.home / "study", shop.settings("study"), shop.data, classifier, shop.hardware)

    def kill(progress: Progress) -> None:
        if progress.images >= 24:
            raise Killed

    with pytest.raises(Killed):
        train(run, shop.data.training, classifier, shop.hardware, on_progress=kill)
    assert run.model_file.exists()
    assert not finished(run)
    reached = shop.run("study").newest_checkpoint()
    assert reached is not None
    assert reached[1]["images"] == total_images(run.config.recipe)
    assert finished(run)
    weights = run.model_file.read_bytes()
    assert shop.run("study").model_file.read_bytes() == weights

    others = str(afhq(tmp_path / "others", first=5))
    with pytest.raises(ConfigError, match=r"config.yaml: was made with images .*afhq#.*others#"):
        replace(shop, folders={"afhq": others}).run("study")
    save_classifier(shop.home / "classifier.safetensors", training_problems.classifier(seed=3))
    with pytest.raises(ConfigError, match=r"config.yaml: was made with classifier .*sha256"):
        replace(shop).run("study")


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ({"seed": 1}, "fast/config.yaml: was made with seed 0, asked for is 1; give another --home"),
        ({"epochs": 3}, "home/classifier.safetensors: was made with epochs 2, asked for is 3"),
        ({"size": 32}, "fast/config.yaml: was made with resolution 16, asked for is 32"),
        ({"set": "loss.kl=0.5"}, "fast/config.yaml: was made with recipe.loss.kl"),
    ],
)
def test_what_was_made_otherwise_is_refused(made: Workshop, asked: dict[str, Any], refusal: str) -> None:
    changes = dict(asked)
    if "set" in changes:
        changes["assignments"] = (*made.assignments, changes.pop("set"))
    shop = replace(made, **changes)
    with pytest.raises(ConfigError, match=refusal) as raised:
        reproduce("figure-2", shop)
    assert "\n" not in str(raised.value)


def test_figures_of_other_weights_or_another_judge_are_measured_again(made: Workshop, tmp_path: Path) -> None:
    home = shutil.copytree(made.home, tmp_path / "home")
    shop = replace(made, home=home)
    files = {"study.json": shop.study_result, "evaluation.json": shop.evaluation}

    def kept(change: Callable[[], object]) -> set[str]:
        """The files that are still used after a change."""
        for name, ask in files.items():
            ask("fast")
            write_json(home / "fast" / name, read_json(home / "fast" / name) | {"mark": True})
        change()
        return {name for name, ask in files.items() if "mark" in ask("fast")}

    def other_judge() -> None:
        save_classifier(home / "judge.safetensors", training_problems.classifier(seed=8))

    def other_weights() -> None:
        file = home / "fast" / "model.safetensors"
        tensors, header = read_tensors(file)
        name = next(name for name in tensors if name.startswith("generator") and "noise" in name)
        write_tensors(file, tensors | {name: tensors[name] + 0.01}, header)

    def other_images() -> None:
        for name in files:
            content = read_json(home / "fast" / name)
            content["measured"] |= {"source": "elsewhere", "sha256": "0"}
            write_json(home / "fast" / name, content)

    assert kept(lambda: None) == set(files)
    assert kept(other_images) == set()
    assert kept(other_judge) == set()
    assert kept(other_weights) == set()
    with_others = replace(shop, images_per_class=5)
    assert with_others.explainer("fast").findings.settings.images_per_class == 5


def test_a_home_that_does_not_say_how_attributes_are_put_in_order_is_used(
    made: Workshop, tmp_path: Path
) -> None:
    """Its training is kept, and so are attributes in the order of the picks; others are searched anew."""
    shop = replace(made, home=shutil.copytree(made.home, tmp_path / "home"))
    folder = shop.home / "fast"
    shop.explainer("fast")
    lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    old = [line for line in lines if line != "  order: selection\n"]
    assert len(old) == len(lines) - 1
    (folder / "config.yaml").write_text("".join(old), encoding="utf-8")
    assert shop.run("fast").config.attfind.order == "effect", "today's default"
    assert shop.settings("fast").attfind.order == "selection"

    def searched(**changes: str) -> list[str]:
        """What is said where attributes.json has no `order`, or these settings in place of its own."""
        said: list[str] = []
        content = read_json(folder / "attributes.json")
        content["settings"].pop("order", None)
        content["settings"] |= changes
        write_json(folder / "attributes.json", content)
        found = replace(shop, say=said.append).explainer("fast")
        assert found.findings.settings.order == "selection"
        return said

    assert searched() == []
    assert searched(order="effect") == [f"searching attributes of {folder}"]
    assert searched(method="independent") == [f"searching attributes of {folder}"]
    assert (folder / "config.yaml").read_text(encoding="utf-8") == "".join(old)


def agreement(low: float, high: float) -> dict[str, Any]:
    return {"estimate": (low + high) / 2, "low": low, "high": high, "n": 100}


def curve(
    method: str, rate: float, low: float, high: float, confirmed: float | None = None
) -> dict[str, Any]:
    return {
        "method": method,
        "target": "old",
        "curve": {"k": [1, 10, 20], "rate": [0, rate, 1], "low": [0, low, 1], "high": [0, high, 1]},
        "confirmed": None if confirmed is None else [{"share": 0}, {"share": confirmed}, {"share": 0}],
    }


def figures(confirmed: float | None = 0.9, **shares: float | None) -> dict[str, Any]:
    names = {"attfind": "AttFind", "wu": "Wu et al."}
    return {
        "class_names": ["cat", "dog"],
        "figures": [
            {
                "method": names[name],
                "interval": {"estimate": share, "n": 1000},
                "by_class": [share, None],
                "confirmed": None if confirmed is None else {"share": confirmed},
            }
            for name, share in shares.items()
            if share is not None
        ],
    }


def test_verdicts() -> None:
    assert reconstruction(agreement(0.91, 0.99)).word == "supported"
    assert reconstruction(agreement(0.85, 0.95)).word == "undecided"
    assert reconstruction(agreement(0.5, 0.6)).word == "not supported"
    nothing = reconstruction(None)
    assert (nothing.word, nothing.evidence) == ("undecided", ("the recipe reconstructs no images",))
    chance = curve("random", 0.05, 0.01, 0.1)
    assert attributes([curve("AttFind", 0.9, 0.8, 0.95, 0.9), chance]).word == "supported"
    assert attributes([curve("AttFind", 0.9, 0.8, 0.95, 0.3), chance]).word == "not supported"
    assert attributes([curve("AttFind", 0.9, 0.8, 0.95), chance]).word == "undecided"  # nobody has judged
    assert attributes([curve("AttFind", 0.15, 0.08, 0.2, 0.9), chance]).word == "undecided"
    assert attributes([curve("AttFind", 0.02, 0.0, 0.09), chance]).word == "not supported"
    with pytest.raises(DataError, match="cannot be judged"):
        attributes([])
    assert comparison(figures(attfind=0.9), figures(attfind=0.7, wu=0.2)).word == "supported"
    assert comparison(figures(attfind=0.1), figures(attfind=0.7, wu=0.2)).word == "not supported"
    assert comparison(figures(attfind=0.2), figures(attfind=0.7, wu=0.2)).word == "undecided"
    assert comparison(figures(attfind=0.2), figures(attfind=0.7, wu=None)).word == "undecided"


def test_flips_that_are_not_confirmed_support_no_claim() -> None:
    plain = figures(attfind=0.7, wu=0.2)
    refuted = comparison(figures(attfind=1.0, confirmed=0.0), plain)
    assert refuted.word == "not supported"
    assert "0% of the flips confirmed" in refuted.evidence[0]
    assert comparison(figures(attfind=1.0, confirmed=None), plain).word == "undecided"
    assert comparison(figures(attfind=0.1, confirmed=None), plain).word == "not supported"
    shown = comparison(figures(attfind=0.9), plain).evidence
    assert "away from 'cat' 90.0%, away from 'dog' –" in shown[0]
    assert "away from 'cat' 20.0%" in shown[1]


def test_experiments() -> None:
    assert set(EXPERIMENTS) <= set(config.names("experiments"))
    for name, each in EXPERIMENTS.items():
        settings = config.load_named("experiments", name)
        assert settings["resolution"] == each.size
        assert settings.get("recipe", "fast") == each.recipe
        plain = config.load_recipe(STYLEGAN2, each.stylegan2)
        own = config.load_recipe(each.recipe)
        assert plain.network.channels(each.size) == own.network.channels(each.size)
        assert plain.training.total_kimg == own.training.total_kimg
        by_picks = name in ("study-afhq", "study-ffhq-age")  # the study ranks in the order of the picks
        request = Request(data="d", classifier="c", recipe=each.recipe, experiment=name)
        order = request.settings(Path("run")).attfind.order
        assert order == ("selection" if by_picks else "effect")
        generator, classifier = each.sources(dict.fromkeys(each.needs, "/data"))
        assert "{" not in generator + classifier
    age = experiment("study-ffhq-age")
    assert age.sources({"ffhq": "f", "celeba": "c"}) == ("ffhq:f", "celeba:c#Young,balanced")
    with pytest.raises(DataError, match=r"needs --data celeba=FOLDER: CelebA: .*mmlab"):
        age.sources({"ffhq": "f"})
    assert parse_folders([age], ["ffhq=a", "celeba=b=c"]) == {"ffhq": "a", "celeba": "b=c"}
    assert parse_folders([experiment("study-afhq")], ["/x"]) == {"afhq": "/x"}
    for given in (["/x"], ["mnist=/x"], ["ffhq="]):
        with pytest.raises(ConfigError, match="--data ffhq=FOLDER and --data celeba=FOLDER"):
            parse_folders([age], given)
    with pytest.raises(ConfigError, match="no experiment named 'x'"):
        experiment("x")
    with pytest.raises(ConfigError, match="nothing to reproduce is named 'figure-1'"):
        default_experiments("figure-1")
    with pytest.raises(ConfigError, match="stylex study serve"):
        default_experiments("user-study")


def test_what_is_missing_is_trained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From images alone: the classifier, then a run; the second time both are there."""
    folder, home = afhq(tmp_path / "afhq"), tmp_path / "home"
    settings = [f"--set={text}" for text in (*training_problems.TINY, "loss.perceptual_network=none")]
    common = ["--experiment", "study-afhq", "--home", str(home), "--size", "16", "--json", *CPU]
    command = ["reproduce", "figure-2", "--data", str(folder), "--epochs", "1", *settings, *common]
    with pytest.raises(SystemExit) as ended:
        main(command)
    shown = capfd.readouterr()
    assert ended.value.code == 0, shown.err
    first = json.loads(shown.out)
    assert (home / "classifier.safetensors").exists()
    run = json.loads((home / "study" / "run.json").read_text())
    assert run["experiment"] == "study-afhq"
    weights = (home / "study" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert json.loads(capfd.readouterr().out) == first
    assert (home / "study" / "model.safetensors").read_bytes() == weights
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "table-1", *common])
    shown = capfd.readouterr()
    assert ended.value.code == 1
    assert "needs --data afhq=FOLDER: AFHQ: train and val" in shown.err
