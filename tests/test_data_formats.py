"""Images in the formats of other projects: Parquet, torchvision, Hugging Face, DICOM; made square."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylex.cli.app import main
from stylex.data import decode_image, load_dataset
from stylex.data import preview as look
from stylex.data.dicom import open_dicom
from stylex.data.options import split_source
from stylex.errors import DataError, StylexError

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(number: int, width: int = 16, height: int = 16) -> Image.Image:
    pixels = np.full((height, width, 3), (number % 200, 50, 90), np.uint8)
    return Image.fromarray(pixels)


def rows(folder: Path, count: int = 30) -> list[dict[str, Any]]:
    """Files and what a table says of them: two images a patient."""
    found = []
    for number in range(count):
        name = f"{number}.png"
        picture(number).save(folder / name)
        found.append(
            {"img": name, "finding": CLASSES[number % 2], "patient": f"p{number // 2}", "age": 40 + number}
        )
    return found


def write_csv(folder: Path, content: list[dict[str, Any]]) -> Path:
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    return folder / "t.csv"


def write_parquet(folder: Path, content: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), folder / "t.parquet")
    return folder / "t.parquet"


COLUMNS = "file=img,label=finding,group=patient"


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_tables_with_columns_of_their_own_names(write: Any, tmp_path: Path) -> None:
    content = rows(tmp_path)
    data = load_dataset(f"{write(tmp_path, content)}#{COLUMNS}")
    sets = (data.training, data.discovery, data.test)
    assert sum(map(len, sets)) == 30
    assert data.class_names == CLASSES
    patients = [{row["patient"] for row in content if row["img"] in images.names} for images in sets]
    assert sum(map(len, patients)) == 15  # none in two sets
    assert data.training.factors["age"][0] == str(40 + int(data.training.names[0].removesuffix(".png")))


def test_a_csv_and_a_parquet_file_of_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    content = rows(tmp_path)
    one, other = (
        load_dataset(f"{write(tmp_path, content)}#{COLUMNS}") for write in (write_csv, write_parquet)
    )
    assert one.fingerprint == other.fingerprint


def test_a_table_that_names_missing_files(tmp_path: Path) -> None:
    table = write_csv(tmp_path, rows(tmp_path))
    for number in range(20):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"20 of 30 files cannot be read.*remove or replace.*no such file"):
        load_dataset(f"{table}#{COLUMNS}", size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("file=picture", r"no column is called 'picture'; there are img, finding"),
        ("colour=red", "no option 'colour' of images; there are fit, window"),
        ("fit=stretch", "fit"),
        ("window=40", "window"),
        ("window=40:0", "width of a window must be greater than 0"),
        ("fit", "write key=value"),
    ],
)
def test_bad_options(options: str, message: str, tmp_path: Path) -> None:
    table = write_csv(tmp_path, rows(tmp_path, 4))
    with pytest.raises(StylexError, match=message) as caught:
        load_dataset(f"{table}#{options}")
    assert "\n" not in str(caught.value)


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_dataset(tmp_path / "t.parquet")


# -- squares ----------------------------------------------------------------------------------------------


def test_crop_and_pad(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10], pixels[:, 10:30], pixels[:, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    cropped = decode_image(tmp_path / "wide.png", 16)
    assert (cropped[8, 1:-1] == (0, 255, 0)).all()
    padded = decode_image(tmp_path / "wide.png", 16, fit="pad")
    assert padded[8, 0].tolist() == [255, 0, 0]
    assert padded[8, 15].tolist() == [0, 0, 255]
    assert padded[:4].max() == padded[12:].max() == 0


def test_padded_and_cropped_images_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(10):
        picture(150, 40, 20).save(tmp_path / "photos" / f"{number}.png")
    cropped = load_dataset(tmp_path / "photos", size=16)
    padded = load_dataset(f"{tmp_path / 'photos'}#fit=pad", size=16)
    again = load_dataset(tmp_path / "photos", size=16)
    assert padded.training.images[:, 0].max() == 0
    assert cropped.training.images[:, 0].min() > 0
    assert cropped.fingerprint == again.fingerprint != padded.fingerprint
    assert len(list((tmp_path / "cache" / "stylex" / "images").iterdir())) == 2


def test_a_folder_with_a_sharp_sign(tmp_path: Path) -> None:
    (tmp_path / "a#b").mkdir()
    assert split_source(tmp_path / "a#b")[0] == str(tmp_path / "a#b")


def test_explanations_decode_images_as_the_run_did(tmp_path: Path) -> None:
    import problems
    from stylex.explainer import Explainer

    run = problems.save_tiny_run(tmp_path / "run", problems.tiny_model(), "photos#fit=pad")
    picture(150, 40, 20).save(tmp_path / "wide.png")
    explainer = Explainer(run, None, None, None)  # type: ignore[arg-type]
    assert explainer.decode(tmp_path / "wide.png")[0].max() == 0


# -- DICOM ------------------------------------------------------------------------------------------------


def write_dicom(path: Path, values: np.ndarray[Any, Any], **attributes: Any) -> Path:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.astype("<i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def ramp() -> np.ndarray[Any, Any]:
    """Stored values; with slope 2 and intercept −1000 these are −1000, −900 … Hounsfield units."""
    return np.tile(np.arange(16) * 50, (16, 1))


SCALE = {"RescaleSlope": 2, "RescaleIntercept": -1000}


def test_dicom_with_a_window(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "ct.dcm", ramp(), **SCALE)
    units = np.arange(16) * 100 - 1000
    wanted = np.rint(((units + 200) / 800 + 0.5).clip(0, 1) * 255)
    pixels = decode_image(file, 16, window=(-200, 800))
    assert np.abs(pixels[3, :, 0].astype(int) - wanted).max() <= 1
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_dicom_takes_the_files_own_window_or_its_range(tmp_path: Path) -> None:
    own = write_dicom(tmp_path / "a.dcm", ramp(), WindowCenter=[-200, 40], WindowWidth=[800, 400], **SCALE)
    assert np.array_equal(decode_image(own, 16), decode_image(own, 16, window=(-200, 800)))
    plain = decode_image(write_dicom(tmp_path / "b.dcm", ramp(), **SCALE), 16)
    assert (plain.min(), plain.max()) == (0, 255)
    flat = decode_image(write_dicom(tmp_path / "c.dcm", 0 * ramp(), **SCALE), 16)
    assert np.unique(flat).size == 1


def test_dicom_with_white_for_small_values(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "x", ramp(), PhotometricInterpretation="MONOCHROME1", **SCALE)
    shown = np.asarray(open_dicom(file))
    assert shown[0, 0, 0] == 255
    assert shown[0, 15, 0] == 0


def test_a_folder_of_dicom_files(tmp_path: Path) -> None:
    for number in range(12):
        place = tmp_path / "scans" / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        write_dicom(place / f"{number}.dcm", ramp() + number, **SCALE)
    data = load_dataset(f"{tmp_path / 'scans'}#window=-200:800")
    assert (data.size, data.class_names) == (16, CLASSES)
    (tmp_path / "scans" / "cat" / "0.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"nothing")
    assert load_dataset(f"{tmp_path / 'scans'}#window=-200:800", size=16).skipped == ("cat/0.dcm",)


# -- data sets of other packages --------------------------------------------------------------------------


def write_mnist(root: Path, count: int = 20) -> None:
    """MNIST's four files as torchvision keeps them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        )
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


