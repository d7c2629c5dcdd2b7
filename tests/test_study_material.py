from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import problems
import study_samples
import training_problems
from stylex import load
from stylex.attfind import search
from stylex.attfind.likeness import looks
from stylex.counterfactuals import to_picture
from stylex.data.images import ImageSet
from stylex.evaluation.measure import prepare
from stylex.explainer import Explainer
from stylex.model import Model
from stylex.networks import build
from stylex.run import write_json
from stylex.study.design import Design, StudySettings
from stylex.study.material import load_design, load_pairs, make_study, study_folder, top_attributes


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    study_samples.draw_small(monkeypatch)


UNTOLD = (
    "network.condition=none",
    "network.discriminator=plain",
    "loss.kl=0",
    "training.schedule=[encode]",
    "loss.adversarial_steps=[encode]",
    "sparsity.threshold=0",
)


def several_classes(*names: str) -> Model:
    """A tiny model of these classes, each as likely."""
    # Told nothing: what hangs on the classifier could not be made even by changing it.
    recipe = training_problems.recipe("fast", UNTOLD)
    classifier = training_problems.classifier(class_names=names)
    parts = build(recipe, training_problems.RESOLUTION, len(names), seed=1)
    for part in parts.parts().values():
        part.eval().requires_grad_(False)
    networks = (parts.generator, parts.encoder, parts.mapping, parts.discriminator)
    model = Model(*networks, classifier, recipe, training_problems.HARDWARE, 1)
    images, head = training_problems.images(24).batch(range(24)), classifier.network.head
    with torch.no_grad():
        for _ in range(3):
            logits = model.classify(model.synthesise(model.styles(model.encode(images)[0])))
            scale = 2 / logits.std(dim=0)
            head.bias.sub_(logits.median(dim=0).values).mul_(scale)
            head.weight.mul_(scale[:, None])
    return model


def searched(path: Path, model: Model, images: ImageSet | None) -> Explainer:
    run = problems.save_tiny_run(path, model)
    search(run, model, images, run.config.attfind)
    return load(run.path, device="cpu", precision="fp32")


def check_study(explainer: Explainer, design: Design) -> None:
    """It is in the run, asks about coordinates once each, and every animation is what its attribute does."""
    assert load_design(explainer.run) == design
    coordinates = [entry.coordinate for entry in design.attributes]
    assert len(coordinates) == len(set(coordinates)) == design.settings.attributes
    places, pairs = load_pairs(explainer.run)
    assert set(places) == set(design.images) == {name for entry in design.attributes for name in entry.shown}
    side = training_problems.RESOLUTION
    assert pairs.shape == (len(places), 2, side, side, 3)
    for name, place in places.items():
        before, after = pairs[place].numpy()
        assert (before != after).any()
        with Image.open(study_folder(explainer.run) / "material" / f"{name}.gif") as moving:
            first = np.asarray(moving.convert("RGB"))
            moving.seek(1)
            assert moving.size == (study_samples.SMALL, study_samples.SMALL)
            assert (first != np.asarray(moving.convert("RGB"))).any()


def test_a_study_of_one_of_three_classes(tmp_path: Path) -> None:
    images = training_problems.images(40)
    explainer = searched(tmp_path / "run", several_classes("a", "b", "c"), images)
    settings = StudySettings(attributes=2, questions=1, target="b")
    said: list[str] = []
    design = make_study(explainer, prepare(explainer.model, images, 0), settings, said.append)
    check_study(explainer, design)
    used = design.drawn_from
    assert used is not None
    assert (used.source, used.names) == (explainer.run.data_source, images.names)
    assert used.sha256 == hashlib.sha256(images.images.tobytes()).hexdigest()
    places, pairs = load_pairs(explainer.run)
    test = prepare(explainer.model, images, 0)
    for name, row in design.images.items():
        np.testing.assert_array_equal(pairs[places[name], 0], to_picture(test.reconstructions[row]))
    assert {entry.target for entry in design.attributes} == {"b"}
    assert any("2 of 2" in line for line in said)


def test_a_study_of_a_model_without_an_encoder(tmp_path: Path) -> None:
    explainer = searched(tmp_path / "run", problems.tiny_model("stylegan2"), None)
    design = make_study(
        explainer, prepare(explainer.model, None, 0, count=40), StudySettings(attributes=3, questions=1)
    )
    check_study(explainer, design)
    used = design.drawn_from
    assert used is not None
    assert (used.source, used.sha256, used.names[39]) == (None, None, "sample 39")
    before = design.model_dump(mode="json")
    del before["drawn_from"]  # a study of an earlier version
    write_json(study_folder(explainer.run) / "study.json", before)
    assert load_design(explainer.run) == design.model_copy(update={"drawn_from": None})


def test_a_coordinate_is_asked_about_once_though_it_is_listed_both_ways(tmp_path: Path) -> None:
    explainer = searched(tmp_path / "run", problems.tiny_model("stylegan2"), None)
    findings = explainer.findings
    first, *others = findings.attributes["b"]
    back = dataclasses.replace(first, rank=2, direction=1 - first.direction)
    both = dataclasses.replace(findings, attributes=findings.attributes | {"b": (first, back, *others)})
    assert top_attributes(both, explainer.class_names, "b") == [first, *others]
    assert top_attributes(both, explainer.class_names, None) == top_attributes(
        findings, explainer.class_names, None
    )


def test_of_two_classes_what_repeats_another_is_asked_about_last(tmp_path: Path) -> None:
    explainer = searched(tmp_path / "run", problems.tiny_model("stylegan2"), None)
    settings = explainer.findings.settings.model_copy(update={"order": "selection"})
    published = dataclasses.replace(explainer.findings, settings=settings)
    listed = top_attributes(published, explainer.class_names, None)
    again = listed[0].coordinate
    marked = {
        name: tuple(
            dataclasses.replace(entry, repeats=2 if entry.coordinate == again else None) for entry in found
        )
        for name, found in explainer.findings.attributes.items()
    }
    for order, expected in (("effect", [*listed[1:], listed[0]]), ("selection", listed)):
        settings = explainer.findings.settings.model_copy(update={"order": order})
        findings = dataclasses.replace(explainer.findings, attributes=marked, settings=settings)
        found = top_attributes(findings, explainer.class_names, None)
        assert [entry.coordinate for entry in found] == [entry.coordinate for entry in expected]


def test_attributes_that_do_the_same_know_of_each_other(tmp_path: Path) -> None:
    found = searched(tmp_path / "run", problems.tiny_model("stylegan2"), None)
    settings = found.findings.settings.model_copy(update={"alike": 0.1})
    findings = dataclasses.replace(found.findings, settings=settings)
    explainer = Explainer(found.run, found.model, found.discovery, findings)
    test = prepare(explainer.model, None, 0, count=40)
    design = make_study(explainer, test, StudySettings(attributes=3, questions=1))
    changes = [(entry.direction, entry.coordinate) for entry in design.attributes]
    alike = looks(explainer.model, explainer.discovery.space, explainer.discovery.styles[:32], changes).alike
    expected = [
        tuple(other for other in range(3) if other != place and abs(alike[place, other]) >= 0.1)
        for place in range(3)
    ]
    assert [entry.alike for entry in design.attributes] == expected
    assert any(expected)
