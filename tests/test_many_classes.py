"""More than two classes: one against one, a target for each image, a readable report of ten."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import problems
import report_samples
import training_problems
from stylex.attfind import Attribute, search, sweep
from stylex.attfind.pairs import find_pairs, load_pairs
from stylex.attfind.search import fingerprint
from stylex.cli.attfind import describe_pairs
from stylex.cli.explain import _goals
from stylex.config import AttFindSettings
from stylex.data.images import ImageSet
from stylex.errors import ConfigError, RunError
from stylex.explainer import Explainer
from stylex.report.compose import AMOUNTS, amounts_for
from stylex.report.html import percent, render_html, signed
from stylex.report.pairs import pair_tables
from stylex.run import Run
from stylex.stylespace import DIRECTIONS, StyleSpace

NAMES = ("a", "b", "c")


def model() -> Any:
    """Logits of a, b, c: styles 0 to 5 count for one class each, twice."""
    matrix = [[float(style % 3 == k) for k in range(3)] for style in range(8)]
    return problems.linear_model(problems.linear_classifier(matrix, (0.0, 0.0, 0.0), NAMES))


def styles() -> torch.Tensor:
    random = np.random.default_rng(0)
    return problems.linear_styles(random.uniform(-1, 1, (24, 6)).tolist())


def searched() -> tuple[Any, Any, StyleSpace]:
    found, space = model(), problems.unit_space()
    before = found.classify(found.synthesise(styles())).numpy()
    return before, sweep(found, space, styles()).numpy(), space


def test_pairs_look_at_two_classes_only() -> None:
    before, after, space = searched()
    settings = AttFindSettings(
        unstable_threshold=None, count=6, method="independent", independent_threshold=0.05
    )
    pairs = find_pairs(before, after, space, NAMES, settings)
    assert set(pairs) == set(itertools.permutations(NAMES, 2))
    positions = space.positions.tolist()
    for (source, target), attributes in pairs.items():
        assert attributes
        speaks_for = {NAMES[positions[entry.coordinate] % 3] for entry in attributes}
        assert speaks_for == {source, target}  # the third class has no say
        for entry in attributes:
            raises = NAMES[positions[entry.coordinate] % 3] == target
            assert entry.direction == int(raises)
            assert entry.target == target
            assert entry.images == int((before.argmax(axis=1) == NAMES.index(source)).sum())


def test_the_effect_of_a_pair_by_hand() -> None:
    before, after, space = searched()
    settings = AttFindSettings(unstable_threshold=None, count=1)
    entry = find_pairs(before, after, space, NAMES, settings)["a", "b"][0]
    rows = before.argmax(axis=1) == 0
    moved = after[rows, entry.direction, entry.coordinate]
    change = (moved[:, 1] - moved[:, 0]) - (before[rows, 1] - before[rows, 0])
    assert entry.effect == pytest.approx(float(change.mean()), abs=1e-5)
    assert entry.flipped == pytest.approx(float((moved.argmax(axis=1) == 1).mean()))


def test_a_class_without_images_has_no_pairs() -> None:
    before, after, space = searched()
    keep = before.argmax(axis=1) != 2
    pairs = find_pairs(before[keep], after[keep], space, NAMES, AttFindSettings(unstable_threshold=None))
    assert {source for source, _ in pairs} == {"a", "b"}


def test_a_report_names_both_classes_of_a_pair() -> None:
    before, after, space = searched()
    pairs = find_pairs(before, after, space, NAMES, AttFindSettings(unstable_threshold=None, count=2))
    for name, table in zip(NAMES, pair_tables(pairs, 1), strict=True):
        images = int((before.argmax(axis=1) == NAMES.index(name)).sum())
        assert table.title == f"From “{name}”, {images} images searched"
        others = [other for other in NAMES if other != name]
        for row, other in zip(table.rows, others, strict=True):
            best = pairs[name, other][0]
            what = f"{DIRECTIONS[best.direction]} {best.layer} channel {best.channel}"
            assert row == (f"{name} → {other}", "1", what, percent(best.flipped), signed(best.effect))
    assert [len(table.rows) for table in pair_tables(pairs, 2)] == [4, 4, 4]


def test_a_class_from_which_nothing_leads_has_no_table() -> None:
    entry = Attribute("b", 1, 0, 3, "4px.conv1", 4, 3, 0.5, 0.1, 0.25, 8)
    tables = pair_tables({("a", "b"): (entry,), ("b", "a"): ()}, 3)
    assert [table.title for table in tables] == ["From “a”, 8 images searched"]
    assert tables[0].rows == (("a → b", "1", "lower 4px.conv1 channel 3", percent(0.25), "+0.50"),)
    assert describe_pairs({("a", "b"): (entry,), ("b", "a"): ()}) == [
        "from 'a' to 'b' (8 images searched)",
        "   1. attribute 1 (4px.conv1 channel 3): effect +0.50, flips 25% alone",
    ]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Run, Explainer]:
    tiny = problems.tiny_model()
    made = problems.save_tiny_run(tmp_path / "run", tiny)
    images = training_problems.images(24)
    findings = search(made, tiny, images, problems.everything(count=3), one_vs_one=True)
    from stylex.attfind import load_discovery

    return made, Explainer(made, tiny, load_discovery(made, tiny), findings)


def test_pairs_are_kept_with_the_run_until_it_is_searched_anew(run: tuple[Run, Explainer]) -> None:
    made, explainer = run
    found = explainer.attributes("b", against="a")
    assert found
    assert {entry.target for entry in found} == {"b"}
    assert load_pairs(made, fingerprint(explainer.findings))["a", "b"] == tuple(found)
    assert load_pairs(made, "another search") == {}
    with pytest.raises(ConfigError, match="no class 'z'"):
        explainer.attributes("b", against="z")
    with pytest.raises(RunError, match=r"no attributes from 'b' to 'b'; 'stylex attfind .* --one-vs-one'"):
        explainer.attributes("b", against="b")
    (made.path / "pairs.json").write_text('{"pairs": 3}')
    with pytest.raises(RunError, match="damaged"):
        load_pairs(made, "x")


def test_a_pair_shows_the_names_that_coordinates_were_given(run: tuple[Run, Explainer]) -> None:
    made, explainer = run
    first = explainer.attributes("b")[0]
    explainer.name_attribute(first.coordinate, "a stripe")
    named = [entry for entry in explainer.attributes("b", against="a") if entry.change == first.change]
    assert [entry.name for entry in named] == ["a stripe"]
    rows = [row for table in pair_tables(explainer.pairs, 3) for row in table.rows]
    assert ("a → b", f"{DIRECTIONS[first.direction]} a stripe") in [(row[0], row[2]) for row in rows]
    assert load_pairs(made, fingerprint(explainer.findings))["a", "b"][0].name is None


def test_without_a_target_an_image_takes_the_class_it_is_nearest_to(run: tuple[Run, Explainer]) -> None:
    _, explainer = run
    image = training_problems.images(1).images[0]
    probabilities = explainer.probabilities(image)
    other = min(probabilities, key=lambda name: probabilities[name])
    assert explainer.counterfactual(image).target == other
    assert explainer.likely_target(torch.tensor([[0.0, 3.0]])) == "a"


def test_a_target_for_each_image() -> None:
    assert _goals(None, 2) == [None, None]
    assert _goals(["a"], 3) == ["a", "a", "a"]
    assert _goals(["a", "b"], 2) == ["a", "b"]
    with pytest.raises(ConfigError, match="given 2 times for 3 images"):
        _goals(["a", "b"], 3)


def ten() -> Any:
    from dataclasses import replace

    names = tuple(f"class {number}" for number in range(10))
    sections = tuple(report_samples.target_section(number, name) for number, name in enumerate(names))
    shares = tuple([0.1] * 10)
    kept = report_samples.report_content()
    reconstructions = tuple(
        replace(entry, probabilities_original=shares, probabilities_reconstruction=shares)
        for entry in kept.reconstructions
    )
    return replace(kept, class_names=names, targets=sections, reconstructions=reconstructions)


def test_a_report_of_ten_classes_folds_its_pictures_away() -> None:
    html = render_html(ten())
    assert html.count('<details class="folded">') == 10
    contents = re.search(r'<nav class="contents".*?</nav>', html, re.S)
    assert contents is not None
    assert contents[0].count("<li") == 14  # ten classes, overview, reconstruction, pairs, repeat
    glance = re.search(r'<section class="glance".*?</section>', html, re.S)
    assert glance is not None
    assert glance[0].count('class="alone"') == 10  # the best of each
    for number in range(10):
        assert f'id="target-{number + 1}-attribute-1"' in html
    assert html.count("<details") == html.count("</details>")


def test_a_report_of_two_classes_is_as_it_was() -> None:
    html = render_html(report_samples.report_content())
    assert 'class="folded"' not in html
    assert html.count('class="alone"') == 4


def test_how_much_is_shown() -> None:
    assert amounts_for(2) == AMOUNTS
    assert (amounts_for(3).attributes, amounts_for(10).attributes, amounts_for(1000).attributes) == (6, 3, 3)
    assert amounts_for(10).pairs < AMOUNTS.pairs
    assert (amounts_for(3).between, amounts_for(10).between) == (3, 1)


def test_a_class_that_no_image_counts_as_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = [[float(style % 3 == k) for k in range(3)] for style in range(8)]
    without_c = problems.linear_model(problems.linear_classifier(matrix, (0.0, 0.0, -100.0), NAMES))
    run = training_problems.make_run(tmp_path / "run", "fast")
    pixels = np.random.default_rng(0).integers(100, 156, (80, 4, 4, 3), dtype=np.uint8)
    pictures = ImageSet(pixels, tuple(map(str, range(80))), None, None, {})
    for sweep_kind in ("exact", "screened"):
        settings = AttFindSettings(images_per_class=20, count=4, unstable_threshold=None, sweep=sweep_kind)
        caplog.clear()
        findings = search(run, without_c, pictures, settings)
        assert "counts as 'c'; nothing is searched" in caplog.text
        assert findings.attributes["c"] == ()
        assert findings.attributes["a"]
        assert findings.attributes["b"]
        assert set(findings.attributes) == set(NAMES)
        assert findings.settings.sweep == sweep_kind
