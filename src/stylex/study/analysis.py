"""What the answers to a study say: accuracy with honest intervals, chance, the published results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from stylex.errors import ConfigError, DataError
from stylex.evaluation.intervals import wilson
from stylex.study.answers import Key, read_answers, read_attributes, read_key

CHANCE = 0.5
"""Accuracy of who guesses."""

REPLICATION_QUESTIONS = 18
QUESTIONS_PER_ATTRIBUTE = 3
"""Of the replication's study: questions 1 to 3 are about its first attribute, and so on."""

RESAMPLES = 10_000
_BATCH = 1_000

Right = npt.NDArray[np.float64]
"""[participants, questions], 1 where the answer is right."""


@dataclass(frozen=True)
class Share:
    """An accuracy with the ends of its 95 % interval, and how that was computed."""

    estimate: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class ChanceTest:
    """A sign test: do more participants answer better than chance than worse? One-sided, exact.

    Participants are the unit, so that answers of one person need not be independent. `individually` counts
    those who are above chance by themselves (binomial test at 5 %).
    """

    above: int
    at: int
    below: int
    p_value: float
    individually: int


@dataclass(frozen=True)
class Published:
    """A published accuracy beside ours.

    Attributes:
        std: the ± that was published; participants, questions: None where the source does not say.
        difference: ours minus theirs.
        inside: whether their figure lies in our interval.
    """

    source: str
    accuracy: float
    std: float
    participants: int | None
    questions: int | None
    difference: float
    inside: bool


PUBLISHED = (
    ("Lang et al. 2021, age", 0.983, 0.037, None, None),
    ("Lang et al. 2021, gender", 0.96, 0.047, None, None),
    ("Bosch et al. 2022, FFHQ age", 0.918, 0.038, 61, 18),
)
"""Source, accuracy, ±, participants, questions; the replication's ± is over questions (recomputed)."""


@dataclass(frozen=True)
class Analysis:
    """Accuracy of a study's answers.

    Attributes:
        std_questions: sample standard deviation of the questions' accuracies (what the replication's ± is).
        std_participants: sample standard deviation of the participants' accuracies.
        interval: of the accuracy, respecting both.
        by_question, by_attribute: their intervals say how other participants would answer these very
            questions. The latter is empty where it is not known what a question is about.
        chance: participants against guessing.
        published: the comparison with the published results.
    """

    participants: int
    questions: int
    accuracy: float
    std_questions: float | None
    std_participants: float | None
    interval: Share
    by_question: dict[int, Share]
    by_attribute: dict[str, Share]
    chance: ChanceTest
    published: tuple[Published, ...]

    @property
    def std(self) -> float | None:
        """The ± of the published studies: over questions."""
        return self.std_questions

    @property
    def unclear(self) -> tuple[str, ...]:
        """Attributes that people could not tell from others: chance lies in or above their interval."""
        return tuple(name for name, share in self.by_attribute.items() if share.low <= CHANCE)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self)
        found["by_question"] = {str(number): asdict(share) for number, share in self.by_question.items()}
        found["published"] = [asdict(entry) for entry in self.published]
        found["unclear"] = list(self.unclear)
        return found


def analyse(
    answers_csv: str | Path,
    key: Key,
    *,
    attributes: Mapping[int, str] | None = None,
    seed: int = 0,
) -> Analysis:
    """Analyse answers: ours, or those of a study made elsewhere in the same layout.

    Args:
        answers_csv: a row for each participant: Timestamp, Question 1 …, with A or B.
        key: question → right choice, or a file with "1: A" or "1: A, attribute" a line.
        attributes: question → attribute; by default as the key says. Where it does not, three in a row of 18
            questions are about one attribute, as in the replication; of another number that is not known.
        seed: of the bootstrap.

    Raises:
        DataError: a file that is missing or damaged, or an answer that is missing or unknown, or attributes
            of some questions only in the key; names the row.
        ConfigError: attributes that leave out a question.
    """
    right_choices = read_key(key)
    answers = read_answers(answers_csv, right_choices)
    wanted = np.array([right_choices[number] for number in answers.questions])
    return analyse_right(
        (np.array(answers.chosen) == wanted).astype(np.float64),
        answers.questions,
        attributes=attributes or read_attributes(key) or None,
        seed=seed,
    )


