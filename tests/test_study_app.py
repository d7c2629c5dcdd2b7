from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import study_samples
import web_server
from stylex.errors import RunError
from stylex.study.app import create_app
from stylex.study.export import content
from stylex.study.store import Store
from web_server import Visitor

TOKEN = "the-administrators-token-of-this-test"
NAMES = ["<b>hair</b>", "glasses", "third"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "answers.sqlite", study_samples.design(title="<i>What</i> changes?"))


def pictures(store: Store) -> dict[str, bytes]:
    """Animations of 3 × 2 pixels and stills of 7 × 2, all alike."""
    packed = {}
    for kind, size in (("gif", (3, 2)), ("webp", (7, 2))):
        Image.new("RGB", size).save(content := io.BytesIO(), kind)
        packed |= {f"{name}.{kind}": content.getvalue() for name in store.design.images}
    return packed


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    app = create_app(store, pictures(store), TOKEN, lambda: NAMES, hosts=("127.0.0.1",))
    with web_server.served(app) as found:
        yield found


def begin(url: str) -> Visitor:
    visitor = Visitor(url)
    assert visitor.post("/begin", {"token": visitor.token()})[0] == 303
    return visitor


def answer(visitor: Visitor, step: int, choice: str = "A", **more: str) -> int:
    return visitor.post("/answer", {"token": visitor.token(), "step": str(step), "choice": choice, **more})[0]


def login(url: str) -> Visitor:
    admin = Visitor(url)
    assert admin.post("/admin/login", {"token": admin.token("/admin"), "secret": TOKEN})[0] == 303
    return admin


def test_from_consent_to_thanks(url: str, store: Store) -> None:
    visitor = Visitor(url)
    code, text, headers = visitor.get("/")
    assert code == 200
    assert "I agree" in text
    assert "&lt;i&gt;What&lt;/i&gt;" in text  # escaped
    assert headers["cache-control"] == "no-store"
    assert store.participants() == []  # reading the first page is not taking part
    visitor.post("/begin", {"token": visitor.token()})
    place = store.participants()[0]
    form = store.form(place.number)
    for number, step in enumerate(form):
        code, text, _ = visitor.get("/")
        assert f'name="step" value="{number}"' in text
        assert f"/shown/{step.a}.gif" in text or step.kind == "begin"
        assert answer(visitor, number, step.right or "A") == 303
    assert "Thank you" in visitor.get("/")[1]
    assert all(entry.correct for entry in store.answers() if entry.kind == "question")
    assert store.participants()[0].finished is not None


def test_feedback_after_practice_only(url: str, store: Store) -> None:
    visitor = begin(url)
    right = store.form(1)[0].right
    answer(visitor, 0, "B" if right == "A" else "A")
    assert f"Not quite: it is {right}." in visitor.get("/")[1]
    answer(visitor, 1)
    answer(visitor, 2, "A")
    text = visitor.get("/")[1]
    assert "Right" not in text
    assert "Not quite" not in text


def test_a_second_answer_to_a_page_changes_nothing(url: str, store: Store) -> None:
    visitor = begin(url)
    assert [answer(visitor, 0, "A"), answer(visitor, 0, "B"), answer(visitor, 7, "B")] == [303, 303, 303]
    assert [(entry.step, entry.choice) for entry in store.answers()] == [(0, "A")]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"step": "0", "choice": "C"}, 400),
        ({"step": "0"}, 400),
        ({"step": "zero", "choice": "A"}, 400),
        ({"step": "9" * 40, "choice": "A"}, 400),
        ({"choice": "A"}, 400),
    ],
)
def test_what_is_no_answer(url: str, store: Store, values: dict[str, str], code: int) -> None:
    visitor = begin(url)
    found, text, _ = visitor.post("/answer", {"token": visitor.token(), **values})
    assert found == code
    assert "Traceback" not in text
    assert store.answers() == []


def test_forms_from_elsewhere_are_refused(url: str, store: Store) -> None:
    visitor = begin(url)
    token = visitor.token()
    good = {"step": "0", "choice": "A"}
    assert visitor.post("/answer", good)[0] == 403
    assert visitor.post("/answer", good | {"token": "0" * 64})[0] == 403
    assert visitor.post("/answer", good | {"token": begin(url).token()})[0] == 403  # of another visitor
    assert visitor.post("/answer", good | {"token": token}, sec_fetch_site="cross-site")[0] == 403
    assert visitor.post("/answer", good | {"token": token}, sec_fetch_site="same-site")[0] == 403
    assert visitor.post("/answer", good | {"token": token}, origin="https://evil.example")[0] == 403
    assert Visitor(url).post("/answer", good | {"token": token})[0] == 403  # without the cookie
    assert store.answers() == []
    assert visitor.post("/answer", good | {"token": token}, sec_fetch_site="same-origin")[0] == 303
    assert visitor.post("/answer", good | {"token": token}, origin=url)[0] == 303
    assert len(store.answers()) == 1


def test_other_names_of_this_server_are_refused(url: str) -> None:
    assert Visitor(url).get("/", host="evil.example")[0] == 421
    assert Visitor(url).get("/", host="127.0.0.1:1")[0] == 200


