"""Figures of counterfactuals worked out on the linear model, and the folders that others' scripts read."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import problems
from stylex.attfind import Discovery, find_attributes, sweep
from stylex.cli.counterfactuals import counterfactuals
from stylex.data.images import ImageSet
from stylex.errors import ConfigError, DataError, RunError
from stylex.evaluation.counterfactual_metrics import answers, measure_counterfactuals
from stylex.evaluation.dime_layout import export_dime
from stylex.evaluation.intervals import wilson


def explainer(classifier: Any = None) -> Any:
    model = problems.linear_model(classifier, batch_size=16)
    rows = [[0, 0, 0, -0.5, 0, 0]] * 3 + [[0, 0, 0, 0.5, 0, 0]] * 3
    styles = problems.linear_styles(rows)
    logits = model.classify(model.synthesise(styles))
    space = problems.unit_space()
    after = sweep(model, space, styles).numpy()
    activation = model.classifier.activation
    findings = find_attributes(
        logits.numpy(), after, space, model.class_names, problems.everything(), activation
    )
    discovery = Discovery(styles, styles, logits, tuple("abcdef"), space)
    return SimpleNamespace(model=model, discovery=discovery, findings=findings, class_names=model.class_names)


def pictures(rows: Any, labels: Any = None) -> ImageSet:
    drawn = problems.linear_model().synthesise(problems.linear_styles(rows))
    images = ((drawn.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    names = tuple(f"face/{number}.png" for number in range(len(rows)))
    return ImageSet(
        images,
        names,
        None if labels is None else np.array(labels),
        None if labels is None else ("no", "yes"),
        {},
    )


class Pixels(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).square().mean(dim=(1, 2, 3))


ROWS = [[0, 0, 0, -0.5, 0, 0]] * 5 + [[0, 0, 0, 0.3, 0, 0]] * 5 + [[-1, 0, 1, -1, 0, -2]]
"""Log-odds −1.5 and 0.9: one attribute each; about −7: coordinate 3 gives 6, and another one must move."""


def measured(found: Any, images: ImageSet, **given: Any) -> Any:
    return measure_counterfactuals(
        explainer(),
        images,
        found,
        perceptual=("pixels", Pixels()),
        extractor=problems.PooledPixels(),
        **given,
    )


def test_figures_by_hand() -> None:
    images = pictures(ROWS)
    found = list(answers(explainer(), images))
    assert [each.counterfactual.target for each in found] == ["yes"] * 5 + ["no"] * 5 + ["yes"]
    figures = measured(found, images, judge=problems.two_classes())
    assert figures.validity == wilson(11, 11)
    assert figures.by_reconstruction == 0
    assert figures.used == {1: 10, 2: 1}
    assert figures.sparsity.estimate == pytest.approx(12 / 11)
    edits = [each.counterfactual for each in found]
    l1 = [np.abs(e.original.astype(float) - e.edited).mean() / 127.5 for e in edits]  # type: ignore[union-attr]
    assert figures.l1.estimate == pytest.approx(np.mean(l1), abs=1e-5)
    squared = [((e.reconstruction.astype(float) - e.edited) ** 2).mean() / 127.5**2 for e in edits]
    assert figures.edit_perceptual.estimate == pytest.approx(np.mean(squared), abs=1e-6)
    assert figures.judge_validity.estimate > 0.8
    assert set(figures.realism) == {"no", "yes"}
    assert (figures.realism["yes"].generated, figures.realism["yes"].reals) == (6, 5)
    content = figures.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_what_does_not_flip_counts_against_validity() -> None:
    stubborn = [[0, 0, 0, -0.5, 0, 0]] * 3 + [[0, 0, 0, -0.5, 0, 0]]
    given = explainer()
    images = pictures(stubborn)
    found = list(answers(given, images))
    given.findings.attributes["yes"] = ()
    found += list(answers(given, images, count=2))
    figures = measured(found, images)
    assert figures.validity == wilson(4, 6)
    assert figures.judge_validity is None
    nothing = measured(found[4:], images)
    assert (nothing.validity.estimate, nothing.l1, nothing.sparsity, nothing.realism) == (0, None, None, {})


def flipped_by_the_reconstruction(answer: Any) -> Any:
    """The same image, had its reconstruction alone reached the target: nothing is changed in it."""
    one = answer.counterfactual
    there = dataclasses.replace(one, already=True, flipped=True, changes=(), edited=one.reconstruction)
    return dataclasses.replace(answer, counterfactual=there)


def test_what_the_reconstruction_flipped_is_counted_apart() -> None:
    images = pictures(ROWS)
    found = list(answers(explainer(), images))
    alone = [flipped_by_the_reconstruction(each) for each in found[:5]]
    figures, edited = measured([*alone, *found[5:]], images), measured(found[5:], images)
    assert figures.by_reconstruction == 5
    assert (figures.validity, figures.edit_validity) == (wilson(11, 11), wilson(6, 6))
    assert figures.used == {1: 5, 2: 1}
    for name in ("sparsity", "l1", "perceptual", "edit_l1", "edit_perceptual"):
        assert getattr(figures, name) == getattr(edited, name)
    assert figures.sparsity.estimate == pytest.approx(7 / 6)
    nothing = measured(alone, images)
    assert (nothing.validity.estimate, nothing.edit_validity, nothing.sparsity) == (1, None, None)


def test_classes_without_a_distribution_are_named(caplog: pytest.LogCaptureFixture) -> None:
    images = pictures(ROWS)
    found = list(answers(explainer(), images))
    assert set(measured(found[:8], images).realism) == {"yes"}
    assert "realism towards 'no' is left out: 3 counterfactuals and 6 real images" in caplog.text
    assert "towards 'yes'" not in caplog.text


def test_a_folder_that_cannot_take_the_export_fails_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylex.explainer.open_explainer", lambda *_: pytest.fail("work was begun"))
    run = problems.save_tiny_run(tmp_path / "run", problems.tiny_model())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(RunError, match="not an empty folder"):
        counterfactuals(run.path, export=tmp_path / "out")
    with pytest.raises(ConfigError, match="experiment's name"):
        counterfactuals(run.path, export=tmp_path / "new", name="../x")


def test_targets() -> None:
    images = pictures(ROWS)
    towards = list(answers(explainer(), images, target="yes"))
    assert [each.row for each in towards] == [0, 1, 2, 3, 4, 10]
    assert [each.row for each in answers(explainer(), images, count=3)] == [0, 5, 10]
    three = problems.linear_classifier(
        [[0.0] * 3] * 5 + [[-1.0, 1.0, 0.2]] + [[0.0] * 3] * 2, [0, 0, -0.2], ("no", "yes", "maybe")
    )
    given = explainer(three)
    assert next(answers(given, pictures(ROWS[:1]))).counterfactual.target == "maybe"
    with pytest.raises(ConfigError, match="no class 'perhaps'"):
        list(answers(explainer(), images, target="perhaps"))
    with pytest.raises(DataError, match="no images"):
        list(answers(explainer(), images.select([])))
    with pytest.raises(DataError, match="nothing to measure"):
        measured([], images)
    labels = problems.linear_classifier(
        [[1.0, 0.0]] + [[0.0, 0.0]] * 4 + [[0.0, 3.0]] + [[0.0, 0.0]] * 2,
        [-0.1, 0],
        ("hat", "tie"),
        "sigmoid",
    )
    with pytest.raises(ConfigError, match="name one with --target"):
        list(
            answers(SimpleNamespace(model=problems.linear_model(labels), class_names=("hat", "tie")), images)
        )  # type: ignore[arg-type]


def test_the_folders_of_dime_and_ace(tmp_path: Path) -> None:
    """Read as those scripts do: for each CL and CF, images of Results and of Original by the same name."""
    images = pictures(ROWS, labels=[0] * 4 + [1] + [1] * 6)
    given = explainer()
    found = list(answers(given, images))
    given.findings.attributes["yes"] = ()
    found += list(answers(given, images, target="yes", count=1))
    assert export_dime(found, tmp_path / "out", "exp-1") == 12
    pairs = {}
    for group in ("CC", "IC"):
        for end in ("CCF", "ICF"):
            folder = tmp_path / "out" / "Results" / "exp-1" / group / end / "CF"
            for name in os.listdir(folder):
                original = (
                    tmp_path / "out" / "Original" / ("Correct" if group == "CC" else "Incorrect") / name
                )
                pairs[name] = (
                    group,
                    end,
                    np.asarray(Image.open(original)),
                    np.asarray(Image.open(folder / name)),
                )
    assert len(pairs) == 12
    assert sum(group == "IC" for group, *_ in pairs.values()) == 2  # labels 4 and 10 are wrong
    assert [end for _, end, *_ in pairs.values()].count("ICF") == 1
    with (tmp_path / "out" / "images.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row, each in zip(rows, found, strict=True):
        assert row["image"] == each.counterfactual.name
        assert np.array_equal(pairs[row["file"]][2], each.counterfactual.original)
        assert np.array_equal(pairs[row["file"]][3], each.counterfactual.edited)
    assert rows[4]["label"] == "yes"
    assert rows[4]["class"] == "no"
    with pytest.raises(RunError, match="not an empty folder"):
        export_dime(found, tmp_path / "out")
    with pytest.raises(ConfigError, match="experiment's name"):
        export_dime(found, tmp_path / "other", "../x")
    bare = pictures(ROWS[:1])
    export_dime(list(answers(explainer(), bare)), tmp_path / "bare")
    assert os.listdir(tmp_path / "bare" / "Original" / "Correct") == ["000000.png"]
    assert os.listdir(tmp_path / "bare" / "Results" / "stylex" / "IC" / "ICF" / "CF") == []
