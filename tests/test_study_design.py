from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

import study_samples
from stylex.study.design import Design, StudySettings, make_form, make_questions


@pytest.fixture(scope="module")
def design() -> Design:
    return study_samples.design(attributes=6, questions=3, attention=2, control=True, naming=True)


def test_every_question_shows_three_times_one_attribute_and_once_another(design: Design) -> None:
    assert [question.number for question in design.questions] == list(range(1, 19))
    used: list[str] = []
    for question in (*design.questions, design.practice):
        shown = [*question.references, question.same]
        assert {design.owner(name) for name in shown} == {question.attribute}
        assert design.owner(question.distractor) != question.attribute
        images = [design.images[name] for name in (*shown, question.distractor)]
        assert len(set(images)) == 4
        used += shown
    assert len(set(used)) == len(used)
    assert set(design.key.values()) == {"A", "B"}


def test_forms_hold_every_question_once_and_what_else_was_asked_for(design: Design) -> None:
    for number in range(1, 30):
        form = make_form(design, number)
        assert [step.kind for step in form[:2]] == ["practice", "begin"]
        assert sorted(step.question for step in form if step.kind == "question") == list(range(1, 19))
        assert Counter(step.kind for step in form) == {
            "practice": 1,
            "begin": 1,
            "question": 18,
            "attention": 2,
            "control": 6,
            "naming": 6,
        }
        for step in form:
            if step.right is None:
                continue
            same, other = (step.a, step.b) if step.right == "A" else (step.b, step.a)
            assert design.owner(same) == step.attribute != design.owner(other)
            images = {design.images[name] for name in step.references}
            assert design.images[other] not in images | {design.images[same]}
            assert (same in step.references) == (step.kind == "attention")


def test_what_nobody_could_tell_apart_is_not_asked_for(design: Design) -> None:
    """Attributes 0, 2 and 3 do the same: they are no distractors of each other, the rest is as before."""
    same = (0, 2, 3)

    def marked(others: tuple[int, ...]) -> Design:
        entries = [
            entry.model_copy(update={"alike": tuple(other for other in others if other != number)})
            if number in others
            else entry
            for number, entry in enumerate(design.attributes)
        ]
        questions, practice = make_questions(design.settings, entries, design.images)
        changed = {"attributes": tuple(entries), "questions": questions, "practice": practice}
        return design.model_copy(update=changed)

    asked = marked(same)
    for question in (*asked.questions, asked.practice):
        owner = asked.owner(question.distractor)
        assert not {owner, question.attribute} <= set(same)
    seen = set()
    for number in range(1, 40):
        for step in make_form(asked, number):
            if step.right is not None and step.attribute is not None:
                owner = asked.owner(step.b if step.right == "A" else step.a)
                assert not {owner, step.attribute} <= set(same)
                seen.add((step.attribute, owner))
    assert {owner for attribute, owner in seen if attribute == 0} == {1, 4, 5}
    assert {owner for attribute, owner in seen if attribute == 1} == {0, 2, 3, 4, 5}
    everything = marked(tuple(range(6)))  # nothing else is left to ask
    assert {everything.owner(question.distractor) for question in everything.questions} > {0, 1}


def test_order_sides_and_distractors_are_drawn_for_each_from_the_seed(design: Design) -> None:
    forms = [
        [step for step in make_form(design, number) if step.kind == "question"] for number in range(1, 60)
    ]
    assert make_form(design, 7) == make_form(design, 7)
    assert len({tuple(step.question for step in form) for form in forms}) == len(forms)
    first = [next(step for step in form if step.question == 1) for form in forms]
    assert 15 < sum(step.right == "A" for step in first) < 45
    owners = Counter(design.owner(step.b if step.right == "A" else step.a) for step in first)
    assert set(owners) == {1, 2, 3, 4, 5}
    assert {step.references for step in first} == {design.questions[0].references}
    other = study_samples.design(attributes=6, questions=3, seed=5)
    assert make_form(other, 7) != make_form(design, 7)


def test_the_fixed_form_is_the_same_for_all_and_as_the_key_says() -> None:
    design = study_samples.design(attributes=6, questions=3, order="fixed", attention=2)
    form = make_form(design, 1)
    assert all(make_form(design, number) == form for number in range(2, 9))
    main = [step for step in form if step.kind == "question"]
    assert [step.question for step in main] == list(range(1, 19))
    assert {step.question: step.right for step in main} == design.key
    for step, question in zip(main, design.questions, strict=True):
        assert (step.b if step.right == "A" else step.a) == question.distractor


def test_a_design_survives_its_file(design: Design) -> None:
    assert Design.model_validate(design.model_dump(mode="json")) == design


@pytest.mark.parametrize("wrong", [{"attributes": 1}, {"questions": 0}, {"order": "mixed"}, {"colour": 1}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StudySettings.model_validate(wrong)
