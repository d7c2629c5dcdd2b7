from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

import stylex
from stylex.cli.study import describe
from stylex.errors import ConfigError, DataError
from stylex.study.analysis import analyse_right, two_way_interval
from stylex.study.answers import answers_csv, key_text, read_answers, read_attributes, read_key

KEY = {1: "A", 2: "B", 3: "A", 4: "B", 5: "B", 6: "A"}

ROWS = (
    ("AB" + "ABBA", 6),
    ("BB" + "ABBA", 5),
    ("AA" + "BBBA", 4),
    ("BA" + "BAAA", 1),
)
"""Choices, and how many of them KEY calls right."""


def write(path: Path, rows: list[str], header: str | None = None) -> Path:
    header = header or ",".join(["Timestamp", *[f"Question {number}" for number in KEY]])
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


HALVES = {number: "first" if number <= 3 else "second" for number in KEY}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write(
        tmp_path / "answers.csv", [f"2022/01/20 3:1{i} pm,{','.join(row)}" for i, (row, _) in enumerate(ROWS)]
    )


def test_figures_by_hand(answers: Path) -> None:
    found = stylex.study.analyse(answers, KEY, attributes=HALVES)
    per_person = [count / 6 for _, count in ROWS]
    right = [[choice == KEY[i + 1] for i, choice in enumerate(row)] for row, _ in ROWS]
    assert [sum(row) for row in right] == [count for _, count in ROWS]
    per_question = [sum(row[i] for row in right) / 4 for i in range(6)]
    assert (found.participants, found.questions) == (4, 6)
    assert found.accuracy == pytest.approx(16 / 24)
    assert found.std == found.std_questions == pytest.approx(statistics.stdev(per_question))
    assert found.std_participants == pytest.approx(statistics.stdev(per_person))
    assert [found.by_question[i + 1].estimate for i in range(6)] == pytest.approx(per_question)
    assert found.by_attribute["first"].estimate == pytest.approx(sum(per_question[:3]) / 3)
    assert found.by_attribute["second"].estimate == pytest.approx(sum(per_question[3:]) / 3)
    # three above chance (6, 5, 4 of 6), one below: P(3 or more of 4) = 5 / 16; only 6 of 6 has p = 1/64
    assert (found.chance.above, found.chance.at, found.chance.below) == (3, 0, 1)
    assert found.chance.p_value == pytest.approx(5 / 16)
    assert found.chance.individually == 1
    assert found.interval.low < found.accuracy < found.interval.high
    replication = found.published[-1]
    assert (replication.accuracy, replication.std, replication.participants) == (0.918, 0.038, 61)
    assert replication.difference == pytest.approx(16 / 24 - 0.918)
    assert [entry.inside for entry in found.published] == [
        found.interval.low <= entry.accuracy <= found.interval.high for entry in found.published
    ]


def slow_two_way(right: np.ndarray, resamples: int) -> np.ndarray:
    """The bootstrap as it is told: draw people, draw questions, take the mean of the table between them."""
    random = np.random.default_rng(5)
    means = []
    for _ in range(resamples):
        people = random.integers(len(right), size=len(right))
        questions = random.integers(right.shape[1], size=right.shape[1])
        means.append(right[people][:, questions].mean())
    return np.percentile(means, [2.5, 97.5])


def test_the_interval_is_the_one_that_the_slow_bootstrap_gives() -> None:
    random = np.random.default_rng(0)
    skill, ease = random.normal(1.5, 1, (30, 1)), random.normal(0, 1, (1, 18))
    right = (random.random((30, 18)) < 1 / (1 + np.exp(-skill - ease))).astype(float)
    found = two_way_interval(right, seed=1)
    assert found.method == "two-way bootstrap"
    assert [found.low, found.high] == pytest.approx(slow_two_way(right, 4000), abs=0.008)
    one_way = np.percentile(
        [random.choice(right.ravel(), right.size).mean() for _ in range(2000)], [2.5, 97.5]
    )
    assert found.high - found.low > 1.5 * (one_way[1] - one_way[0])  # answers of one person hang together


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held = 0
    for trial in range(100):
        skill, ease = random.normal(0, 0.12, (25, 1)), random.normal(0, 0.08, (1, 18))
        right = (random.random((25, 18)) < (0.75 + skill + ease).clip(0, 1)).astype(float)
        found = two_way_interval(right, resamples=600, seed=trial)
        held += found.low <= 0.7485 <= found.high
    assert held >= 91


