"""The study's protocol against a slow reading of it, on the linear model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import problems
from stylex.attfind.selection import invert
from stylex.data.images import ImageSet
from stylex.errors import DataError
from stylex.evaluation.intervals import wilson
from stylex.evaluation.study_protocol import StudySettings, _Draws, study_protocol
from stylex.stylespace import StyleSpace

SMALL = StudySettings(discovery=30, latents=25, repeats=4, count=3, wu_threshold=0.55)
TINY = StudySettings(discovery=12, latents=6, repeats=2, count=2)


def pictures(count: int = 60, seed: int = 0) -> ImageSet:
    """Images of the linear generator, rounded to 256 values; log-odds around 0."""
    random = np.random.default_rng(seed)
    rows = random.uniform(-0.4, 0.4, (count, 6))
    drawn = problems.linear_model().synthesise(problems.linear_styles(rows.tolist()))
    images = ((drawn.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return ImageSet(images, tuple(map(str, range(count))), None, None, {})


def test_against_a_slow_reading() -> None:
    model, training = problems.linear_model(batch_size=7), pictures()
    found = study_protocol(model, training, SMALL, seed=2)
    attfind = next(figure for figure in found.figures if figure.method == "AttFind")
    # Raw logits: coordinates 3, 2 and 5 have the largest weights; "no" is the first class.
    assert {coordinate for _, coordinate in attfind.changes} == {3, 2, 5}
    assert set(attfind.changes) == {(0, 3), (1, 2), (0, 5)}
    draws = _Draws(model, training, 2)
    draws.take(SMALL.discovery)
    draws.shuffle()
    rates, originals, seen = [], [], {}
    weights = torch.tensor(problems.WEIGHTS)
    for _ in range(SMALL.repeats):
        styles, logits, original, names = draws.take(SMALL.latents)
        space = StyleSpace.from_styles(problems.LAYOUT, styles)
        flips = []
        for row in range(len(styles)):
            first = bool(logits[row, 0] >= logits[row, 1])
            changes = invert(attfind.changes) if first else attfind.changes
            moved = space.shift(styles[row : row + 1], changes)
            after = float(moved[0] @ weights) > 0
            flips.append(after == first)
            originals.append((original[row].argmax() == 1) != after)  # type: ignore[index]
            seen.setdefault(int(names[row]), flips[-1])
        rates.append(np.mean(flips))
    assert attfind.mean == pytest.approx(np.mean(rates))
    assert attfind.std == pytest.approx(np.std(rates))
    assert attfind.original is not None
    assert attfind.original[0] == pytest.approx(np.mean(originals))
    assert attfind.interval == wilson(sum(seen.values()), len(seen))
    assert found.distinct == len(seen)
    assert attfind.confirmed is None


def test_draws_are_shuffled_training_images_gone_through_again() -> None:
    draws = _Draws(problems.linear_model(), pictures(20), 0)
    names = np.concatenate([draws.take(15)[3] for _ in range(4)])
    assert sorted(names[:20]) == sorted(names[20:40]) == sorted(names[40:]) == list(range(20))
    assert names[:20].tolist() != list(range(20))


def test_discovery_images_are_not_excluded_from_the_tests() -> None:
    """With images enough for both: tests are the first of all in a new order, which discovery's are among."""
    model, training = problems.linear_model(batch_size=64), pictures(80)
    settings = SMALL.model_copy(update={"latents": 10, "repeats": 4})
    found = study_protocol(model, training, settings, seed=2)
    assert found.distinct == len(set(found.measured.names)) == 40
    discovery = {training.names[row] for row in _Draws(model, training, 2).take(settings.discovery)[3]}
    assert 5 < len(discovery & set(found.measured.names)) < 25  # 15 of 30 by chance
    whole = study_protocol(model, training, settings.model_copy(update={"latents": 20}), seed=2)
    assert set(whole.measured.names) == set(training.names)


def test_which_images_were_tested() -> None:
    model, training = problems.linear_model(batch_size=64), pictures()
    found = study_protocol(model, training, SMALL, seed=2).measured
    rows = [training.names.index(name) for name in found.names]
    assert found.sha256 == hashlib.sha256(training.images[rows].tobytes()).hexdigest()
    sampled = study_protocol(problems.tiny_model("stylegan2"), None, TINY).measured
    assert (sampled.sha256, sampled.names[0], len(sampled.names)) == (None, "sample 12", 12)


def test_wu_is_ranked_for_the_first_class_and_inverted() -> None:
    found = study_protocol(problems.linear_model(batch_size=64), pictures(), SMALL, seed=2)
    wu = next(figure for figure in found.figures if figure.method == "Wu et al.")
    assert (0, 3) in wu.changes  # what "no" images have: a low coordinate 3
    none = study_protocol(
        problems.linear_model(batch_size=64), pictures(), SMALL.model_copy(update={"wu_threshold": 0.999})
    )
    assert [figure.method for figure in none.figures] == ["AttFind"]


def test_a_judge_confirms() -> None:
    model = problems.linear_model(batch_size=64)
    same = study_protocol(model, pictures(), SMALL, judge=problems.two_classes()).figures[0]
    assert same.confirmed is not None
    assert same.confirmed.share == 1
    content = study_protocol(model, pictures(), SMALL, judge=problems.two_classes()).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_sampled_latents_are_fresh_each_time() -> None:
    model = problems.tiny_model("stylegan2")
    found = study_protocol(model, None, TINY)
    assert found.distinct == 12
    assert all(figure.original is None for figure in found.figures)
    draws = _Draws(model, None, 0)
    assert not torch.allclose(draws.take(4)[0], draws.take(4)[0])


def test_the_defaults_are_the_studys() -> None:
    given = StudySettings()
    assert (given.discovery, given.latents, given.repeats, given.count) == (400, 1000, 10, 10)
    assert (given.max_image_effect, given.wu_threshold) == (2.5, 0.9)


def test_bad_input() -> None:
    model = problems.linear_model()
    with pytest.raises(DataError, match="there are none"):
        study_protocol(model, pictures().select([]), SMALL)
    names: Any = ("a", "b", "c")
    three = problems.linear_classifier([[0.0] * 3] * 8, [0, 0, 0], names)
    with pytest.raises(DataError, match="two classes that exclude each other, not a, b, c"):
        study_protocol(replace(model, classifier=three), pictures(), SMALL)
    constant = replace(model, classifier=problems.two_classes(bias=-90.0))
    with pytest.raises(DataError, match="none of 30 latents shows 'yes'"):
        study_protocol(constant, pictures(), SMALL)