def test_torchvision(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = load_dataset(f"torchvision:MNIST@{tmp_path}", size=32)
    assert len(data.training) + len(data.discovery) == len(data.test) == 20
    assert data.class_names is not None
    assert data.class_names[3] == "3 - three"
    number = int(data.training.names[5].removeprefix("train/"))
    assert data.training.images[5].max() == number
    assert data.training.labels is not None
    assert data.class_names[data.training.labels[5]].startswith(str(number % 10))
    assert look(f"torchvision:MNIST@{tmp_path}").side == 28


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:Nothing@x", "with the name of a data set of torchvision"),
        ("torchvision:MNIST", "write torchvision:NAME@FOLDER"),
        ("torchvision:MNIST@{}", "its files are not there"),
    ],
)
def test_bad_torchvision(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(source.format(tmp_path), size=32)


@pytest.mark.parametrize(
    "held", [("trainval", "test"), ("train", "val", "trainval", "test")], ids=["trainval alone", "train too"]
)
def test_torchvision_with_a_set_called_trainval(
    held: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    class Pets:
        classes = CLASSES

        def __init__(self, root: str, split: str = "trainval") -> None:
            if split not in held:
                raise ValueError(f"Unknown value {split!r} for argument split.")
            self.first = 40 * held.index(split)
            self._labels = [number % 2 for number in range(40)]

        def __len__(self) -> int:
            return 40

        def __getitem__(self, number: int) -> tuple[Image.Image, int]:
            return picture(self.first + number), self._labels[number]

    monkeypatch.setattr(torchvision.datasets, "Pets", Pets, raising=False)
    data = load_dataset(f"torchvision:Pets@{tmp_path}", size=16)
    assert len(data.training) + len(data.discovery) == 40 * (len(held) // 2)
    assert {name.partition("/")[0] for name in data.training.names} == {"train"}
    assert set(data.test.names) == {f"test/{number:06d}" for number in range(40)}
    assert set(data.training.images[:, 0, 0, 0]) <= set(range(40))


def test_torchvision_that_takes_no_set_as_its_split(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"EMNIST@.*: cannot be opened as sets .*byclass.*; write its images"
    ) as caught:
        load_dataset(f"torchvision:EMNIST@{tmp_path}", size=32)
    assert "\n" not in str(caught.value)


def write_hugging_face(folder: Path, *, parts: tuple[str, ...] = ()) -> None:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "patient": datasets.Value("string"),
            "age": datasets.Value("int64"),
        }
    )

    def part(first: int, count: int = 24) -> Any:
        numbers = range(first, first + count)
        content = {
            "image": [picture(number) for number in numbers],
            "label": [number % 2 for number in numbers],
            "patient": [f"p{number // 2}" for number in numbers],
            "age": [40 + number for number in numbers],
        }
        return datasets.Dataset.from_dict(content, features=features)

    if parts:
        whole = datasets.DatasetDict({name: part(40 * number) for number, name in enumerate(parts)})
        whole.save_to_disk(str(folder))
    else:
        part(0).save_to_disk(str(folder))


def test_hugging_face(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "hf")
    data = load_dataset(f"{tmp_path / 'hf'}#group=patient")
    assert (data.size, data.class_names) == (16, CLASSES)
    assert len(data.training) + len(data.discovery) + len(data.test) == 24
    number = int(data.training.names[4])
    assert data.training.images[4, 0, 0].tolist() == [number, 50, 90]
    assert data.training.labels is not None
    assert data.training.labels[4] == number % 2
    assert data.training.factors["age"][4] == str(40 + number)


def test_hugging_face_keeps_its_own_sets(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "hf", parts=("train", "validation", "test"))
    data = load_dataset(tmp_path / "hf")
    assert [len(images) for images in (data.training, data.discovery, data.test)] == [24, 24, 24]
    with pytest.raises(DataError, match="no column is called 'picture'"):
        load_dataset(f"{tmp_path / 'hf'}#image=picture")
    with pytest.raises(DataError, match="no column is called 'clinic' to group by"):
        load_dataset(tmp_path / "hf", group="clinic")


# -- the loader -------------------------------------------------------------------------------------------


def test_the_loader_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(10):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "loader", str(tmp_path / "photos"), "--size", "16", "--seconds", "0.2", "--json"])
    assert not ended.value.code
    found = json.loads(capfd.readouterr().out)
    assert (found["images"], found["size"]) == (10, 16)
    assert found["loaded_per_second"] > 1000
    assert found["megabytes"] == 10 * 16 * 16 * 3 / 1e6