def test_where_all_agree_the_interval_still_has_a_width() -> None:
    found = analyse_right(np.ones((9, 6)), tuple(range(1, 7)), attributes=HALVES)
    assert (found.accuracy, found.interval.method, found.interval.high) == (1.0, "wilson", 1.0)
    assert 0.5 < found.interval.low < 0.7  # six questions alone would give 0.61
    assert found.std_questions == found.std_participants == 0
    assert found.by_attribute["first"].low < 0.75
    assert found.chance.p_value == pytest.approx(2**-9)


def test_one_participant_and_no_groups(tmp_path: Path) -> None:
    found = analyse_right(np.array([[1.0, 0, 1, 1]]), (1, 2, 3, 4))
    assert found.std_participants is None
    assert found.by_attribute == {}
    assert 0 <= found.interval.low < 0.75 < found.interval.high
    named = analyse_right(
        np.array([[1.0, 0, 1, 1]]), (1, 2, 3, 4), attributes={1: "x", 2: "y", 3: "x", 4: "y"}
    )
    assert (named.by_attribute["x"].estimate, named.by_attribute["y"].estimate) == (1.0, 0.5)
    assert named.unclear == ("x", "y")  # one person says little
    with pytest.raises(ConfigError, match="no attribute for question 4"):
        analyse_right(np.array([[1.0, 0, 1, 1]]), (1, 2, 3, 4), attributes={1: "x", 2: "y", 3: "x"})


@pytest.mark.parametrize(("count", "groups"), [(18, 6), (12, 0), (6, 0), (17, 0)])
def test_threes_are_the_replications_alone(tmp_path: Path, count: int, groups: int) -> None:
    """A key that names no attribute: only its 18 questions are known to come in threes."""
    key = dict.fromkeys(range(1, count + 1), "A")
    file = tmp_path / "answers.csv"
    file.write_text(answers_csv(list(key), [("t", ["A"] * count)]))
    (tmp_path / "key.txt").write_text(key_text(key))
    for known in (key, tmp_path / "key.txt"):
        found = stylex.study.analyse(file, known)
        assert list(found.by_attribute) == [f"attribute {place + 1}" for place in range(groups)]
        assert ("by attribute: not known" in describe(found)) == (not groups)


def test_the_key_says_which_attribute_a_question_is_about(tmp_path: Path, answers: Path) -> None:
    about = {1: "hair, grey", 2: "hair, grey", 3: "=glasses; 2", 4: "B", 5: "hair, grey", 6: "B"}
    file = tmp_path / "key.txt"
    file.write_text(key_text(KEY, about), encoding="utf-8")
    assert file.read_text(encoding="utf-8").startswith(
        "1: A, hair, grey\n2: B, hair, grey\n3: A, =glasses; 2"
    )
    assert read_key(file) == KEY
    assert read_attributes(file) == about
    found = stylex.study.analyse(answers, file)
    assert found == stylex.study.analyse(answers, KEY, attributes=about)
    assert list(found.by_attribute) == ["hair, grey", "=glasses; 2", "B"]
    given = stylex.study.analyse(answers, file, attributes=HALVES)
    assert list(given.by_attribute) == ["first", "second"]  # what is said here goes before the file
    file.write_text("1: A, hair\n2: B\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2: names no attribute"):
        read_attributes(file)
    file.write_text("Question 1;b;hair\n2\tA\tgrey hair\n", encoding="utf-8")
    assert read_attributes(file) == {1: "hair", 2: "grey hair"}


