"""What a study asks: its settings, its questions, and the form that each participant gets. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Side = Literal["A", "B"]

Kind = Literal["practice", "begin", "question", "attention", "naming", "control"]

PER_NAMING = 4
"""Animations shown when a participant is asked for a name."""

_Random = np.random.Generator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudySettings(_Frozen):
    """How a study is made.

    Attributes:
        attributes, questions: attributes asked about, and questions about each.
        order: "random" gives every participant an order, sides and distractors of their own; "fixed" gives
            all the same form, as the replication's study did.
        seed: of everything that is drawn.
        attention: questions whose answer is one of the pictures above.
        naming: ask at the end what each attribute is, in a few words (the paper's second study).
        control: ask at the end once more about each attribute, with still images in place of animations.
        target: class whose attributes are asked about; by default the best of all classes.
    """

    attributes: int = Field(6, ge=2, le=40)
    questions: int = Field(3, ge=1, le=20)
    order: Literal["random", "fixed"] = "random"
    seed: int = Field(0, ge=0)
    attention: int = Field(2, ge=0, le=10)
    naming: bool = False
    control: bool = False
    target: str | None = None
    title: str = Field("What changes?", min_length=1, max_length=120)
    consent: str | None = Field(None, max_length=20_000)


class StudyAttribute(_Frozen):
    """An attribute of the run, and the animations that show it (see `material`), best first.

    `alike`: places of the study's attributes that change images in the same way, or the opposite one. Nobody
    could tell them apart, so they are no distractors of each other as long as there are others.
    """

    target: str
    rank: int
    direction: int
    coordinate: int
    shown: tuple[str, ...]
    alike: tuple[int, ...] = ()


class StudyQuestion(_Frozen):
    """Question `number` of the study: two animations of an attribute, and a third one to be recognised.

    `distractor` and `key`, the side of the right answer, are those of the fixed form, and of the CSV.
    """

    number: int
    attribute: int
    references: tuple[str, str]
    same: str
    distractor: str
    key: Side


class TestImagesUsed(_Frozen):
    """The test images that a study was drawn from, in order; see `evaluation.measure.MeasuredImages`."""

    __test__ = False

    source: str | None
    sha256: str | None
    names: tuple[str, ...]


class Design(_Frozen):
    """A whole study; animations are named, not numbered.

    `images` says which image each animation shows: its place in the names of `drawn_from`. That is None in a
    study of an earlier version, which did not keep them.
    """

    format: int = 1
    settings: StudySettings
    attributes: tuple[StudyAttribute, ...]
    questions: tuple[StudyQuestion, ...]
    practice: StudyQuestion
    images: dict[str, int]
    drawn_from: TestImagesUsed | None = None

    @property
    def key(self) -> dict[int, str]:
        """Question → right choice, in the exported CSV."""
        return {question.number: question.key for question in self.questions}

    @property
    def control_key(self) -> dict[int, str]:
        """The same of the control block: its questions count from 1, one for each attribute in turn."""
        return {
            place + 1: next(entry.key for entry in self.questions if entry.attribute == place)
            for place in range(len(self.attributes))
        }

    def by_question(self, names: Sequence[str], *, control: bool = False) -> dict[int, str]:
        """Question, of the study or of its control block → which of the attributes' names is its own."""
        if control:
            return dict(enumerate(names, 1))
        return {question.number: names[question.attribute] for question in self.questions}

    def owner(self, animation: str) -> int:
        """The attribute that an animation shows."""
        return next(place for place, entry in enumerate(self.attributes) if animation in entry.shown)


class Step(_Frozen):
    """One page of a participant's form. `a` and `b` are the animations to choose from, `right` the side."""

    kind: Kind
    question: int | None = None
    attribute: int | None = None
    references: tuple[str, ...] = ()
    a: str | None = None
    b: str | None = None
    right: Side | None = None


def needed_images(settings: StudySettings) -> int:
    """Images on which an attribute must be shown: three a question, three for practice."""
    return 3 * settings.questions + 3


def make_questions(
    settings: StudySettings, attributes: Sequence[StudyAttribute], images: Mapping[str, int]
) -> tuple[tuple[StudyQuestion, ...], StudyQuestion]:
    """The questions, in the order of the attributes, and a practice question on pictures of its own.

    The four animations of a question show four different images; no animation occurs twice as a reference or
    as the right answer.
    """
    random = np.random.default_rng([settings.seed, 0])
    found = []
    practice: StudyQuestion | None = None
    for place, entry in enumerate(attributes):
        order = [entry.shown[i] for i in random.permutation(len(entry.shown))]
        for repeat in range(settings.questions):
            first, second, same = order[3 * repeat : 3 * repeat + 3]
            used = [images[name] for name in (first, second, same)]
            distractor = _distractor(random, attributes, place, images, used)
            side = _side(random)
            number = place * settings.questions + repeat + 1
            found.append(
                StudyQuestion(
                    number=number,
                    attribute=place,
                    references=(first, second),
                    same=same,
                    distractor=distractor,
                    key=side,
                )
            )
        if place == 0:
            first, second, same = order[-3:]
            used = [images[name] for name in (first, second, same)]
            distractor = _distractor(random, attributes, 0, images, used)
            practice = StudyQuestion(
                number=0, attribute=0, references=(first, second), same=same, distractor=distractor, key="A"
            )
    assert practice is not None
    return tuple(found), practice


def make_form(design: Design, participant: int) -> tuple[Step, ...]:
    """The pages that a participant sees, in order; the same for the same number, and for all where fixed."""
    settings = design.settings
    fixed = settings.order == "fixed"
    random = np.random.default_rng([settings.seed, 1] if fixed else [settings.seed, 2, participant])
    places = range(len(design.questions)) if fixed else random.permutation(len(design.questions)).tolist()
    main = [_question(design, design.questions[place], random, fixed) for place in places]
    checked = sorted(
        random.choice(len(main), min(settings.attention, len(main)), replace=False), reverse=True
    )
    for place in checked:
        main.insert(int(place), _attention(design, random))
    end: list[Step] = []
    order = range(len(design.attributes)) if fixed else random.permutation(len(design.attributes)).tolist()
    if settings.control:
        for place in order:
            first = next(entry for entry in design.questions if entry.attribute == place)
            step = _question(design, first, random, fixed)
            end.append(step.model_copy(update={"kind": "control"}))
    if settings.naming:
        for place in order:
            shown = design.attributes[place].shown[:PER_NAMING]
            end.append(Step(kind="naming", attribute=place, references=shown))
    practice = _question(design, design.practice, random, fixed).model_copy(update={"kind": "practice"})
    return (practice, Step(kind="begin"), *main, *end)


def _question(design: Design, question: StudyQuestion, random: _Random, fixed: bool) -> Step:
    distractor, side = question.distractor, question.key
    if not fixed:
        used = [design.images[name] for name in (*question.references, question.same)]
        distractor = _distractor(random, design.attributes, question.attribute, design.images, used)
        side = _side(random)
    sides = {side: question.same, "B" if side == "A" else "A": distractor}
    return Step(
        kind="question",
        question=question.number,
        attribute=question.attribute,
        references=question.references,
        a=sides["A"],
        b=sides["B"],
        right=side,
    )


def _attention(design: Design, random: _Random) -> Step:
    """One of the choices is one of the references: who looks cannot miss it."""
    question = design.questions[random.integers(len(design.questions))]
    used = [design.images[name] for name in question.references]
    other = _distractor(random, design.attributes, question.attribute, design.images, used)
    same, side = question.references[random.integers(2)], _side(random)
    a, b = (same, other) if side == "A" else (other, same)
    return Step(
        kind="attention",
        attribute=question.attribute,
        references=question.references,
        a=a,
        b=b,
        right=side,
    )


def _side(random: _Random) -> Side:
    return "A" if random.integers(2) == 0 else "B"


def _distractor(
    random: _Random,
    attributes: Sequence[StudyAttribute],
    place: int,
    images: Mapping[str, int],
    used: Sequence[int],
) -> str:
    """An animation of another attribute on another image; each is as likely, but for those `alike`."""
    same = {place, *attributes[place].alike}
    others = [entry for number, entry in enumerate(attributes) if number not in same]
    others = others or [entry for number, entry in enumerate(attributes) if number != place]
    for number in random.permutation(len(others)):
        free = [name for name in others[number].shown if images[name] not in used]
        if free:
            return str(free[random.integers(len(free))])
    raise AssertionError("material gives every attribute more images than a question uses")
