from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

import study_samples
import web_server
from stylex.evaluation.factors import FactorDetector
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


def test_serving(path: Path) -> None:
    program = web_server.Program("study", "serve", str(path), "--port", "0")
    try:
        token = path / "study" / "admin-token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        visitor = web_server.Visitor(program.url)
        assert "I agree" in visitor.get("/")[1]
        assert "Log in" in visitor.get("/admin")[1]
        taken = program.url.rpartition(":")[2]
        from stylex.errors import RunError
        from stylex.web.serving import listen

        with pytest.raises(RunError, match="choose another with --port"):
            listen("127.0.0.1", int(taken))
    finally:
        code, said = program.stop()
    assert code == 143
    assert "Traceback" not in said
    assert token.read_text().strip() not in said


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
