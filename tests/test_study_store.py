from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

import study_samples
from stylex.errors import RunError
from stylex.study.analysis import analyse
from stylex.study.export import content, files, write_files
from stylex.study.store import Store, count_participants

NAMES = ["first", "=second", "third"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "answers.sqlite", study_samples.design(control=True, naming=True))


def finish(store: Store, visitor: str, wrong: tuple[int, ...] = (), *, inattentive: bool = False) -> None:
    """Answer all, right but for these questions."""
    place = store.join(visitor)
    assert place is not None
    while not place.done:
        step = place.form[place.step]
        choice = step.right
        miss = step.question in wrong if step.kind == "question" else step.kind == "attention" and inattentive
        if choice and miss:
            choice = "B" if choice == "A" else "A"
        words = "@grey hair" if step.kind == "naming" else None
        place, verdict = store.answer(visitor, place.step, choice=choice, words=words)
        assert place is not None
        assert verdict == "kept"


def test_answers_are_there_after_a_restart(store: Store) -> None:
    place = store.join("visitor")
    assert place is not None
    store.answer("visitor", 0, choice="A")
    again = Store(store.file, store.design)
    found = again.place("visitor")
    assert found is not None
    assert (found.number, found.step, found.form) == (place.number, 1, place.form)
    assert again.secret == store.secret != b""
    assert again.join("visitor") == found  # nobody joins twice
    assert [entry.choice for entry in again.answers()] == ["A"]


def test_the_first_answer_counts_and_no_other(store: Store) -> None:
    store.join("visitor")
    assert store.answer("visitor", 0, choice="A")[1] == "kept"
    assert store.answer("visitor", 0, choice="B")[1] == "earlier"
    assert store.answer("visitor", 5, choice="B")[1] == "earlier"
    assert store.answer("nobody", 0, choice="B") == (None, "earlier")
    assert [(entry.step, entry.choice) for entry in store.answers()] == [(0, "A")]


def test_clicks_at_the_same_time_count_once(store: Store) -> None:
    store.join("visitor")
    verdicts: list[str] = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(store.answer("visitor", 0, choice="A")[1]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdicts) == ["earlier"] * 7 + ["kept"]
    assert len(store.answers()) == 1


