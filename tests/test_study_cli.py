from __future__ import annotations

import io
import json
import re
import shutil
import stat
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import problems
import study_samples
import training_problems
import web_server
from stylex.attfind import search
from stylex.evaluation.factors import FactorDetector
from stylex.run import Run, write_json
from stylex.study.design import make_form
from stylex.study.material import load_design, study_folder
from stylex.study.store import Store
from test_cli import CPU, check, stylex  # noqa: F401
from test_study_store import finish


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_samples.run_with_study(tmp_path_factory.mktemp("cli") / "run", study_samples.design()).path


def test_results_are_as_documented(stylex: Any, path: Path, tmp_path: Path) -> None:  # noqa: F811
    design = study_samples.design()
    assert "nobody has been asked yet" in stylex("study", "export", path, "--out", tmp_path).line
    assert check(stylex("study", "prepare", path, "--json"), "stylex study prepare")["questions"] == 6
    detector = FactorDetector({"hair": ("a", "b")}, 16)
    detector.save(tmp_path / "detector.safetensors")
    assert "stylex factors train" in stylex("study", "machine", path).line
    read = ["study", "machine", path, "--factors", tmp_path / "detector.safetensors", "--participants", "3"]
    assert len(check(stylex(*read, "--json"), "stylex study machine")["attributes"]) == 3
    assert "forms answered" in stylex(*read).out
    store = Store(path / "study" / "answers.sqlite", design)
    finish(store, "one")
    finish(store, "two", wrong=(1, 4))
    out = tmp_path / "out"
    assert (
        check(stylex("study", "export", path, "--out", out, "--json"), "stylex study export")["finished"] == 2
    )
    asked = ["study", "analyse", out / "answers.csv", "--key", out / "key.txt"]
    found = check(stylex(*asked, "--json"), "stylex study analyse")
    assert found["accuracy"] == pytest.approx(10 / 12)
    named = json.loads(stylex(*asked, "--run", path, "--json").out)
    assert list(named["by_attribute"]) == ["attribute 1", "attribute 2", "attribute 3"]
    assert "Bosch et al. 2022" in stylex(*asked).out
    (out / "answers.csv").write_text("Timestamp,Question 1\nt,A\n")
    assert "row 1: no column for question 2" in stylex(*asked).line
    # A study that has answers is not drawn anew.
    assert "2 participants answer another study" in stylex("study", "prepare", path, "--seed", "9", *CPU).line
    assert stylex("study", "prepare", path, "--order", "mixed").code == 2


def test_control_questions_are_about_one_attribute_each(stylex: Any, path: Path, tmp_path: Path) -> None:  # noqa: F811
    run = Run.open(shutil.copytree(path, tmp_path / "run", ignore=shutil.ignore_patterns("study")))
    design = study_samples.design(attributes=6, questions=2, control=True)
    write_json(study_folder(run) / "study.json", design.model_dump(mode="json"))
    store = Store(study_folder(run) / "answers.sqlite", design)
    finish(store, "one", wrong=(3, 4))
    store.dispose()
    stylex("study", "export", run.path, "--out", out := tmp_path / "out")
    names = [f"attribute {place}" for place in range(1, 7)]
    for block, wrong in (("answers.csv", "attribute 2"), ("control.csv", None)):
        key = out / ("key.txt" if block == "answers.csv" else "control-key.txt")
        asked = ["study", "analyse", out / block, "--key", key, "--json"]
        for more in ((), ("--run", run.path)):
            found = json.loads(stylex(*asked, *more).out)["by_attribute"]
            assert {name: share["estimate"] for name, share in found.items()} == {
                name: float(name != wrong) for name in names
            }
    # Keys of earlier exports name no attributes; the run still does, the right ones.
    key.write_text(re.sub(",.*", "", key.read_text()))
    assert "by attribute: not known" in stylex(*asked[:-1]).out
    found = json.loads(stylex(*asked, "--run", run.path).out)["by_attribute"]
    assert list(found) == names
    key.write_text(key.read_text().translate(str.maketrans("AB", "BA")))
    assert "belongs to another study" in stylex(*asked, "--run", run.path).line


