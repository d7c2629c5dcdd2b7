from __future__ import annotations

import io
import json
import shutil
import subprocess
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import problems
import training_problems
import web_server
from stylex import load
from stylex.attfind import load_findings, search
from stylex.attfind.names import LONGEST_NAME, clean_name, with_name
from stylex.counterfactuals import to_picture
from stylex.errors import ConfigError, DataError, RunError
from stylex.evaluation.measure import prepare
from stylex.explainer import Explainer
from stylex.report.pictures import as_image, enlarge
from stylex.run import Run
from stylex.viewer.app import create_app, exported
from stylex.viewer.uploads import FORMATS, MAX_PIXELS, read_upload
from stylex.viewer.workbench import UPLOADS, Workbench
from web_server import Visitor


def searched(path: Path, recipe: str = "fast") -> Explainer:
    model = problems.tiny_model(recipe)
    run = problems.save_tiny_run(path, model)
    images = None if model.encoder is None else training_problems.images(12)
    search(run, model, images, run.config.attfind)
    return load(run.path, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    return searched(tmp_path_factory.mktemp("viewer") / "run")


@pytest.fixture(scope="module")
def bench(explainer: Explainer) -> Workbench:
    return Workbench(explainer, prepare(explainer.model, training_problems.images(12), 0), shown=3)


@pytest.fixture(scope="module")
def url(bench: Workbench) -> Iterator[str]:
    with web_server.served(create_app(bench, "<i>tiny</i>", hosts=("127.0.0.1",))) as found:
        yield found


def packed(picture: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, kind, **options)
    return content.getvalue()


def face() -> np.ndarray:
    return np.asarray(training_problems.images(30).images[29])


def test_sliders_move_coordinates_to_both_ends(bench: Workbench, explainer: Explainer) -> None:
    subject, target = bench.subject("3"), "b"
    first, second = bench.attributes(target)[:2]
    found = bench.edit(subject, target, {first.rank: 0.5, second.rank: -1.0})
    space, model = explainer.discovery.space, explainer.model
    styles = subject.styles.clone()
    for entry, amount, direction in ((first, 0.5, first.direction), (second, 1.0, 1 - second.direction)):
        place = int(space.positions[entry.coordinate])
        end = (space.high if direction else space.low)[entry.coordinate]
        styles[:, place] += amount * (end - styles[:, place])
    image = model.synthesise(styles)
    assert np.array_equal(found.edited, to_picture(image[0]))
    wanted = model.classify(image).softmax(dim=1)[0].tolist()
    assert found.probabilities_after == pytest.approx(wanted, abs=1e-5)
    assert [change.amount for change in found.changes] == [0.5, 1.0]
    untouched = bench.edit(subject, target, {})
    assert np.array_equal(untouched.edited, subject.reconstruction)
    assert untouched.probabilities_after == pytest.approx(subject.probabilities_before, abs=1e-5)
    with pytest.raises(ConfigError, match="goes from -1 to 1"):
        bench.edit(subject, target, {1: 1.5})
    with pytest.raises(ConfigError, match="no attribute 4"):
        bench.edit(subject, target, {4: 0.5})


def test_flip_finds_what_explain_finds_with_these_sliders(bench: Workbench) -> None:
    for row in range(12):
        subject = bench.subject(str(row))
        for target in bench.class_names:
            amounts, found = bench.flip(subject, target)
            assert set(amounts) <= {1, 2, 3}
            again = bench.edit(subject, target, amounts)
            assert again.probabilities_after == pytest.approx(found.probabilities_after, abs=1e-4)


def test_uploads_are_encoded_and_make_room(explainer: Explainer) -> None:
    bench = Workbench(explainer, prepare(explainer.model, training_problems.images(4), 0))
    picture = Image.fromarray(face())
    first = bench.upload(picture, "me.png")
    expected = explainer.probabilities(picture)
    assert dict(zip(bench.class_names, first.probabilities_original or (), strict=True)) == pytest.approx(
        expected
    )
    assert bench.subject(first.key) is first
    for _ in range(UPLOADS):
        bench.upload(picture, "other.png")
    with pytest.raises(DataError, match="send the image again"):
        bench.subject(first.key)
    for key in ("4", "-1", "99999999999999999999", "²", "../x", ""):
        with pytest.raises(DataError):
            bench.subject(key)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it has these many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    content = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(content, kind, save_all=True, append_images=frames[1:])
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b"hello", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (bomb(30_000, 30_000), "too many pixels"),
        (bomb(MAX_PIXELS, 2), "too many pixels"),
        (animated("GIF"), "animated"),
        (animated("WEBP"), "animated"),
        (animated("PNG"), "animated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "no image|damaged"),
    ],
)
def test_uploads_that_are_refused(content: bytes, line: str, url: str) -> None:
    with pytest.raises(DataError, match=line) as raised:
        read_upload(content)
    assert "\n" not in str(raised.value)
    if content:
        visitor = Visitor(url)
        code, text, _ = visitor.upload(content, "x.png", visitor.token())
        assert code == 400
        assert "Traceback" not in text