def test_guessing_is_found_out() -> None:
    random = np.random.default_rng(3)
    right = (random.random((60, 18)) < 0.5).astype(float)
    found = analyse_right(right, tuple(range(1, 19)))
    assert found.interval.low < 0.5 < found.interval.high
    assert found.chance.p_value > 0.05
    assert not found.published[-1].inside
    assert len(found.unclear) >= 4


def test_the_key_comes_as_mapping_or_file(tmp_path: Path, answers: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(key_text(KEY), encoding="utf-8")
    named = {f"Question {number}": choice.lower() for number, choice in KEY.items()}
    found = [stylex.study.analyse(answers, key) for key in (KEY, named, file, str(file))]
    assert all(entry == found[0] for entry in found)
    file.write_text("# key\n2 : b\n\nQuestion 1= A\n", encoding="utf-8")
    assert read_key(file) == {1: "A", 2: "B"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1: A\n1: B\n", "row 2: question 1 has two keys"),
        ("1: A\n2: C\n", "row 2: 'C' is neither A nor B"),
        ("1: A\nwhat\n", "row 2: 'what' is no key"),
        ("\n", "names no question"),
    ],
)
def test_a_key_that_is_none(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "key.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=line):
        read_key(file)
    with pytest.raises(DataError, match="no such file"):
        read_key(tmp_path / "none.txt")
    with pytest.raises(DataError, match="names 'first'"):
        read_key({"first": "A"})


@pytest.mark.parametrize(
    ("rows", "header", "line"),
    [
        (["t,A,B,A,B,B,A", "t,A,B,,B,B,A"], None, "row 3: the answer to question 3 is missing"),
        (["t,A,B,A,B,B,A", "", "t,A,B,A,B,B"], None, "row 4: the answer to question 6 is missing"),
        (["t,A,B,X,B,B,A"], None, "row 2, question 3: 'X' is neither A nor B"),
        (['"two\nlines",A,B,A,B,B,A', "t,A,B,A,B,B,maybe"], None, "row 4, question 6: 'maybe'"),
        ([], None, "no participant"),
        (["t,A"], "Timestamp,Question 1", "row 1: no column for question 2, 3, 4, 5, 6"),
        (["t,A"], "Timestamp,Question 1,Question 1", "row 1: question 1 has two columns"),
        (["t"], ",".join(f"Question {i}" for i in range(1, 8)), "row 1: question 7 is not in the key"),
    ],
)
def test_a_file_that_is_wrong_names_the_row(
    tmp_path: Path, rows: list[str], header: str | None, line: str
) -> None:
    file = write(tmp_path / "answers.csv", rows, header)
    with pytest.raises(DataError) as raised:
        read_answers(file, KEY)
    assert line in str(raised.value)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, line in (
        ("empty.csv", b"", "is empty"),
        ("latin.csv", "Timestamp,Question 1\né,A\n".encode("latin-1"), "no text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=line):
            read_answers(tmp_path / name, KEY)
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "none.csv", KEY)


def test_other_peoples_files(tmp_path: Path) -> None:
    """Semicolons, a byte order mark, other columns, other headings, questions in another order."""
    file = tmp_path / "forms.csv"
    file.write_text(
        "Timestamp;Q2. Which?;Comment;question 1\r\n1.1.2022;b;fine;a \r\n;;;\r\n2.1.2022;A;;B\r\n",
        encoding="utf-8-sig",
    )
    assert read_answers(file, {1: "A", 2: "B"}).chosen == (("A", "B"), ("B", "A"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.csv"
    file.write_text(
        answers_csv(list(KEY), [("2026-01-01T10:00:00", row) for row, _ in ROWS]), encoding="utf-8"
    )
    assert file.read_text(encoding="utf-8").splitlines()[0] == (
        "Timestamp,Question 1,Question 2,Question 3,Question 4,Question 5,Question 6"
    )
    assert read_answers(file, KEY).chosen == tuple(tuple(row) for row, _ in ROWS)
