"""Packed runs and demonstrations: nothing is overwritten, nothing half-made opens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import problems
from stylex import demo
from stylex.data import load_dataset
from stylex.demo import MARK, held_demo, prepare_demo
from stylex.errors import RunError
from stylex.explainer import load_images
from stylex.packing import pack
from stylex.run import Run, read_json, write_json


@pytest.fixture
def run(tmp_path: Path) -> Run:
    data = problems.save_images(tmp_path / "data")
    return problems.save_tiny_run(tmp_path / "run", problems.tiny_model(), data=str(data))


def test_packed_images_come_back_in_their_sets(run: Run, tmp_path: Path) -> None:
    data = load_dataset(run.config.data, size=16, labelled=False)
    packed = pack(run, data, tmp_path / "out", training=2, discovery=3, test=4)
    again = load_images(packed)
    assert [len(part) for part in (again.training, again.discovery, again.test)] == [2, 3, 4]
    assert (again.test.images[-1] == data.test.images[-1]).all()


def test_where_the_start_of_a_run_lies_stays_at_home(run: Run, tmp_path: Path) -> None:
    about = read_json(run.path / "run.json")
    write_json(run.path / "run.json", about | {"from": {"run": "/home/me/secret/first", "step": 3}})
    packed = pack(run, load_dataset(run.config.data, size=16, labelled=False), tmp_path / "out", test=1)
    assert read_json(packed.path / "run.json")["from"] == {"run": "first", "step": 3}


def test_what_is_there_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    data = load_dataset(run.config.data, size=16, labelled=False)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(RunError, match="not an empty folder; nothing was overwritten"):
            pack(run, data, tmp_path / name)


def test_a_packing_that_was_cut_off_is_no_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stylex.packing._write_images", kill)
    data = load_dataset(run.config.data, size=16, labelled=False)
    with pytest.raises(KeyboardInterrupt):
        pack(run, data, tmp_path / "out")
    with pytest.raises(RunError, match="half-written"):
        Run.open(tmp_path / "out")


@pytest.fixture
def shipped(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(demo, "demo_folder", lambda: run.path)
    return run


def test_a_demonstration_replaces_an_earlier_one_alone(shipped: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    (shipped.path / "attributes.json").touch()
    first = prepare_demo(out)
    (out / "effects").mkdir()
    (out / "effects" / "shard").touch()
    assert prepare_demo(out).config == first.config
    assert not (out / "effects").exists()
    assert not (out / "attributes.json").exists()
    (out / "attributes.json").write_text("with names that people gave")
    prepare_demo(out)
    assert (out / "attributes.json").read_text() == "with names that people gave"
    (out / "study").mkdir()
    (out / "study" / "answers.sqlite").touch()
    with pytest.raises(RunError, match="answers to a study; nothing was overwritten"):
        prepare_demo(out)
    shutil.rmtree(out / "study")
    (out / MARK).unlink()
    with pytest.raises(RunError, match="no earlier demo; nothing was overwritten"):
        prepare_demo(out)


def test_a_demonstration_at_work_is_not_replaced(shipped: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with held_demo(out) as run:
        (run.path / "half-done").touch()
        with pytest.raises(RunError, match="another process is working"):
            prepare_demo(out)
        assert (out / "half-done").exists()
    prepare_demo(out)
    assert not (out / "half-done").exists()


def test_a_demonstration_behind_a_link(shipped: Run, tmp_path: Path) -> None:
    prepare_demo(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prepare_demo(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_a_demonstration_killed_while_clearing_can_be_replaced(
    shipped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    prepare_demo(out)
    (out / "images").mkdir()

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo.shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            prepare_demo(out)
    prepare_demo(out)