def test_large_bodies_are_refused(url: str) -> None:
    visitor = begin(url)
    assert visitor.post("/answer", b"x" * 70_000)[0] == 413
    chunks = iter([b"token=" + b"x" * 50_000, b"y" * 50_000])  # no length is told
    import http.client

    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/answer", chunks, {"content-type": "application/x-www-form-urlencoded"})
    assert connection.getresponse().status == 413


@pytest.mark.parametrize(
    "path",
    [
        "/shown/..%2f..%2fanswers.sqlite",
        "/shown/%2e%2e/answers.sqlite",
        "/shown/admin-token",
        "/shown//etc/passwd",
        "/static/..%2f__init__.py",
        "/static/web.py",
        "/admin/export/..%2fanswers.sqlite",
        "/openapi.json",
        "/docs",
    ],
)
def test_no_path_reaches_the_file_system(url: str, path: str) -> None:
    assert login(url).get(path)[0] == 404


def test_pages_keep_to_themselves(url: str) -> None:
    visitor = begin(url)
    _, text, headers = visitor.get("/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http://" not in text.replace(url, "")
    assert "https://" not in text
    assert "<script>" not in text
    cookie = next(iter(visitor.jar))
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "lax"


def test_the_administrator(url: str, store: Store) -> None:
    visitor = begin(url)
    for number, step in enumerate(store.form(1)):
        answer(visitor, number, step.right or "A")
    stranger = Visitor(url)
    assert "Log in" in stranger.get("/admin")[1]
    for path in ("/admin/export/answers.csv", "/admin/export/key.txt"):
        assert stranger.get(path)[0] == 403
        assert visitor.get(path)[0] == 403
    assert stranger.post("/admin/close", {"token": stranger.token("/admin"), "closed": "yes"})[0] == 403
    wrong = stranger.post("/admin/login", {"token": stranger.token("/admin"), "secret": TOKEN + "x"})
    assert wrong[0] == 403
    assert "not the token" in wrong[1]
    admin = login(url)
    text = admin.get("/admin")[1]
    assert "&lt;b&gt;hair&lt;/b&gt;" in text
    assert "<b>hair</b>" not in text
    code, csv, headers = admin.get("/admin/export/answers.csv")
    assert code == 200
    assert csv == content(store, NAMES, "answers.csv")
    assert len(csv.splitlines()) == 2
    assert headers["content-type"].startswith("text/csv")
    assert admin.get("/admin/export/key.txt")[1] == content(store, NAMES, "key.txt")
    assert Visitor(url).get("/admin/export/key.txt", authorization=f"Bearer {TOKEN}")[0] == 200
    assert Visitor(url).get("/admin/export/key.txt", authorization="Bearer nonsense")[0] == 403
    assert admin.post("/admin/close", {"token": admin.token("/admin"), "closed": "yes"})[0] == 303
    assert "This study is closed" in Visitor(url).get("/")[1]
    late = Visitor(url)
    admin.post("/admin/close", {"token": admin.token("/admin"), "closed": "no"})
    assert "I agree" in late.get("/")[1]


def test_tokens_are_compared_in_constant_time_and_never_logged(
    url: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    honest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or honest(a, b))
    with caplog.at_level(logging.DEBUG):
        login(url).get("/admin")
        Visitor(url).get("/admin", authorization=f"Bearer {TOKEN}")
    assert any(TOKEN.encode() in pair for pair in compared)
    out, err = capfd.readouterr()
    assert TOKEN not in caplog.text + out + err


def test_stills_in_place_of_animations(url: str, store: Store) -> None:
    visitor = begin(url)
    step = store.form(1)[0]
    moving, still = visitor.get("/")[1], visitor.get("/?stills=1")[1]
    assert f'src="/shown/{step.a}.gif" width="3" height="2"' in moving
    assert f'srcset="/shown/{step.a}.webp" width="7" height="2"' in moving
    assert "prefers-reduced-motion" in moving
    assert f"/shown/{step.a}.gif" not in still
    assert f'src="/shown/{step.a}.webp" width="7" height="2"' in still
    code, _, headers = visitor.post(
        "/answer", {"token": visitor.token(), "step": "0", "choice": "A", "stills": "1", "asked": "1"}
    )
    assert (code, headers["location"]) == (303, "/?stills=1")
    assert store.answers()[0].stills


def test_a_picture_that_is_missing_or_none_is_found_at_the_start(store: Store) -> None:
    whole = pictures(store)
    some = next(iter(store.design.images))
    with pytest.raises(RunError, match=rf"{some}\.gif: is no picture"):
        create_app(store, whole | {f"{some}.gif": b"GIF89a"}, TOKEN, lambda: NAMES)
    del whole[f"{some}.webp"]
    with pytest.raises(RunError, match=rf"{some}\.webp: .* missing"):
        create_app(store, whole, TOKEN, lambda: NAMES)


def test_somebody_else_on_the_same_device(url: str, store: Store) -> None:
    visitor = begin(url)
    assert visitor.post("/leave", {"token": visitor.token()})[0] == 303
    assert "I agree" in visitor.get("/")[1]
    visitor.post("/begin", {"token": visitor.token()})
    assert len(store.participants()) == 2
