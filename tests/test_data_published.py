"""AFHQ, FFHQ and CelebA from generated stand-ins in their layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylex.data import load_dataset
from stylex.data.published import CELEBA_BOX, list_celeba, list_ffhq
from stylex.errors import DataError

ATTRIBUTES = ["Male", "Smiling", "Young"]


def save(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def afhq(folder: Path, test: str = "val") -> Path:
    for split, count in (("train", 12), (test, 4)):
        for number, kind in enumerate(("cat", "dog", "wild")):
            for index in range(count):
                save(folder / split / kind / f"{kind}_{index:06d}.jpg", (number * 90, index, 0))
    return folder


def ffhq(folder: Path) -> Path:
    for index in [*range(20), 60_000, 60_001, 69_999]:
        save(
            folder / "thumbnails128x128" / f"{index // 1000 * 1000:05d}" / f"{index:05d}.png",
            (index % 255, 0, 0),
        )
    return folder


def celeba(folder: Path, young: str = "1101011011" * 3, parts: str = "0" * 20 + "1" * 5 + "2" * 5) -> Path:
    rows, partition = [], []
    for index, (is_young, part) in enumerate(zip(young, parts, strict=True), start=1):
        name = f"{index:06d}.jpg"
        save(folder / "img_align_celeba" / name, (index, 0, 0), (178, 218))
        rows.append(f"{name} -1  1 {'1' if is_young == '1' else '-1'}")
        partition.append(f"{name} {part}")
    table = [str(len(rows)), " ".join(ATTRIBUTES), *rows]
    (folder / "list_attr_celeba.txt").write_text("\n".join(table) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


def test_afhq(tmp_path: Path) -> None:
    found = load_dataset(f"afhq:{afhq(tmp_path / 'data' / 'afhq').parent}#cat,dog", size=16, use_cache=False)
    assert found.class_names == ("cat", "dog")
    assert len(found.test) == 8
    assert len(found.training) + len(found.discovery) == 24
    assert set(found.test.labels.tolist()) == {0, 1}  # type: ignore[union-attr]
    version_2 = load_dataset(f"afhq:{afhq(tmp_path / 'two', 'test')}", size=16, use_cache=False)
    assert version_2.class_names == ("cat", "dog", "wild")
    with pytest.raises(DataError, match="no class 'horse'; there are cat, dog, wild"):
        load_dataset(f"afhq:{tmp_path / 'two'}#cat,horse", size=16)
    with pytest.raises(DataError, match="fewer than two classes"):
        load_dataset(f"afhq:{tmp_path / 'two'}#cat", size=16)
    with pytest.raises(DataError, match=r"not AFHQ: .*stargan-v2"):
        load_dataset(f"afhq:{tmp_path / 'nowhere'}", size=16)


def test_ffhq(tmp_path: Path) -> None:
    found = load_dataset(f"ffhq:{ffhq(tmp_path)}", size=16, use_cache=False)
    assert found.class_names is None
    assert [Path(name).stem for name in found.test.names] == ["60000", "60001", "69999"]
    assert len(found.training) + len(found.discovery) == 20
    assert found.test.images[1, 0, 0].tolist() == [60_001 % 255, 0, 0]
    flat = tmp_path / "flat"
    save(flat / "00007.png", (1, 2, 3))
    save(flat / "sample.png", (1, 2, 3))
    assert [entry.name for entry in list_ffhq(flat).entries] == ["00007.png"]
    with pytest.raises(DataError, match=r"not FFHQ: .*ffhq-dataset"):
        load_dataset(f"ffhq:{tmp_path / 'thumbnails128x128' / 'nowhere'}", size=16)
    with pytest.raises(DataError, match="leave '#old' out"):
        load_dataset(f"ffhq:{tmp_path}#old", size=16)
    with pytest.raises(DataError, match="say where it is: ffhq:FOLDER"):
        load_dataset("ffhq", size=16)


def test_celeba(tmp_path: Path) -> None:
    found = load_dataset(f"celeba:{celeba(tmp_path)}", size=16, use_cache=False)
    assert found.class_names == ("old", "young")
    assert (len(found.training), len(found.discovery), len(found.test)) == (20, 5, 5)
    young = ["1101011011"[int(name[:6]) % 10 - 1] == "1" for name in found.training.names]
    assert found.training.labels.tolist() == [int(each) for each in young]  # type: ignore[union-attr]
    smiling = load_dataset(f"celeba:{tmp_path}#Smiling", size=16, use_cache=False)
    assert smiling.class_names == ("not Smiling", "Smiling")
    balanced = load_dataset(f"celeba:{tmp_path}#Young,balanced", size=16, use_cache=False)
    for part in (balanced.training, balanced.discovery, balanced.test):
        counts = np.bincount(part.labels, minlength=2)  # type: ignore[arg-type]
        assert counts[0] == counts[1] > 0
    assert len(balanced.training) == 2 * 6  # six of the first twenty are old
    with pytest.raises(DataError, match="say which size to use"):
        load_dataset(f"celeba:{tmp_path}")


def test_celeba_is_cut_as_ffhq(tmp_path: Path) -> None:
    """White inside the box and black outside: what is left is white; twice the size is cut alike."""
    celeba(tmp_path)
    for index, scale in ((1, 1), (2, 2)):
        picture = Image.new("RGB", (178 * scale, 218 * scale))
        picture.paste((255, 255, 255), tuple(edge * scale for edge in CELEBA_BOX))  # type: ignore[arg-type]
        picture.save(tmp_path / "img_align_celeba" / f"{index:06d}.jpg", quality=100)
    listing = list_celeba(tmp_path)
    entries = {entry.name: entry for entry in listing.entries}
    for index, side in ((1, 153), (2, 306)):
        entry = entries[f"{index:06d}.jpg"]
        assert listing.read(entry, 16).min() > 250
        assert listing.side(entry) == side
    # FFHQ's own rule, from the mean landmarks of aligned CelebA.
    eyes, mouth = np.array([[69.4, 111.2], [107.6, 111.2]]), np.array([88.5, 152.2])
    side = 2 * max(2.0 * 38.2, 1.8 * (mouth[1] - 111.2))
    centre = eyes.mean(axis=0) + 0.1 * (mouth - eyes.mean(axis=0))
    assert CELEBA_BOX[2] - CELEBA_BOX[0] == pytest.approx(side, abs=1)
    middle = [(CELEBA_BOX[0] + CELEBA_BOX[2]) / 2, (CELEBA_BOX[1] + CELEBA_BOX[3]) / 2]
    assert middle == pytest.approx(centre.tolist(), abs=1)


def test_damaged_celeba(tmp_path: Path) -> None:
    celeba(tmp_path)
    with pytest.raises(DataError, match="no attribute 'Hat'; there are Male, Smiling, Young"):
        list_celeba(tmp_path, "Hat")
    with pytest.raises(DataError, match="'balanced' after it or nothing"):
        list_celeba(tmp_path, "Young,half")
    table = tmp_path / "list_attr_celeba.txt"
    text = table.read_text()
    table.write_text(text.replace("000003.jpg -1  1 ", "000003.jpg -1  0 x"))
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt, line 5: not a file and 3"):
        list_celeba(tmp_path)
    table.write_text("\n".join(line for line in text.splitlines() if "000004" not in line))
    with pytest.raises(DataError, match=r"no row for 000004\.jpg"):
        list_celeba(tmp_path)
    table.write_text(text)
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 7\n")
    with pytest.raises(DataError, match="line 1: not a file and 0, 1 or 2"):
        list_celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"not CelebA: .*mmlab"):
        list_celeba(tmp_path)


def test_classes_of_fashion_mnist() -> None:
    from stylex.data.fashion_mnist import DEBIAN_FOLDER
    from stylex.data.published import only_classes
    from stylex.data.sources import list_source

    if not DEBIAN_FOLDER.is_dir():
        with pytest.raises(DataError, match="dataset-fashion-mnist"):
            list_source("fashion-mnist#Shirt,Coat", None, True)
        return
    listing = list_source("fashion-mnist#Shirt,Coat", None, True)
    assert listing.class_names == ("Coat", "Shirt")
    assert {entry.label for entry in listing.entries} == {"Coat", "Shirt"}
    assert only_classes(listing, "", "x") is listing
