from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import problems
import training_problems
from stylex.classifiers import Classifier, load
from stylex.cli.app import main
from stylex.cli.explain import _different
from stylex.cli.repeat import commands
from stylex.config import AttFindSettings, RunConfig, changed, dump_yaml, load_recipe, override
from stylex.report.compose import Amounts
from stylex.run import Run, read_json, read_tensors, write_json, write_tensors

CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def line(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("stylex:")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return lines[0]


@pytest.fixture
def stylex(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the program in this process; handlers of signals are put back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    yield run
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a trained run with random weights, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("home")
    problems.save_images(folder / "images")
    problems.save_tiny_run(folder / "run", problems.tiny_model(), str(folder / "images"))
    return folder


@pytest.fixture
def run_path(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def documented(verb: str) -> Any:
    """The example of a verb in docs/json.md."""
    text = (Path(__file__).parent.parent / "docs" / "json.md").read_text(encoding="utf-8")
    found = re.search(rf"## `{verb}`.*?```json\n(.*?)```", text, re.DOTALL)
    assert found, f"docs/json.md has no example of {verb}"
    return json.loads(found[1])


def same_shape(example: Any, found: Any, where: str = "result") -> None:
    """Equal keys all the way down; of lists the first entries, as an example shows one."""
    if isinstance(example, dict) and isinstance(found, dict):
        free = example and all(key.startswith(("CLASS", "FIGURE", "FACTOR", "EXPERIMENT")) for key in example)
        if free:
            for value in found.values():
                same_shape(next(iter(example.values())), value, f"{where}.*")
            return
        assert set(example) == set(found), where
        for key in example:
            same_shape(example[key], found[key], f"{where}.{key}")
    elif isinstance(example, list) and isinstance(found, list):
        if example and found:
            same_shape(example[0], found[0], f"{where}[0]")
    elif example is not None and found is not None:
        numbers = (int, float)
        assert isinstance(found, numbers if isinstance(example, numbers) else type(example)), where


def check(outcome: Outcome, verb: str) -> Any:
    """Exit code 0 and the documented JSON alone on standard output."""
    assert outcome.code == 0, outcome.err
    content = json.loads(outcome.out)
    same_shape(documented(verb), content)
    return content


def test_version_help_and_usage(stylex: Any) -> None:
    assert stylex("--version").out.startswith("stylex ")
    shown = stylex("--help")
    assert shown.code == 0
    for verb in ("demo", "data", "classifier", "train", "attfind", "evaluate", "report", "explain"):
        assert verb in shown.out
    for arguments in (["nonsense"], ["train"], ["explain", "run"], ["attfind", "run", "--images", "none"]):
        bad = stylex(*arguments)
        assert bad.code == 2
        assert "--help" in bad.line


def test_an_unknown_key(stylex: Any, run_path: Path, home: Path, tmp_path: Path) -> None:
    bad = stylex("attfind", run_path, "--set", "speed=3", *CPU)
    assert (bad.code, "speed: unknown key" in bad.line) == (2, True)
    classifier = run_path / "classifier.safetensors"
    new = ["--data", home / "images", "--classifier", classifier, "--out", tmp_path / "new"]
    bad = stylex("train", *new, "--size", "16", "--set", "training.speed=3", *CPU)
    assert (bad.code, "training.speed: unknown key" in bad.line) == (2, True)
    bad = stylex("train", *new, "--size", "20", *CPU)
    assert (bad.code, "power of two" in bad.line) == (2, True)
    assert not (tmp_path / "new").exists()


def test_what_yaml_takes_for_an_impossible_date(stylex: Any, run_path: Path, tmp_path: Path) -> None:
    bad = stylex("attfind", run_path, "--set", "count=2024-13-45", *CPU)
    assert (bad.code, "not readable as YAML" in bad.line) == (2, True)
    (tmp_path / "mine.yaml").write_text("classes: 2024-13-45")
    bad = stylex(
        "train",
        "--data",
        "x",
        "--classifier",
        "y",
        "--out",
        tmp_path / "new",
        "--recipe",
        tmp_path / "mine.yaml",
    )
    assert (bad.code, "not readable as YAML" in bad.line) == (2, True)
    bad = stylex("data", "avatars", "--out", tmp_path / "new", "--spec", tmp_path / "mine.yaml")
    assert (bad.code, "not a readable YAML file" in bad.line) == (1, True)


def test_a_size_that_is_no_power_of_two_is_wrong_usage(stylex: Any, home: Path, tmp_path: Path) -> None:
    new = ["--out", tmp_path / "new.safetensors"]
    for arguments in (
        ["data", "avatars", *new],
        ["classifier", "train", home / "images", *new],
        ["train", "--data", home / "images", "--classifier", "x", *new],
    ):
        for size in ("20", "2048"):
            bad = stylex(*arguments, "--size", size)
            assert (bad.code, f"power of two from 4 to 1024, such as 64; not {size}" in bad.line) == (2, True)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_classifier_that_could_not_be_kept_is_not_trained(
    stylex: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expensive(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("stylex.classifiers.train", expensive)
    (tmp_path / "file").touch()
    bad = stylex("classifier", "train", home / "images", "--out", tmp_path / "file" / "a.safetensors", *CPU)
    assert (bad.code, "could not be written" in bad.line) == (1, True)
    bad = stylex("classifier", "train", home / "images", "--out", tmp_path / "a.pt", *CPU)
    assert (bad.code, "must end in .safetensors" in bad.line) == (2, True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


def test_a_run_of_another_version(stylex: Any, run_path: Path) -> None:
    write_json(run_path / "run.json", read_json(run_path / "run.json") | {"format": 99})
    bad = stylex("attfind", run_path, *CPU)
    assert (bad.code, "a run of format 99; this stylex reads format" in bad.line) == (1, True)


def test_a_half_written_run(stylex: Any, run_path: Path) -> None:
    (run_path / "run.json").unlink()
    for verb in (["attfind", run_path], ["train", "--out", run_path]):
        bad = stylex(*verb, *CPU)
        assert (bad.code, "half-written run" in bad.line) == (1, True)
        assert "delete" not in bad.line  # it holds a trained model


def test_a_run_without_its_config(stylex: Any, run_path: Path) -> None:
    (run_path / "config.yaml").unlink()
    bad = stylex("attfind", run_path, *CPU)
    assert (bad.code, "half-written run (config.yaml is missing)" in bad.line) == (1, True)


def test_no_run_at_all(stylex: Any, tmp_path: Path) -> None:
    assert "no such directory" in stylex("evaluate", tmp_path / "none", *CPU).line


def test_a_model_that_contains_pickled_code(stylex: Any, run_path: Path, tmp_path: Path) -> None:
    class Mine:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"weights": Mine()}, run_path / "model.safetensors")
    bad = stylex("attfind", run_path, *CPU)
    assert (bad.code, "pickled code are refused" in bad.line) == (1, True)
    shutil.copy(run_path / "model.safetensors", tmp_path / "classifier.pt")
    bad = stylex(
        "train",
        "--data",
        tmp_path,
        "--classifier",
        tmp_path / "classifier.pt",
        "--out",
        tmp_path / "new",
        *CPU,
    )
    assert bad.code == 1
    assert not (tmp_path / "owned").exists()


def test_what_code_of_the_user_prints_stays_out_of_the_json(
    stylex: Any, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Run.open

    def noisy(path: Path) -> Run:
        print("hello from a factory")
        return opened(path)

    monkeypatch.setattr(Run, "open", noisy)
    found = stylex("attfind", run_path, "--images", "1", "--json", *CPU)
    assert json.loads(found.out)["coordinates"] > 0
    assert "hello from a factory" in found.err


def test_a_screened_search_says_how_sure_it_is(
    stylex: Any, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylex.attfind.screening.FIRST_IMAGES", 2)
    monkeypatch.setattr("stylex.attfind.screening.ENOUGH_IMAGES", 1)
    command = ["attfind", run_path, "--images", "4", "--screened", *CPU]
    found = check(stylex(*command, "--json"), "stylex attfind")
    assert found["screening"]
    assert found["confidence"] == min(each["sure"] for each in found["screening"] if each["sure"] is not None)
    assert read_json(run_path / "attributes.json")["confidence"] == found["confidence"]
    assert f"screened search: confidence {found['confidence']:.1%}" in stylex(*command).out
    assert "confidence" not in stylex(*[*command[: -len(CPU)], "--exact", *CPU]).out


def test_missing_stages(stylex: Any, run_path: Path) -> None:
    for verb in ("evaluate", "report"):
        bad = stylex(verb, run_path, *CPU)
        assert bad.code == 1
        assert re.search(r"'stylex attfind .*'", bad.line)
    (run_path / "model.safetensors").unlink()
    assert "'stylex train' writes it" in stylex("attfind", run_path, *CPU).line


def test_a_truncated_image(stylex: Any, run_path: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "images", tmp_path / "images")
    damaged = tmp_path / "images" / "discovery" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert stylex("attfind", run_path, "--images", "1", *CPU).code == 0
    found = stylex("attfind", run_path, "--data", tmp_path / "images", "--images", "1", "--json", *CPU)
    assert found.code == 0
    assert "1 of 24 files cannot be read" in found.err
    assert "003.png" in found.err
    json.loads(found.out)
    bad = stylex("explain", run_path, damaged, "--target", "b", *CPU)
    assert (bad.code, "003.png: cannot be read" in bad.line) == (1, True)
    for name in ("000.png", "001.png", "002.png"):
        (damaged.parent / name).write_text("no image")
    bad = stylex("attfind", run_path, "--data", tmp_path / "images", *CPU)
    assert (bad.code, "more than a tenth" in bad.line) == (1, True)
    (tmp_path / "empty").mkdir()
    bad = stylex("attfind", run_path, "--data", tmp_path / "empty", *CPU)
    assert (bad.code, "holds no image" in bad.line) == (1, True)


def test_nothing_is_overwritten(stylex: Any, run_path: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    given = ["--data", home / "images", "--classifier", run_path / "classifier.safetensors", "--size", "16"]
    for arguments in (
        ["train", "--out", tmp_path / "full", *given, *CPU],
        ["data", "avatars", "--out", tmp_path / "full", "--count", "2"],
        ["classifier", "train", home / "images", "--out", run_path / "classifier.safetensors", *CPU],
    ):
        bad = stylex(*arguments)
        assert (bad.code, "nothing was overwritten" in bad.line or "not empty" in bad.line) == (1, True)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_explanations_of_one_name_do_not_replace_each_other(stylex: Any, run_path: Path, home: Path) -> None:
    stylex("attfind", run_path, "--images", "1", *CPU)
    images = [home / "images" / split / "000.png" for split in ("training", "test")]
    found = check(stylex("explain", run_path, *images, "--target", "b", "--json", *CPU), "stylex explain")
    files = [file for entry in found["explanations"] for file in entry["files"]]
    assert len(set(files)) == 6
    assert all(Path(file).exists() for file in files)
    bad = stylex("explain", run_path, images[0], "--target", "purple", *CPU)
    assert (bad.code, "no class 'purple'" in bad.line) == (2, True)


def test_files_of_explanations_have_names_of_their_own() -> None:
    assert _different(["a", "b"]) == ["a", "b"]
    for stems in (["a", "a", "a-1"], ["a-1", "a", "a"], ["a-2", "a", "a", "a-2"]):
        assert len(set(_different(stems))) == len(stems)


def test_an_unreadable_image_among_several_leaves_no_half_answer(
    stylex: Any, run_path: Path, home: Path
) -> None:
    stylex("attfind", run_path, "--images", "1", *CPU)
    image = home / "images" / "test" / "000.png"
    bad = stylex("explain", run_path, image, run_path / "none.png", "--target", "b", *CPU)
    assert (bad.code, "none.png: no such file" in bad.line) == (1, True)
    assert not (run_path / "explain").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_program_is_still_being_imported(number: signal.Signals) -> None:
    program = f"""
import os, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
from stylex.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr.splitlines() == ["stylex: stopped before anything was begun"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_search_can_continue(stylex: Any, run_path: Path, number: signal.Signals) -> None:
    arguments = ["attfind", str(run_path), "--images", "8", "--batch-size", "1", *CPU]
    process = subprocess.Popen(
        [sys.executable, "-m", "stylex", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    shards = run_path / "effects"
    deadline = time.monotonic() + 60
    while not (shards.is_dir() and any(shards.glob("shard-*"))) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    outcome = Outcome(process.returncode, out, err)
    assert outcome.code == 143, err
    assert "stopped" in outcome.line
    assert not (run_path / "attributes.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in shards.glob("shard-*")}
    assert stylex(*arguments).code == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert (run_path / "attributes.json").exists()


def test_a_bug_is_one_line_and_a_traceback_on_request(
    stylex: Any, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Run:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr(Run, "open", broken)
    bad = stylex("attfind", run_path)
    assert (bad.code, "unexpected ZeroDivisionError: seven" in bad.line) == (1, True)
    assert "Traceback" in stylex("attfind", run_path, "--debug").err

    def full(*_: Any) -> Run:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Run, "open", full)
    assert "out of memory; try a smaller batch" in stylex("attfind", run_path).line

    def stopped(*_: Any) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "open", stopped)
    bad = stylex("attfind", run_path)
    assert (bad.code, "stopped" in bad.line) == (143, True)


def test_the_whole_way(stylex: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From data to explanations, every result as docs/json.md has it."""
    pytest.importorskip("python_avatars")
    faces, classifier, run = tmp_path / "faces", tmp_path / "age.safetensors", tmp_path / "run"
    made = ["data", "avatars", "--out", faces, "--count", "240", "--size", "16", "--json"]
    assert check(stylex(*made), "stylex data avatars")["count"] == 240
    taught = ["classifier", "train", faces, "--out", classifier, "--epochs", "2", "--batch-size", "32"]
    assert check(stylex(*taught, "--json", *CPU), "stylex classifier train")["file"] == str(classifier)
    settings = [f"--set={text}" for text in (*training_problems.TINY, "loss.perceptual_network=classifier")]
    trained = ["train", "--data", faces, "--classifier", classifier, "--out", run, "--size", "16"]
    asked = check(stylex(*trained, "--dry-run", "--json", *settings, *CPU), "stylex train --dry-run")
    assert asked["time"]["images"] == 40
    assert asked["time"]["seconds"] > 0
    assert not run.exists()
    assert check(stylex(*trained, "--json", *settings, *CPU), "stylex train")["images"] == 40
    assert check(stylex("train", "--out", run, "--json", *CPU), "stylex train")["images"] == 40
    # A model this raw gives one class only: steer the classifier so that its reconstructions fall into both.
    balance(run, faces)
    found = check(
        stylex("attfind", run, "--images", "2", "--set", "unstable_threshold=null", "--json", *CPU),
        "stylex attfind",
    )
    assert set(found["attributes"]) == {"old", "young"}
    measured = check(stylex("evaluate", run, "--json", *CPU), "stylex evaluate")
    assert measured["coordinates"] == found["coordinates"]
    assert len(measured["measured"]["names"]) == measured["images"]
    assert measured["measured"]["source"] == str(faces)
    assert (measured["factors"], measured["quality"]) == (None, None)
    detector = tmp_path / "detector.safetensors"
    read = ["factors", "train", faces, "--out", detector, "--epochs", "1", "--json", *CPU]
    assert set(check(stylex(*read), "stylex factors train")["factors"]) > {"glasses", "mouth"}
    assert "exists" in stylex(*read).line
    monkeypatch.setattr("stylex.evaluation.stage.load_extractor", lambda name: problems.PooledPixels())
    thorough = ["--factors", detector, "--quality", "--perceptual", "classifier", "--json", *CPU]
    measured = check(stylex("evaluate", run, *thorough), "stylex evaluate")
    assert set(measured["quality"]["realism"]) == {"reconstructions", "swapped"}
    assert measured["quality"]["fidelity"]["l1"]["estimate"] == pytest.approx(measured["l1"], rel=1e-4)
    assert set(measured["factors"]) > {"glasses", "mouth"}
    drawn = stylex("report", run, "--attributes", "1", "--pairs", "1", "--json", *CPU)
    report = check(drawn, "stylex report")
    assert Path(report["report"]).stat().st_size > 10_000
    assert "Factors that survive reconstruction" in Path(report["report"]).read_text(encoding="utf-8")
    assert read_json(run / "evaluation.json")["quality"] is not None  # a report of the same images keeps it
    (run / "evaluation.json").write_text((run / "evaluation.json").read_text()[:100])
    again_measured = stylex("report", run, "--attributes", "1", "--pairs", "1", "--json", *CPU)
    check(again_measured, "stylex report")
    assert "measured again" in again_measured.err
    assert read_json(run / "evaluation.json")["measured"] == measured["measured"]
    image = next(faces.rglob("*.png"))
    check(stylex("explain", run, image, "--target", "old", "--json", *CPU), "stylex explain")
    # A second classifier of the same images begins with what the first one's training has learned.
    again = [
        "train",
        "--from",
        run,
        "--classifier",
        classifier,
        "--out",
        tmp_path / "second",
        *settings,
        *CPU,
    ]
    second = stylex(*again)
    assert second.code == 0
    assert "sparsity.start_kimg 0, sparsity.exclusive 1: " in second.err
    sparsity = Run.open(tmp_path / "second").config.recipe.sparsity
    assert (sparsity.start_kimg, sparsity.exclusive) == (0, 1)
    assert "other images" not in second.err
    assert read_json(tmp_path / "second" / "run.json")["from"]
    fewer = problems.save_images(tmp_path / "fewer", count=10)
    others = stylex(*again, "--data", fewer, "--out", tmp_path / "third")
    assert others.code == 0
    (said,) = (line for line in others.err.splitlines() if "other images" in line)
    assert said.startswith(f"{fewer}: other images than {run} was trained with")
    for verb in (["attfind", run, "--images", "2", "--set=unstable_threshold=null"], ["evaluate", run]):
        shown = stylex(*verb, *CPU)
        assert shown.code == 0
        assert "old" in shown.out


def test_a_run_goes_on_with_what_it_was_started_with(stylex: Any, home: Path, tmp_path: Path) -> None:
    """The same command continues; other images, another classifier or other settings are refused."""
    run, classifier = tmp_path / "run", tmp_path / "classifier.safetensors"
    shutil.copy(home / "run" / "classifier.safetensors", classifier)
    shutil.copytree(home / "images", tmp_path / "images")
    settings = [f"--set={text}" for text in (*training_problems.TINY, "loss.perceptual_network=classifier")]
    command = ["train", "--out", run, "--data", tmp_path / "images", "--classifier", classifier]
    command += ["--size", "16", "--seed", "3", *settings]
    assert stylex(*command, *CPU).code == 0
    assert set(Run.open(run).hashes) == {"data", "classifier"}

    def kept() -> dict[Path, bytes]:
        files = [file for file in run.rglob("*") if file.is_file()]
        return {file: file.read_bytes() for file in files}

    before = kept()
    assert stylex(*command, *CPU).code == 0
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    assert stylex("train", "--out", run, "--data", tmp_path / "moved", *CPU).code == 0

    other = load(classifier)
    with torch.no_grad():
        next(other.network.parameters()).mul_(1.5)
    other.save(tmp_path / "other.safetensors")
    bad = stylex("train", "--out", run, "--classifier", tmp_path / "other.safetensors", *CPU)
    assert (bad.code, "started with another classifier" in bad.line) == (1, True)
    problems.save_images(tmp_path / "fewer", count=7)
    bad = stylex("train", "--out", run, "--data", tmp_path / "fewer", *CPU)
    assert (bad.code, "started with other images" in bad.line) == (1, True)
    for options, message in (
        (["--seed", "4"], "seed 3, not 4"),
        (["--size", "32"], "resolution 16, not 32"),
        (["--set", "training.total_kimg=1"], "recipe.training.total_kimg 0.04, not 1"),
        (["--recipe", "study"], "recipe.name 'fast', not 'study'"),
        (["--group", "person"], "group None, not 'person'"),
    ):
        bad = stylex("train", "--out", run, *options, *CPU)
        assert (bad.code, message in bad.line) == (2, True), bad.err
    assert kept() == before

    other.save(classifier)
    bad = stylex(*command, *CPU)
    assert (bad.code, "started with another classifier" in bad.line) == (1, True)
    classifier.unlink()
    assert stylex(*command, *CPU).code == 0
    assert kept() == before


def test_a_run_with_an_origin_goes_on_as_it_began(stylex: Any, home: Path, tmp_path: Path) -> None:
    """With --recipe too, and where what an origin lets begin at once began later; --set asks for more."""
    recipe = changed(Run.open(home / "run").config.recipe, {"sparsity.start_kimg": 0.03})
    (tmp_path / "mine.yaml").write_text(dump_yaml(recipe))
    run, classifier = tmp_path / "run", home / "run" / "classifier.safetensors"
    command = ["train", "--from", home / "run", "--recipe", tmp_path / "mine.yaml", "--out", run]
    command += ["--classifier", classifier, *CPU]
    assert stylex(*command, "--set", "sparsity.start_kimg=0.03").code == 0
    again = stylex(*command)
    assert again.code == 0, again.err
    assert Run.open(run).config.recipe.sparsity.start_kimg == 0.03
    other = stylex("train", "--from", run, "--out", run, *CPU)
    assert (other.code, f"was started with --from {home / 'run'}" in other.line) == (1, True), other.err
    bad = stylex(*command, "--set", "sparsity.start_kimg=0")
    assert (bad.code, "sparsity.start_kimg 0.03, not 0" in bad.line) == (2, True), bad.err


def test_the_commands_of_a_report_make_the_same_run(stylex: Any, tmp_path: Path) -> None:
    """Read back what the report says and compare the settings that come out."""
    assignments = ["training.total_kimg=3", "loss.perceptual_network=none", "training.schedule=[encode]"]
    assignments += ["network.encoder_hidden=null", "training.betas=[0.5, 0.9]", "description='a: b'"]
    own = load_recipe("study", [*assignments, "name=mine"])
    for recipe in (load_recipe("fast"), load_recipe("study", assignments), own):
        config = RunConfig(
            experiment="x",
            data="my faces",
            classifier="m:f",
            group="who",
            resolution=32,
            seed=7,
            recipe=recipe,
        )
        search = AttFindSettings(images_per_class=3, method="removal", unstable_threshold=None, count=4)
        run = Run(tmp_path / "the run", config)
        train, attfind, evaluate, report = commands(run, search, Amounts(attributes=3)).splitlines()
        assert shlex.split(evaluate) == ["stylex", "evaluate", "the run"]
        assert shlex.split(report) == ["stylex", "report", "the run", "--attributes", "3"]
        found = options(train)
        again = load_recipe(found.pop("--recipe")[0], found.pop("--set", []))
        assert again == recipe
        assert found == {
            "--data": ["my faces"],
            "--classifier": ["m:f"],
            "--size": ["32"],
            "--seed": ["7"],
            "--group": ["who"],
            "--out": ["the run"],
        }
        assert "--one-vs-one" not in attfind
        assert commands(run, search, one_vs_one=True).splitlines()[1] == f"{attfind} --one-vs-one"
        found = options(attfind)
        assert (found["--images"], found["--method"]) == (["3"], ["removal"])
        said = override({"images_per_class": 3, "method": "removal"}, found["--set"])
        assert AttFindSettings.model_validate(said) == search


def options(command: str) -> dict[str, list[str]]:
    """Values by option."""
    words = shlex.split(command)
    found: dict[str, list[str]] = {}
    for option, value in itertools.pairwise(words):
        if option.startswith("--"):
            found.setdefault(option, []).append(value)
    return found


def balance(path: Path, faces: Path) -> None:
    from stylex.data import load_dataset
    from stylex.model import load_model

    run = Run.open(path)
    model = load_model(run, training_problems.HARDWARE)
    images = load_dataset(faces, size=16, labelled=False)
    head = model.classifier.network.head
    for _ in range(3):
        pool = images.discovery.batch(slice(0, 32))
        logits = model.classify(model.synthesise(model.styles(model.encode(pool)[0])))
        head.bias.data[1] -= (logits[:, 1] - logits[:, 0]).median()
    keep_classifier(run, model.classifier)


def keep_classifier(run: Run, classifier: Classifier) -> None:
    """Put a changed classifier into a run, as the one that its model was trained around."""
    classifier.save(run.classifier_file)
    tensors, header = read_tensors(run.model_file)
    write_tensors(run.model_file, tensors, header | {"classifier": classifier.fingerprint})


def test_training_ends_by_its_own_handler(stylex: Any, home: Path, tmp_path: Path) -> None:
    """SIGTERM during training writes a checkpoint of the step that it reached, and the run continues."""
    settings = [f"--set={text}" for text in (*training_problems.TINY, "loss.perceptual_network=classifier")]
    arguments = ["train", "--data", str(home / "images"), "--out", str(tmp_path / "new"), "--size", "16"]
    arguments += ["--classifier", str(home / "run" / "classifier.safetensors"), *settings]
    arguments += ["--set", "training.total_kimg=100", "--set", "training.checkpoint_kimg=50", *CPU]
    process = subprocess.Popen(
        [sys.executable, "-m", "stylex", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "new" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=60)
    outcome = Outcome(process.returncode, out, err)
    assert outcome.code == 143, err
    assert "checkpoint written" in outcome.line
    assert Run.open(tmp_path / "new").newest_checkpoint() is not None
