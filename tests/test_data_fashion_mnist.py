"""Fashion-MNIST from idx files, compressed or not, in Debian's and in torchvision's places."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stylex.data import fashion_mnist, load_dataset, split_of
from stylex.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write(folder: Path, *, compressed: bool) -> dict[str, npt.NDArray[np.uint8]]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for part, prefix, count in (("train", "train", 90), ("test", "t10k", 20)):
        images[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3-ubyte", images[part]), ("labels-idx1-ubyte", labels)):
            data = _idx(array)
            file = folder / f"{prefix}-{kind}{'.gz' if compressed else ''}"
            file.write_bytes(gzip.compress(data) if compressed else data)
    return images


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_official_test_set_and_discovery_from_training(tmp_path: Path, compressed: bool, below: str) -> None:
    images = _write(tmp_path / "data" / below, compressed=compressed)
    data = load_dataset(f"fashion-mnist:{tmp_path / 'data'}")
    assert data.class_names is not None
    assert (data.size, data.class_names[9], len(data.test)) == (32, "Ankle boot", 20)
    assert len(data.training) + len(data.discovery) == 90
    assert len(data.discovery) > 0
    assert all(split_of(name, ("test",)) == "discovery" for name in data.discovery.names)
    for split in (data.training, data.discovery, data.test):
        assert split.labels is not None
        for name, label, pixels in zip(split.names, split.labels, split.images, strict=True):
            part, number = name.split("/")
            assert label == int(number) % 10
            assert np.array_equal(pixels[2:30, 2:30, 1], images[part][int(number)])
            assert not pixels[:2].any()
    assert load_dataset(f"fashion-mnist:{tmp_path / 'data'}", size=16).test.images.shape == (20, 16, 16, 3)


def test_debian_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "debian", compressed=True)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    assert len(load_dataset("fashion-mnist").test) == 20
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    with pytest.raises(DataError, match="install Debian's package dataset-fashion-mnist"):
        load_dataset("fashion-mnist")
    with pytest.raises(DataError, match="leave the group out"):
        load_dataset("fashion-mnist", group="x")


def test_damaged_files_get_one_clear_line(tmp_path: Path) -> None:
    _write(tmp_path / "data", compressed=False)
    file = tmp_path / "data" / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    source = f"fashion-mnist:{tmp_path / 'data'}"
    file.write_bytes(whole[:-5])
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte: truncated \(70555 values, 70560 expected\)"
    ):
        load_dataset(source)
    file.write_bytes(b"<html>")
    with pytest.raises(DataError, match="not an idx file of 3-dimensional bytes"):
        load_dataset(source)
    file.write_bytes(_idx(np.zeros((89, 28, 28), np.uint8)))
    with pytest.raises(DataError, match="89 images, but there are 90 labels"):
        load_dataset(source)
    file.write_bytes(_idx(np.zeros((90, 8, 8), np.uint8)))
    with pytest.raises(DataError, match="28 × 28 expected"):
        load_dataset(source)
    file.unlink()
    Path(f"{file}.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(source)
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.full(20, 10, np.uint8)))
    with pytest.raises(DataError, match="label 10, but Fashion-MNIST has 10 classes"):
        load_dataset(source)
