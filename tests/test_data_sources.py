"""Folders and tables → three sets; bad files; the cache."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylex.data import ImageSet, load_dataset, split_of
from stylex.data import cache as cache_module
from stylex.data.cache import cache_folder
from stylex.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _save(path: Path, size: tuple[int, int] = (16, 16), seed: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = seed if seed is not None else int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _folder(root: Path, count: int = 40, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for i in range(count):
        _save(root / classes[i % len(classes)] / f"{i}.png")
    return root


def _all(data: object) -> list[ImageSet]:
    return [getattr(data, split) for split in ("training", "discovery", "test")]


def test_class_folders(tmp_path: Path) -> None:
    data = load_dataset(_folder(tmp_path / "pets"))
    assert (data.name, data.size, data.class_names, data.skipped) == ("pets", 16, ("cat", "dog"), ())
    assert sum(len(s) for s in _all(data)) == 40
    for split, images in zip(("training", "discovery", "test"), _all(data), strict=True):
        assert images.labels is not None
        for name, label, pixels in zip(images.names, images.labels, images.images, strict=True):
            assert split_of(name) == split
            assert name.split("/")[0] == ("cat", "dog")[label]
            assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "pets" / name)))


def test_no_classes_any_size_hidden_files_and_deep_folders(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", (30, 20))
    _save(tmp_path / "b.jpg", (9, 50))
    (tmp_path / ".DS_Store").write_text("junk")
    data = load_dataset(tmp_path, size=8)
    assert data.class_names is None
    assert data.training.labels is None
    assert sorted(n for s in _all(data) for n in s.names) == ["a.png", "b.jpg"]
    assert data.skipped == ()
    _save(tmp_path / "x" / "y" / "c.png")
    with pytest.raises(DataError, match=r"a\.png lies beside class folders"):
        load_dataset(tmp_path, size=8)
    unlabelled = load_dataset(tmp_path, size=8, labelled=False)
    assert sorted(n for s in _all(unlabelled) for n in s.names) == ["a.png", "b.jpg", "x/y/c.png"]


def test_official_folders(tmp_path: Path) -> None:
    for i in range(60):
        _save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    _save(tmp_path / "test" / "a" / "t.png")
    data = load_dataset(tmp_path)
    assert data.test.names == ("test/a/t.png",)
    assert data.class_names == ("a", "b")
    assert 0 < len(data.discovery) < 20
    assert all(split_of(n, ("test",)) == "discovery" for n in data.discovery.names)
    _save(tmp_path / "discovery" / "b" / "d.png")
    data = load_dataset(tmp_path)
    assert data.discovery.names == ("discovery/b/d.png",)
    assert len(data.training) == 60


def test_adding_images_moves_none(tmp_path: Path) -> None:
    before = load_dataset(_folder(tmp_path))
    after = load_dataset(_folder(tmp_path, 80))
    for old, new in zip(_all(before), _all(after), strict=True):
        assert set(old.names) <= set(new.names)
    assert before.fingerprint != after.fingerprint


def test_bad_files_are_named_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _folder(tmp_path, 30)
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(whole[:200])
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="stylex"):
            data = load_dataset(tmp_path, size=16)
        assert sorted(data.skipped) == ["cat/cut.png", "dog/notes.txt"]
        assert sum(len(s) for s in _all(data)) == 30
        assert "2 of 32 files cannot be read" in caplog.text
        assert "notes.txt: cannot be read as an image (not an image)" in caplog.text
    for images in _all(data):  # what stands after a skipped file is still in its place
        for name, pixels in zip(images.names, images.images, strict=True):
            assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / name)))
    for i in range(2):
        (tmp_path / "cat" / f"more{i}.jpg").write_text("no")
    with pytest.raises(DataError, match=r"4 of 34 files cannot be read, more than a tenth") as caught:
        load_dataset(tmp_path, size=16)
    assert "\n" not in str(caught.value)


def test_exactly_a_tenth_may_be_bad(tmp_path: Path) -> None:
    for i in range(9):
        _save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no")
    assert load_dataset(tmp_path).skipped == ("bad.png",)


@pytest.mark.parametrize("size", [0, 2, 48, 100, 2048, -64])
def test_sizes_that_are_no_power_of_two(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=f"must be a power of two from 4 to 1024, such as 64; not {size}"):
        load_dataset(_folder(tmp_path, 2), size=size)


def test_bad_sources_get_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or table"):
        load_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no image"):
        load_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="not a single file"):
        load_dataset(tmp_path / "a.txt")
    with pytest.raises(DataError, match="none of the 1 files is an image"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="needs a table"):
        load_dataset(tmp_path, group="patient")
    _save(tmp_path / "mixed" / "a.png", (16, 16))
    _save(tmp_path / "mixed" / "b.png", (32, 32))
    with pytest.raises(
        DataError, match=r"differ in size, 16×16 \(a.png\) and 32×32 \(b.png\): say which size"
    ):
        load_dataset(tmp_path / "mixed")
    _save(tmp_path / "odd" / "a.png", (24, 24))
    with pytest.raises(DataError, match="power of two"):
        load_dataset(tmp_path / "odd")
    _save(tmp_path / "flat" / "a.png", (32, 16))
    with pytest.raises(DataError, match="32×16: say which size"):
        load_dataset(tmp_path / "flat")


def test_tables(tmp_path: Path) -> None:
    rows = ["file,label,patient,site"]
    for i in range(60):
        _save(tmp_path / "images" / f"{i}.png")
        rows.append(f"images/{i}.png,{'sick' if i % 3 else 'well'},p{i % 20},s{i % 2}")
    table = tmp_path / "scans.csv"
    table.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    data = load_dataset(table, group="patient")
    assert (data.name, data.class_names) == ("scans", ("sick", "well"))
    patients = [set(s.factors["patient"]) for s in _all(data)]
    assert sum(map(len, patients)) == 20
    for images in _all(data):
        assert set(images.factors) == {"patient", "site"}
        assert images.labels is not None
        for k, name in enumerate(images.names):
            number = int(Path(name).stem)
            assert images.labels[k] == (0 if number % 3 else 1)
            assert images.factors["site"][k] == f"s{number % 2}"
    by_name = load_dataset(table)
    assert [s.names for s in _all(by_name)] != [s.names for s in _all(data)]
    assert by_name.fingerprint != data.fingerprint
    assert load_dataset(table, labelled=False).training.labels is None


def test_table_with_its_own_sets_and_a_missing_file(tmp_path: Path) -> None:
    rows = ["path,split"]
    for i in range(20):
        _save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{('train', 'val', 'test')[i % 3]}")
    rows.append("gone.png,train")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    data = load_dataset(tmp_path / "t.csv")
    assert [len(s) for s in _all(data)] == [7, 7, 6]
    assert data.skipped == ("gone.png",)
    assert data.training.factors == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row below its header"),
        ("file\n", "no row below its header"),
        ("name,label\na.png,x\n", "no column says which file"),
        ("file,path\na.png,a.png\n", "file and path mean the same"),
        ("file,file\na.png,a.png\n", "two columns have the same name"),
        ("file,label\na.png\n", "line 2: 1 values under 2 columns"),
        ("file,label\na.png,x\na.png,y\n", "a.png is named 2 times"),
        ("file,label\na.png,\n", "row 1: nothing stands under 'label'"),
        ("file,split\na.png,left\n", "never says training"),
        ('file\n"a.png', "not a readable CSV"),
    ],
)
def test_bad_tables_get_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path / "t.csv", size=8)
    assert str(tmp_path / "t.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_group_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,site\na.png,1\n")
    with pytest.raises(DataError, match="no column is called 'patient' to group by; there are file, site"):
        load_dataset(tmp_path / "t.csv", size=8, group="patient")


def test_batch_is_float_in_channels_last(tmp_path: Path) -> None:
    data = load_dataset(_folder(tmp_path))
    batch = data.training.batch([3, 0, 3])
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = torch.tensor(data.training.images[[3, 0, 3]].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(batch, expected)
    black_and_white = np.zeros((1, 4, 4, 3), np.uint8)
    black_and_white[:, :2] = 255
    extreme = ImageSet(black_and_white, ("a",), None, None, {}).batch([0])
    assert (extreme.min().item(), extreme.max().item()) == (-1.0, 1.0)
    assert torch.equal(data.training.batch(slice(0, 2)), data.training.batch([0, 1]))
    assert data.training.batch([]).shape == (0, 3, 16, 16)
    batch.zero_()  # an own tensor: the source is read-only and stays as it is
    assert data.training.images[3].any()


def test_select_keeps_everything_together(tmp_path: Path) -> None:
    images = load_dataset(_folder(tmp_path)).training
    for indices in ([4, 1], np.array([4, 1]), slice(1, 4)):
        chosen = images.select(indices)
        order = np.arange(len(images))[indices]
        assert chosen.names == tuple(images.names[i] for i in order)
        assert images.labels is not None
        assert chosen.labels is not None
        assert chosen.labels.tolist() == images.labels[order].tolist()
        assert np.array_equal(chosen.images, images.images[order])
        assert chosen.class_names == images.class_names


def test_cache_is_used_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path)
    first = load_dataset(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "_decode", lambda *_: pytest.fail("decoded although nothing changed"))
        again = load_dataset(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.training.images, first.training.images)
    assert not again.training.images.flags.writeable
    _save(tmp_path / first.training.names[0], seed=12345)
    changed = load_dataset(tmp_path)
    assert changed.fingerprint != first.fingerprint
    assert not np.array_equal(
        changed.training.images[0], first.training.images[0]
    )  # the old map still stands
    assert len(list(cache_folder().rglob("*.pixels"))) == 1
    assert load_dataset(tmp_path, use_cache=False).fingerprint == changed.fingerprint
    load_dataset(tmp_path, size=8)
    assert len(list(cache_folder().rglob("*.pixels"))) == 2


def test_damaged_cache_is_decoded_again(tmp_path: Path) -> None:
    first = load_dataset(_folder(tmp_path))
    (pixels,) = cache_folder().rglob("*.pixels")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert load_dataset(tmp_path).fingerprint == first.fingerprint
    (index,) = cache_folder().rglob("*.json")
    index.write_text("{")
    assert load_dataset(tmp_path).fingerprint == first.fingerprint


def test_full_disk_means_memory_not_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    _folder(tmp_path)
    monkeypatch.setattr("os.fsync", no_space)
    data = load_dataset(tmp_path)
    assert "they stay in memory" in caplog.text
    assert "No space left" in caplog.text
    assert list(cache_folder().rglob("*.tmp")) == []
    monkeypatch.undo()
    assert data.fingerprint == load_dataset(tmp_path, use_cache=False).fingerprint


def test_progress_is_reported(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_dataset(_folder(tmp_path), on_progress=lambda *call: calls.append(call))
    assert calls[-1] == (40, 40)


def test_empty_sets_are_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _save(tmp_path / "a.png")
    data = load_dataset(tmp_path)
    assert sum(len(s) for s in _all(data)) == 1
    assert "leave the discovery set empty" in caplog.text