def analyse_right(
    right: Right,
    questions: tuple[int, ...],
    *,
    attributes: Mapping[int, str] | None = None,
    seed: int = 0,
) -> Analysis:
    """As `analyse`, of answers that are marked already: [participants, questions], 1 where right."""
    if right.ndim != 2 or not right.size or right.shape[1] != len(questions):
        raise DataError(f"answers of shape {right.shape} for {len(questions)} questions")
    groups = _groups(questions, attributes)
    interval = two_way_interval(right, seed=seed)
    participants = right.mean(axis=1)
    return Analysis(
        participants=len(right),
        questions=len(questions),
        accuracy=float(right.mean()),
        std_questions=_std(right.mean(axis=0)),
        std_participants=_std(participants),
        interval=interval,
        by_question={
            number: _wilson(int(right[:, place].sum()), len(right)) for place, number in enumerate(questions)
        },
        by_attribute={
            name: _over_participants(right[:, places].mean(axis=1), seed) for name, places in groups.items()
        },
        chance=_against_chance(right),
        published=tuple(
            Published(
                source,
                theirs,
                std,
                people,
                asked,
                difference=float(right.mean()) - theirs,
                inside=interval.low <= theirs <= interval.high,
            )
            for source, theirs, std, people, asked in PUBLISHED
        ),
    )


def two_way_interval(
    right: Right, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Share:
    """Interval of the accuracy by a two-way cluster bootstrap, percentiles.

    Participants and questions are both drawn with replacement, each for itself, and an answer counts as often
    as its participant times its question was drawn (Owen 2007, "The pigeonhole bootstrap"): other people and
    other questions could have come. Slightly too wide rather than too narrow. With one participant (or one
    question) only the other is drawn. Where all answers are alike nothing can be drawn; then it is Wilson's
    interval with the smaller of the two counts.
    """
    people, questions = right.shape
    if np.ptp(right) == 0:
        least = min(people, questions) if min(people, questions) > 1 else max(people, questions)
        return _wilson(int(right.flat[0]) * least, least)
    random = np.random.default_rng(seed)
    means = []
    for first in range(0, resamples, _BATCH):
        count = min(_BATCH, resamples - first)
        by_person = random.multinomial(people, np.full(people, 1 / people), count)
        by_question = random.multinomial(questions, np.full(questions, 1 / questions), count)
        means.append(((by_person @ right) * by_question).sum(axis=1) / right.size)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Share(float(right.mean()), float(low), float(high), "two-way bootstrap")


def _groups(questions: tuple[int, ...], attributes: Mapping[int, str] | None) -> dict[str, list[int]]:
    """Attribute → columns."""
    found: dict[str, list[int]] = {}
    if attributes is None:
        if len(questions) != REPLICATION_QUESTIONS:
            return found
        for place in range(len(questions)):
            found.setdefault(f"attribute {place // QUESTIONS_PER_ATTRIBUTE + 1}", []).append(place)
        return found
    for place, number in enumerate(questions):
        if number not in attributes:
            raise ConfigError(f"no attribute for question {number}; name one for each question")
        found.setdefault(attributes[number], []).append(place)
    return found


def _over_participants(values: npt.NDArray[np.float64], seed: int) -> Share:
    """Mean over participants, whole participants drawn; Wilson's where all are alike."""
    if np.ptp(values) == 0:
        found = _wilson(round(float(values.sum())), len(values))
        return Share(float(values.mean()), found.low, found.high, found.method)
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    low, high = np.percentile(counts @ values / len(values), [2.5, 97.5])
    return Share(float(values.mean()), float(low), float(high), "bootstrap over participants")


def _against_chance(right: Right) -> ChanceTest:
    count = right.shape[1]
    correct = right.sum(axis=1)
    above, below = int((correct > CHANCE * count).sum()), int((correct < CHANCE * count).sum())
    p_value = stats.binomtest(above, above + below, alternative="greater").pvalue if above + below else 1.0
    alone = [stats.binomtest(int(n), count, CHANCE, alternative="greater").pvalue < 0.05 for n in correct]
    return ChanceTest(above, len(right) - above - below, below, float(p_value), int(np.sum(alone)))


def _wilson(successes: int, n: int) -> Share:
    found = wilson(successes, n)
    return Share(found.estimate, found.low, found.high, "wilson")


def _std(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