def test_participants_who_come_at_once_get_numbers_and_forms_of_their_own(store: Store) -> None:
    threads = [threading.Thread(target=store.join, args=(f"visitor {i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    people = store.participants()
    assert [entry.number for entry in people] == list(range(1, 13))
    assert len({entry.form for entry in people}) == 12
    assert not any("visitor" in entry.visitor for entry in people)  # a hash, not the cookie


def test_closed_is_closed_until_it_is_opened(store: Store) -> None:
    store.join("early")
    store.close_study()
    assert store.closed
    assert store.join("late") is None
    assert store.answer("early", 0, choice="A")[1] == "closed"
    assert Store(store.file, store.design).closed
    store.close_study(False)
    assert store.answer("early", 0, choice="A")[1] == "kept"


def test_the_csv_has_one_key_whatever_sides_were_shown(store: Store, tmp_path: Path) -> None:
    finish(store, "one")
    finish(store, "two", wrong=(2, 5))
    finish(store, "three", wrong=(2,), inattentive=True)
    store.join("four")
    store.answer("four", 0, choice="A")  # has not finished: not exported
    written = write_files(store, NAMES, tmp_path / "out")
    assert [file.name for file in written] == list(files(store.design))
    found = analyse(tmp_path / "out" / "answers.csv", tmp_path / "out" / "key.txt")
    assert (found.participants, found.questions) == (3, 6)
    assert {number: share.estimate for number, share in found.by_question.items()} == pytest.approx(
        {1: 1, 2: 1 / 3, 3: 1, 4: 1, 5: 2 / 3, 6: 1}
    )
    heading, *rows = (tmp_path / "out" / "answers.csv").read_text().splitlines()
    assert heading == "Timestamp," + ",".join(f"Question {i}" for i in range(1, 7))
    assert rows[0].split(",")[1:] == list(store.design.key.values())
    attentive = content(store, NAMES, "answers.csv", attentive=True)
    assert len(attentive.splitlines()) == 3
    control = analyse(tmp_path / "out" / "control.csv", tmp_path / "out" / "control-key.txt")
    assert (control.participants, control.questions, control.accuracy) == (3, 3, 1)
    assert list(found.by_attribute) == list(control.by_attribute) == NAMES
    assert found.by_attribute["first"].estimate == pytest.approx(2 / 3)  # questions 1 and 2 of 6
    details = (tmp_path / "out" / "details.csv").read_text().splitlines()
    assert len(details) == 1 + 3 * (1 + 6 + 1 + 3) + 1
    words = (tmp_path / "out" / "names.csv").read_text()
    assert "'@grey hair" in words  # no formula for a spreadsheet
    assert "'=second" in words


ANSWERS = (
    "Timestamp,Question 1,Question 2,Question 3,Question 4,Question 5,Question 6,Question 7,Question 8,"
    "Question 9,Question 10,Question 11,Question 12,Question 13,Question 14,Question 15,Question 16,"
    "Question 17,Question 18\n"
    "2022-01-20T15:11:00+00:00,A,B,B,A,B,A,A,B,A,B,B,A,B,A,A,B,A,B\n"
    "2022-01-20T15:12:00+00:00,A,A,B,A,B,A,A,B,A,B,B,A,B,A,A,B,A,A\n"
    "2022-01-20T15:13:00+00:00,B,A,A,B,A,B,B,A,B,A,A,B,A,B,B,A,B,A\n"
)
"""As the replication published its answers, of three people: all right, 2 and 18 wrong, all wrong."""

ANSWER_KEY = """\
1: A, hair
2: B, hair
3: B, hair
4: A, glasses
5: B, glasses
6: A, glasses
7: A, smile
8: B, smile
9: A, smile
10: B, beard
11: B, beard
12: A, beard
13: B, hat
14: A, hat
15: A, hat
16: B, skin
17: A, skin
18: B, skin
"""


def test_answers_are_exported_in_the_published_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = study_samples.design(attributes=6, questions=3, attention=2)
    questions = [
        entry.model_copy(update={"key": side})
        for entry, side in zip(drawn.questions, "ABBABAABABBABAABAB", strict=True)
    ]
    made = Store(tmp_path / "a.sqlite", drawn.model_copy(update={"questions": tuple(questions)}))
    for minute, wrong in ((11, ()), (12, (2, 18)), (13, tuple(range(1, 19)))):
        monkeypatch.setattr("stylex.study.store.now", lambda at=minute: f"2022-01-20T15:{at}:00+00:00")
        finish(made, f"visitor {minute}", wrong)
    names = ["hair", "glasses", "smile", "beard", "hat", "skin"]
    write_files(made, names, out := tmp_path / "out")
    assert (out / "answers.csv").read_bytes().decode() == ANSWERS
    assert (out / "key.txt").read_bytes().decode() == ANSWER_KEY
    found = analyse(out / "answers.csv", out / "key.txt")
    assert (found.participants, found.accuracy) == (3, pytest.approx((18 + 16) / 54))
    assert list(found.by_attribute) == names


def test_what_is_no_store(tmp_path: Path) -> None:
    design = study_samples.design()
    file = tmp_path / "answers.sqlite"
    store = Store(file, design)
    store.join("somebody")
    with pytest.raises(RunError, match="answers to another study"):
        Store(file, study_samples.design(seed=9))
    Store(file, design.model_copy(update={"settings": design.settings.model_copy(update={"title": "New"})}))
    assert count_participants(file) == 1
    assert count_participants(tmp_path / "none.sqlite") == 0
    (tmp_path / "damaged.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(RunError, match="cannot be used"):
        Store(tmp_path / "damaged.sqlite", design)
    with pytest.raises(RunError, match="cannot be read"):
        count_participants(tmp_path / "damaged.sqlite")


def test_the_database_tells_nothing_about_people(store: Store) -> None:
    finish(store, "a-cookie-of-somebody")
    with sqlite3.connect(store.file) as connection:
        dump = "\n".join(connection.iterdump())
    assert "a-cookie-of-somebody" not in dump
    columns = {row[1] for row in connection.execute("PRAGMA table_info(participant)")}
    assert columns == {"number", "visitor", "form", "started", "finished"}
