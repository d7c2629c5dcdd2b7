"""Sweeps over many images: shards, records, resumption, several processes, bounded memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import problems
import training_problems
from stylex.attfind import class_effects, find_attributes, measuring, search
from stylex.attfind.batches import BatchChoice
from stylex.attfind.class_effects import ClassEffects, effects_of
from stylex.attfind.pairs import find_pairs
from stylex.attfind.shards import Record, Shards
from stylex.cli.app import main
from stylex.cli.sweeping import SweepView, sweep_view
from stylex.errors import RunError
from stylex.run import Run, read_tensors

SETTINGS = problems.everything(images_per_class=4)


def shards(folder: Path, images: int = 10, stored: Any = "fp32", key: str = "k") -> Shards:
    before = torch.arange(2.0 * images).reshape(images, 2)
    return Shards(folder, key, before, 3, stored)


def filled(folder: Path, stored: Any = "fp32") -> tuple[Shards, torch.Tensor]:
    kept = shards(folder, stored=stored)
    torch.manual_seed(0)
    logits = kept.before[:, None, None] + torch.randn(10, 2, 3, 2)
    for number in range(len(kept)):
        block = kept.images(number)
        kept.write(number, logits[block.start : block.stop])
    return kept, logits


def test_shards_read_as_one_array(tmp_path: Path) -> None:
    kept, logits = filled(tmp_path)
    assert kept.shape == (10, 2, 3, 2)
    assert [list(kept.images(number)) for number in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for block in (slice(0, 10), slice(3, 9), slice(4, 4), slice(9, None), slice(2, 3)):
        assert np.array_equal(kept[block], logits[block].numpy())


def test_half_precision_keeps_the_effects(tmp_path: Path) -> None:
    whole, logits = filled(tmp_path / "fp32")
    half, _ = filled(tmp_path / "fp16", "fp16")
    before = whole.before[:, None, None]
    change = logits - before
    error = (torch.from_numpy(half[:]) - before - change).abs()
    assert (error <= change.abs() * 2**-10 + 1e-5).all()
    assert half.file(0).stat().st_size < whole.file(0).stat().st_size
    with pytest.raises(RunError, match="stored=fp32"):
        half.write(0, logits[:4] + 1e6)


def test_what_is_damaged_or_of_another_sweep_is_missing(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path)
    assert kept.missing() == []
    assert shards(tmp_path, key="other").missing() == [0, 1, 2]
    assert shards(tmp_path, images=9).missing() == [2], "the last one holds another number of images"
    assert shards(tmp_path, stored="fp16").missing() == [0, 1, 2]
    content = kept.file(1).read_bytes()
    kept.file(1).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert kept.missing() == [1]
    with pytest.raises(RunError, match="damaged"):
        kept[3:6]
    assert kept[0:4].shape[0] == 4


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return training_problems.make_run(tmp_path / "run", "fast")


def pictures(count: int = 24) -> Any:
    from stylex.data.images import ImageSet

    pixels = np.random.default_rng(0).integers(100, 156, (count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(pixels, tuple(f"{i}.png" for i in range(count)), None, None, {})


def contents(run: Run) -> dict[str, bytes]:
    files = [*(run.path / "effects").glob("shard-*"), run.path / "styles.safetensors"]
    return {file.name: file.read_bytes() for file in [*files, run.path / "attributes.json"]}


def test_a_search_goes_on_with_the_recorded_batch(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = iter([5, 5, 64])
    monkeypatch.setattr(
        measuring, "choose_batch", lambda *_, **__: BatchChoice(next(choices), "probed", 7, 9)
    )
    whole = training_problems.make_run(tmp_path / "whole", "fast")
    search(whole, problems.linear_model(), pictures(), SETTINGS)

    def kill(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(run, problems.linear_model(), pictures(), SETTINGS, kill)
    assert Record(run.path / "effects").read()["batch_size"] == 5
    search(run, problems.linear_model(), pictures(), SETTINGS)
    assert contents(run) == contents(whole)
    record = Record(run.path / "effects").read()
    assert record["batch_size"] == 5, "nobody probed again"
    assert {"threads", "precision", "device", "memory_limit", "bytes_per_image"} <= set(record)
    search(run, problems.linear_model(), pictures(), problems.everything(images_per_class=4, batch_size=3))
    assert Record(run.path / "effects").read()["batch_size"] == 3, "another batch is another sweep"


def test_a_search_goes_on_with_the_recorded_threads(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    search(run, problems.linear_model(), pictures(), SETTINGS)
    record = Record(run.path / "effects")
    assert record.read()["threads"] == 1
    before = contents(run)
    sorted((run.path / "effects").glob("shard-*"))[-1].unlink()
    record.write(record.read() | {"threads": 2})
    seen: list[int] = []
    search(
        run,
        problems.linear_model(),
        pictures(),
        SETTINGS,
        on_changes=lambda count: seen.append(torch.get_num_threads()),
    )
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1, "afterwards all is as it was"
    assert "2 CPU threads" in caplog.text
    assert contents(run) == before


def test_a_record_keeps_what_was_known_of_its_key(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.write({"key": "k", "first_order_images": 4})
    record.write({"key": "k", "batch_size": 5, "threads": 2})
    record.write({"key": "k", "first_order_images": 8})
    assert record.read() == {"key": "k", "first_order_images": 8, "batch_size": 5, "threads": 2}
    record.write({"key": "other", "threads": 1})
    assert record.read() == {"key": "other", "threads": 1}


def test_a_damaged_record_is_another_sweep(run: Run) -> None:
    search(run, problems.linear_model(), pictures(), SETTINGS)
    (run.path / "effects" / "sweep.json").write_text("[]")
    seen: list[int] = []
    search(run, problems.linear_model(), pictures(), SETTINGS, lambda done, total: seen.append(done))
    assert seen == list(range(1, 9))


def logits_of(images: int, coordinates: int, classes: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(0)
    before = random.normal(size=(images, classes)).astype(np.float32)
    after = before[:, None, None] + random.normal(size=(images, 2, coordinates, classes)).astype(np.float32)
    rows = torch.randn(2, training_problems_space().style_size)
    from stylex.stylespace import StyleSpace

    return before, after.astype(np.float32), StyleSpace.from_styles(training_problems_space().layout, rows)


def training_problems_space() -> Any:
    from stylex.networks import Synthesis

    return Synthesis(8, {4: 8, 8: 8})


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("method", ["subset", "independent", "removal"])
def test_effects_in_a_file_give_what_effects_in_memory_give(
    classes: int, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, after, space = logits_of(30, 24, classes)
    names = [f"c{number}" for number in range(classes)]
    settings = problems.everything(method=method, unstable_threshold=2.0, unstable_max_share=0.3)
    expected = find_attributes(before, after, space, names, settings)
    whole = effects_of(before, after, settings, "softmax")
    monkeypatch.setattr(class_effects, "MEMORY_BYTES", 0)
    monkeypatch.setattr(class_effects, "BLOCK_ENTRIES", 7 * after[0].size)
    assert find_attributes(before, after, space, names, settings) == expected
    with class_effects.class_effects(before, after, settings, "softmax", tmp_path) as found:
        assert isinstance(found, ClassEffects)
        assert np.array_equal(found[:], whole)
        assert np.array_equal(found[3:9, 1, 2, 1], whole[3:9, 1, 2, 1])
    assert list(tmp_path.iterdir()) == []


class Synthetic:
    """Logits of any number of images, made when they are read: nothing of them is held."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape

    def __getitem__(self, block: slice) -> Any:
        start, stop, _ = block.indices(self.shape[0])
        parts = []
        for image in range(start, stop):
            random = np.random.default_rng(image)
            parts.append(random.normal(scale=0.01, size=self.shape[1:]).astype(np.float32))
            parts[-1][1, 5, image % self.shape[3]] += 3
        return np.stack(parts)


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The arrays of one class of one block, and rows an image; 8 times the images do not take twice that."""
    monkeypatch.setattr(class_effects, "MEMORY_BYTES", 0)
    monkeypatch.setattr(class_effects, "BLOCK_ENTRIES", 1 << 16)
    monkeypatch.setattr("stylex.attfind.selection._BLOCK_ENTRIES", 1 << 16)
    _, _, space = logits_of(1, 24, 2)
    peaks = []
    for images in (100, 800):
        after = Synthetic((images, 2, 24, 40))
        before = np.zeros((images, 40), np.float32)
        before[np.arange(images), (np.arange(images) + 1) % 40] = 0.05
        settings = problems.everything(count=2)
        tracemalloc.start()
        found = find_attributes(before, after, space, [str(number) for number in range(40)], settings)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert all(entries[0].change == (1, 5) for entries in found.attributes.values())
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_memory_of_pairs_does_not_grow_with_the_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whose effects lie in a file; what is found is what is found in memory."""
    _, _, space = logits_of(1, 24, 2)
    monkeypatch.setattr(class_effects, "BLOCK_ENTRIES", 1 << 14)
    monkeypatch.setattr("stylex.attfind.selection._BLOCK_ENTRIES", 1 << 14)
    settings = problems.everything(count=2)
    names = [str(number) for number in range(8)]

    def found(images: int) -> Any:
        after = Synthetic((images, 2, 24, 8))
        before = np.zeros((images, 8), np.float32)
        before[np.arange(images), np.arange(images) // 8 % 2] = 0.05
        return find_pairs(before, after, space, names, settings, folder=tmp_path)

    whole = found(200)
    assert set(whole) == {(source, target) for source in "01" for target in names if source != target}
    assert all(entries[0].change == (1, 5) and entries[0].flipped > 0 for entries in whole.values())
    monkeypatch.setattr(class_effects, "MEMORY_BYTES", 0)
    peaks = []
    for images in (200, 1600):
        tracemalloc.start()
        pairs = found(images)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        if images == 200:
            assert pairs == whole
    assert peaks[1] < 1.6 * peaks[0], peaks
    assert list(tmp_path.iterdir()) == []


def test_the_display_counts_only_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0}
    monkeypatch.setattr("stylex.cli.sweeping.time.monotonic", lambda: clock["now"])
    with sweep_view(50) as view:
        assert isinstance(view, SweepView)
        assert view.about() == ""
        clock["now"] = 160.0
        view.on_progress(4, 10)
        assert view.about() == "image 4/10", "recorded images tell nothing of the speed"
        clock["now"] = 161.0
        view.on_changes(50)
        assert view.rate == pytest.approx(25)
        clock["now"] = 162.0
        view.on_changes(50)
        view.on_progress(5, 10)
        assert view.about() == "image 5/10, 25 coordinates/s, time left 0:00:10"
        for image in (6, 7):  # of a screened search's later stage: a fifth of the changes
            clock["now"] += 1.0
            view.on_changes(20)
            view.on_progress(image, 10)
        assert view.about() == "image 7/10, 18 coordinates/s, time left 0:00:04"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a maker of runs of one tiny model."""
    path = tmp_path_factory.mktemp("home")
    problems.save_images(path / "images", 40)
    return path


def make(home: Path, name: str) -> Path:
    problems.save_tiny_run(home / name, problems.tiny_model(), str(home / "images"))
    return home / name


CPU = ("--device", "cpu", "--precision", "fp32", "--threads", "1")


def start(run: Path, *more: str, processes: int = 1) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "stylex", "attfind", str(run)]
    return subprocess.Popen(
        [*command, *CPU, "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    shown, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    found: dict[str, Any] = json.loads(shown)
    return found


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return {file.name: read_tensors(file)[0]["logits"] for file in (run / "effects").glob("shard-*")}


def searched(capfd: pytest.CaptureFixture[str], run: Path, *more: str) -> dict[str, Any]:
    """What the same command prints, run to its end in this process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["attfind", str(run), *CPU, "--json", *more])
    for number, handler in kept.items():
        signal.signal(number, handler)
    shown, said = capfd.readouterr()
    assert not ended.value.code, said[-3000:]
    found: dict[str, Any] = json.loads(shown)
    return found


def test_a_killed_search_and_two_processes_end_with_the_bytes_of_one(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = make(home, "killed")
    process = start(killed, "--images", "12")
    deadline = time.monotonic() + 120
    while not list((killed / "effects").glob("shard-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {file: file.stat().st_mtime_ns for file in (killed / "effects").glob("shard-*")}
    assert 0 < len(kept) < 6, "it was killed in the middle"
    batch = Record(killed / "effects").read()["batch_size"]
    found = searched(capfd, killed, "--images", "12")
    assert all(file.stat().st_mtime_ns == at for file, at in kept.items())

    one, two = make(home, "one"), make(home, "two")
    whole = searched(capfd, one, "--images", "12", "--batch-size", str(batch))
    shared = finished(start(two, "--images", "12", "--batch-size", str(batch), processes=2))
    expected = tensors(one)
    assert len(expected) == 6
    for other in (killed, two):
        assert tensors(other).keys() == expected.keys()
        assert all(torch.equal(logits, expected[name]) for name, logits in tensors(other).items())
    assert shared["attributes"] == whole["attributes"] == found["attributes"]
    files = [sorted((run / "effects").glob("shard-*")) for run in (one, two)]
    assert [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]
    assert Record(two / "effects").read()["processes"] == 2
