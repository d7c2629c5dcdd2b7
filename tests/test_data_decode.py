"""Image files of every mode and shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from stylex.data.decode import UnreadableImageError, decode_image, upright_size

RNG = np.random.default_rng(0)


def _grey(seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)


def _as_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def test_rgb_passes_unchanged_and_black_and_white_grey_become_rgb(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    assert np.array_equal(decode_image(tmp_path / "rgb.png", 16), pixels)
    Image.fromarray(_grey()).save(tmp_path / "l.png")
    assert np.array_equal(decode_image(tmp_path / "l.png", 16), _as_rgb(_grey()))
    Image.fromarray(_grey() > 127).save(tmp_path / "1.png")
    assert np.array_equal(decode_image(tmp_path / "1.png", 16), _as_rgb(np.where(_grey() > 127, 255, 0)))


@pytest.mark.parametrize("end", ["png", "tif"])
def test_16_bit_grey_keeps_its_upper_byte(tmp_path: Path, end: str) -> None:
    deep = _grey().astype(np.uint16) * 257
    picture = Image.fromarray(deep)
    assert picture.mode == "I;16"
    picture.save(tmp_path / f"deep.{end}")
    assert np.array_equal(decode_image(tmp_path / f"deep.{end}", 16), _as_rgb(_grey()))


def test_32_bit_and_float_grey(tmp_path: Path) -> None:
    Image.fromarray(_grey().astype(np.int32) * 257).save(tmp_path / "int.tif")
    assert np.array_equal(decode_image(tmp_path / "int.tif", 16), _as_rgb(_grey()))
    Image.fromarray(_grey().astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert np.array_equal(decode_image(tmp_path / "float.tif", 16), _as_rgb(_grey()))
    Image.fromarray(_grey().astype(np.float32)).save(tmp_path / "unscaled.tif")
    with pytest.raises(UnreadableImageError, match="outside 0 to 1"):
        decode_image(tmp_path / "unscaled.tif", 16)


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:8, :, 3] = 255
    pixels[8:12, :, 3] = 51  # a fifth
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    out = decode_image(tmp_path / "rgba.png", 16)
    assert (out[:8] == (200, 0, 0)).all()
    assert np.abs(out[8:12].astype(int) - (244, 204, 204)).max() <= 1
    assert (out[12:] == 255).all()
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "la.png")
    assert (decode_image(tmp_path / "la.png", 16)[12:] == 255).all()


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.paste(0, (0, 0, 16, 8))
    picture.save(tmp_path / "p.png")
    out = decode_image(tmp_path / "p.png", 16)
    assert (out[:8] == (10, 20, 30)).all()
    assert (out[8:] == (40, 50, 60)).all()
    picture.save(tmp_path / "pt.png", transparency=0)
    out = decode_image(tmp_path / "pt.png", 16)
    assert (out[:8] == 255).all()
    assert (out[8:] == (40, 50, 60)).all()
    picture.save(tmp_path / "p.gif")
    assert (decode_image(tmp_path / "p.gif", 16)[8:] == (40, 50, 60)).all()


def test_cmyk_and_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = decode_image(tmp_path / "cmyk.jpg", 16)[8, 8]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((32, 16, 3), dtype=np.uint8)
    upright[:8] = (255, 0, 0)  # red above, blue to the left below
    upright[8:, :4] = (0, 0, 255)
    # What a camera stores under each orientation, from the EXIF standard: the transform that is then undone.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert upright_size(tmp_path / "turned.png") == (16, 32)
    assert np.array_equal(decode_image(tmp_path / "turned.png", 16), upright[8:24])


def test_central_square_and_lanczos(tmp_path: Path) -> None:
    wide = RNG.integers(0, 256, (20, 50, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    expected = Image.fromarray(np.ascontiguousarray(wide[:, 15:35])).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(decode_image(tmp_path / "wide.png", 8), np.asarray(expected))
    assert decode_image(tmp_path / "wide.png", 64).shape == (64, 64, 3)


def test_damaged_and_other_files_are_named(tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for end in ("png", "jpg", "bmp", "tif", "gif", "webp"):
        whole = tmp_path / f"whole.{end}"
        Image.fromarray(noise).save(whole)
        (tmp_path / f"cut.{end}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(UnreadableImageError, match=rf"cut\.{end}: cannot be read as an image"):
            decode_image(tmp_path / f"cut.{end}", 16)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"text\.png: cannot be read as an image \(not an image\)"):
        decode_image(tmp_path / "text.png", 16)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableImageError, match=r"empty\.png"):
        decode_image(tmp_path / "empty.png", 16)
    with pytest.raises(UnreadableImageError, match="no such file"):
        decode_image(tmp_path / "absent.png", 16)


def test_an_error_of_several_lines_becomes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Unable to decompress 'JPEG 2000'\n\tgdcm - requires gdcm>=3.0.10\n")

    monkeypatch.setattr("stylex.data.decode.open_dicom", fail)
    monkeypatch.setattr("stylex.data.decode.dicom_size", fail)
    for read in (lambda file: decode_image(file, 16), upright_size):
        with pytest.raises(UnreadableImageError, match="'JPEG 2000' gdcm - requires") as caught:
            read(tmp_path / "scan.dcm")
        assert "\n" not in str(caught.value)