def test_a_run_without_a_study_is_served_one(
    stylex: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the test images to a page in a visitor's hand, all but the waiting for the end."""
    data = problems.save_images(tmp_path / "images", 40)
    run = problems.save_tiny_run(tmp_path / "run", model := problems.tiny_model(), str(data))
    search(run, model, training_problems.images(12, seed=1), run.config.attfind)
    (tmp_path / "consent.txt").write_text("We ask <you>.\n\nYou may stop.\n", encoding="utf-8")
    study_samples.draw_small(monkeypatch)
    started: list[Any] = []
    monkeypatch.setattr("stylex.web.serving.serve", lambda app, listening: started.append((app, listening)))
    blocks = ["--naming", "--control", "--order", "fixed", "--attention", "1"]
    words = ["--title", "What & how?", "--consent", tmp_path / "consent.txt"]
    few = ["--attributes", "2", "--questions", "1", "--target", "a", "--port", "0"]
    said = stylex("study", "serve", run.path, *few, *blocks, *words, *CPU)
    assert said.code == 0, said.err
    assert "administration:" in said.out
    ((app, listening),) = started
    listening.close()
    with web_server.served(app) as url:
        visitor = web_server.Visitor(url)
        first = visitor.get("/")[1]
        for text in ("What &amp; how?", "<p>We ask &lt;you&gt;.</p>", "<p>You may stop.</p>"):
            assert text in first
        visitor.post("/begin", {"token": visitor.token()})
        page = visitor.get("/")[1]
        for kind, size, frames in (("gif", (study_samples.SMALL,) * 2, 2), ("webp", (516, 256), 1)):
            found = re.search(rf'(/shown/\w+\.{kind})" width="(\d+)" height="(\d+)"', page)
            assert found
            with urllib.request.urlopen(url + found[1], timeout=60) as answer:
                assert answer.headers["content-type"] == f"image/{kind}"
                picture = Image.open(io.BytesIO(answer.read()))
            assert picture.format == kind.upper()
            assert picture.size == size == (int(found[2]), int(found[3]))
            assert getattr(picture, "n_frames", 1) == frames
    design = load_design(run)
    assert design is not None
    form = make_form(design, 1)
    assert form == make_form(design, 2)  # one for all
    assert Counter(step.kind for step in form) == {
        "practice": 1,
        "begin": 1,
        "question": 2,
        "attention": 1,
        "control": 2,
        "naming": 2,
    }


def test_serving(path: Path) -> None:
    program = web_server.Program("study", "serve", str(path), "--port", "0")
    try:
        token = path / "study" / "admin-token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        visitor = web_server.Visitor(program.url)
        assert "I agree" in visitor.get("/")[1]
        assert "Log in" in visitor.get("/admin")[1]
        secret = token.read_text().strip()
        for given, code in ((f"{secret}x", 403), (secret, 303)):
            form = {"token": visitor.token("/admin"), "secret": given}
            assert visitor.post("/admin/login", form)[0] == code
        assert "Participants" in visitor.get("/admin")[1]
        bearer = web_server.Visitor(program.url)
        assert bearer.get("/admin/export/key.txt", authorization=f"Bearer {secret}")[0] == 200
        assert bearer.get(f"/admin/{secret}", authorization=f"Bearer {secret}")[0] == 404
        taken = program.url.rpartition(":")[2]
        from stylex.errors import RunError
        from stylex.web.serving import listen

        with pytest.raises(RunError, match="choose another with --port"):
            listen("127.0.0.1", int(taken))
    finally:
        code, said = program.stop()
    assert code == 143
    assert "Traceback" not in said
    assert program.url in said  # standard output is in it
    assert secret not in said


def test_addresses() -> None:
    from stylex.errors import ConfigError
    from stylex.web.serving import allowed_hosts, is_loopback, listen, public_host

    assert allowed_hosts("127.0.0.1") == ("localhost", "127.0.0.1", "::1", "127.0.0.1")
    assert allowed_hosts("0.0.0.0") is None
    assert "study.example.org" in (allowed_hosts("0.0.0.0", "https://study.example.org:8443") or ())
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0")] == [
        True,
        True,
        True,
        False,
    ]
    for wrong in ("study.example.org", "ftp://x", "https://x/y"):
        with pytest.raises(ConfigError, match="public-url"):
            public_host(wrong)
    with pytest.raises(ConfigError, match="no such address"):
        listen("no.such.host.invalid", 0)