@pytest.mark.parametrize("kind", FORMATS)
def test_still_images_of_every_kind_are_taken(kind: str) -> None:
    taken = np.asarray(read_upload(packed(face(), kind)))
    assert taken.shape == face().shape
    assert taken.mean(axis=(0, 1)) == pytest.approx(face().mean(axis=(0, 1)), abs=10)  # some lose a little


def test_truncated_images_are_refused_and_turned_ones_turned() -> None:
    whole = packed(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="damaged"):
        read_upload(whole[: len(whole) // 2])
    picture = np.zeros((20, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_upload(packed(picture, "JPEG", exif=exif)).size == (20, 40)


def test_uploads_through_the_page(url: str) -> None:
    visitor = Visitor(url)
    code, _, headers = visitor.upload(packed(face()), "../../etc/<b>pass.png", visitor.token())
    assert code == 303
    page = visitor.get(headers["location"])[1]
    assert "&lt;b&gt;pass.png" in page
    assert "etc/" not in page
    assert Visitor(url).upload(packed(face()), "x.png", "0" * 64)[0] == 403
    large = visitor.upload(bytes(11_000_000), "x.png", visitor.token())
    assert large[0] == 413


def test_pages_and_exports(url: str, bench: Workbench) -> None:
    visitor = Visitor(url)
    code, text, _ = visitor.get("/?image=2&target=b&s1=40")
    assert code == 200
    assert "&lt;i&gt;tiny&lt;/i&gt;" in text
    assert 'value="40"' in text
    state = "?image=2&target=b&s1=40&s2=-100"
    content = json.loads(visitor.get(f"/export/json{state}")[1])
    found = bench.edit(bench.subject("2"), "b", {1: 0.4, 2: -1.0})
    assert content["probabilities"]["counterfactual"] == pytest.approx(found.probabilities_after, abs=1e-6)
    assert [entry["amount"] for entry in content["changes"]] == [0.4, 1.0]
    with Image.open(io.BytesIO(exported(found, "gif"))) as gif:
        assert gif.n_frames == 2
    with Image.open(io.BytesIO(exported(found, "png"))) as png:
        assert png.width > 3 * 256
    assert visitor.get(f"/export/png{state}")[2]["content-disposition"] == 'attachment; filename="stylex.png"'
    for wrong in ("/?image=99", "/?image=../run.json", "/?target=c", "/?s1=101", "/?s1=x", "/attributes/9/1"):
        code, text, _ = visitor.get(wrong)
        assert code == 400, wrong
        assert "Traceback" not in text
    for missing in ("/export/exe", "/picture/..%2f..%2frun.json", "/static/..%2fapp.py"):
        assert visitor.get(missing)[0] in (404, 422), missing
    assert visitor.get("/", host="evil.example:80")[0] == 421


def fetched(url: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read(), answer.headers


def holds(figure: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a picture stands somewhere in a figure, pixel by pixel."""
    height, width = picture.shape[:2]
    corners = np.argwhere((figure == picture[0, 0]).all(axis=-1))
    return any(np.array_equal(figure[y : y + height, x : x + width], picture) for y, x in corners)


def test_exports_are_of_what_is_shown(url: str, bench: Workbench) -> None:
    content = {}
    for kind, media in (("gif", "image/gif"), ("png", "image/png"), ("json", "application/json")):
        content[kind], headers = fetched(f"{url}/export/{kind}?image=2&target=b&s1=40&s2=-100")
        assert headers["content-type"] == media
        assert headers["content-disposition"] == f'attachment; filename="stylex.{kind}"'
    found = bench.edit(bench.subject("2"), "b", {1: 0.4, 2: -1.0})
    assert found.original is not None
    with Image.open(io.BytesIO(content["gif"])) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 2, 0)
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            assert gif.info["duration"] >= 334  # no more than three flashes a second
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    both = [np.asarray(enlarge(as_image(picture))) for picture in (found.reconstruction, found.edited)]
    away = [[np.abs(frame[: len(other)] - other).mean() for other in both] for frame in frames]
    assert away[0][0] < away[0][1]  # first the reconstruction, then the edited image
    assert away[1][1] < away[1][0]
    with Image.open(io.BytesIO(content["png"])) as png:
        figure = np.asarray(png.convert("RGB"))
    for picture in (found.original, found.reconstruction, found.edited):
        large = Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS)
        assert holds(figure, np.asarray(large))
    said = json.loads(content["json"])
    assert (said["name"], said["target"], said["flipped"]) == (found.name, "b", found.flipped)
    assert [entry["rank"] for entry in said["changes"]] == [1, 2]


def test_an_image_is_looked_up_once_for_an_answer(
    url: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    honest = bench.subject
    monkeypatch.setattr(bench, "subject", lambda key: asked.append(key) or honest(key))
    for path in ("/", "/edited", "/reset", "/flip", "/export/json", "/attributes/1/1"):
        asked.clear()
        assert Visitor(url).get(f"{path}?image=2&target=b&s1=40")[0] == 200
        assert asked == ["2"], path


def test_the_program_serves_this_machine_alone(bench: Workbench, tmp_path: Path) -> None:
    problems.save_images(tmp_path / "images")
    run = bench.explainer.run.path
    asked = ("view", str(run), "--data", str(tmp_path / "images"), "--images", "3", "--attributes", "2")
    program = web_server.Program(*asked, "--port", "0")
    try:
        assert program.url.startswith("http://127.0.0.1:")
        visitor = Visitor(program.url)
        page = visitor.get("/?target=b")[1]
        assert page.count('type="range"') == 1 + 2  # one slides between the pictures
        assert page.count('src="/picture/') == 3
        assert visitor.get("/", host="evil.example")[0] == 421
    finally:
        code, said = program.stop()
    assert code == 143
    assert "Traceback" not in said
    warnings = [line for line in said.splitlines() if "warning" in line.lower()]
    assert all("compared with none of the run's images" in line for line in warnings), said


def test_names_are_kept_and_outlive_a_new_search(tmp_path: Path) -> None:
    explainer = searched(tmp_path / "run")
    bench = Workbench(explainer, prepare(explainer.model, training_problems.images(6), 0))
    entry = bench.attributes("b")[0]
    with web_server.served(create_app(bench, "tiny")) as url:
        visitor = Visitor(url)
        path = f"/attributes/1/{entry.rank}"
        form = {"token": visitor.token(path), "name": "  two\n words ", "back": "image=1&target=b"}
        assert visitor.post(path, form | {"token": "none"})[0] == 403
        assert visitor.post(path, form)[0] == 303
        assert visitor.post(path, form | {"name": "x" * 200})[0] == 400
        assert "two words" in visitor.get("/?target=b")[1]
    named = {found.coordinate for found in explainer.findings.attributes["b"] if found.name == "two words"}
    assert named == {entry.coordinate}
    search(explainer.run, explainer.model, training_problems.images(12), explainer.run.config.attfind)
    found = load_findings(explainer.run)
    assert {e.coordinate for part in found.attributes.values() for e in part if e.name} >= {entry.coordinate}
    with explainer.run.locked(), pytest.raises(RunError, match="another process"):
        explainer.name_attribute(entry.coordinate, "no")
    explainer.name_attribute(entry.coordinate, "")
    assert all(not e.name for part in load_findings(explainer.run).attributes.values() for e in part)
    with pytest.raises(ConfigError, match="cannot be named"):
        with_name(explainer.findings, 10**6, "x")
    assert clean_name("a\x00\u2028b") == "a b"
    with pytest.raises(ConfigError, match="too long"):
        clean_name("x" * (LONGEST_NAME + 1))


def test_names_are_not_given_to_another_search(tmp_path: Path) -> None:
    explainer = searched(tmp_path / "run")
    run, settings = explainer.run, explainer.run.config.attfind
    search(run, explainer.model, training_problems.images(12), settings.model_copy(update={"count": 1}))
    with pytest.raises(RunError, match="searched again"):
        explainer.name_attribute(explainer.attributes("b")[0].coordinate, "late")


def test_the_shipped_model_is_not_written_to() -> None:
    explainer = load("demo", device="cpu", precision="fp32")
    with pytest.raises(ConfigError, match="keeps no names"):
        explainer.name_attribute(explainer.attributes("old")[0].coordinate, "glasses")


def test_without_an_encoder_samples_are_edited(tmp_path: Path) -> None:
    explainer = searched(tmp_path / "run", "stylegan2")
    bench = Workbench(explainer, prepare(explainer.model, None, 0, count=6))
    with web_server.served(create_app(bench, "samples")) as url:
        visitor = Visitor(url)
        page = visitor.get("/?image=2")[1]
        assert "sample 2" in page
        assert 'type="file"' not in page
        assert visitor.get("/flip?image=2&target=b")[0] == 200
        assert visitor.get("/attributes/0/1")[0] == 200
        code, text, _ = visitor.upload(packed(face()), "x.png", visitor.token("/attributes/0/1"))
        assert code == 400
        assert "no encoder" in text


def test_many_classes(tmp_path: Path) -> None:
    """Ten classes: the target is chosen from a list, and the likeliest are drawn."""
    names = [f"class & {number}" for number in range(10)]
    matrix = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)).tolist()
    model = problems.linear_model(problems.linear_classifier(matrix, [0.0] * 10, names))
    from types import SimpleNamespace

    from stylex.attfind import Discovery, find_attributes, sweep

    styles = problems.linear_styles(
        torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).clamp(-1, 1).tolist()
    )
    space = problems.unit_space()
    images = model.synthesise(styles)
    logits = model.classify(images)
    found = find_attributes(
        logits.numpy(), sweep(model, space, styles).numpy(), space, names, problems.everything()
    )
    run = Run(tmp_path, SimpleNamespace(resolution=4))  # type: ignore[arg-type]
    discovery = Discovery(styles, styles, logits, tuple("x" * 40), space)
    from stylex.evaluation.measure import TestImages

    test = TestImages(
        images, styles, logits.numpy(), logits.numpy(), images, tuple(f"image {i}" for i in range(40))
    )
    bench = Workbench(Explainer(run, model, discovery, found), test)
    with web_server.served(create_app(bench, "many")) as url:
        page = Visitor(url).get("/?image=1&target=class+%26+7")[1]
        assert page.count('class="shift"') == 8
        assert "class &amp; 7" in page
        assert page.count('class="targets"') == 1
        code, text, _ = Visitor(url).get("/flip?image=1&target=class+%26+7")
        assert code == 200
        assert "<script" not in text


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_installs_what_the_viewer_needs(tmp_path: Path) -> None:
    """On a machine without an environment; only said, not done."""
    asked = ["make", "-n", "demo", f"VENV={tmp_path / 'venv'}"]
    root = Path(__file__).parent.parent
    done = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True)
    assert "install -e '.[web]'" in done.stdout
    assert "stylex demo" in done.stdout
