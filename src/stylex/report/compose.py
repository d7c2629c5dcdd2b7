"""Gathers what a report says from a run: its findings, figures and freshly synthesised pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stylex.attfind import Attribute, Findings
from stylex.counterfactuals import explain_styles, to_picture
from stylex.data import Dataset
from stylex.evaluation.controls import RANDOM_WEIGHTS
from stylex.evaluation.measure import DISTINCT, TestImages
from stylex.evaluation.stage import load_evaluation
from stylex.explainer import Explainer
from stylex.report.content import (
    AttributeSection,
    CounterfactualExample,
    Curve,
    Reconstruction,
    ReportContent,
    TargetSection,
    shown_title,
)
from stylex.report.counterfactuals import as_example
from stylex.report.gallery import gallery, outside
from stylex.report.html import render_html
from stylex.report.pairs import pair_tables
from stylex.report.quality import quality_tables
from stylex.run import Run, provenance, write_atomically
from stylex.stylespace import DIRECTIONS

LOW_AGREEMENT = 0.9
"""Under this share of test images whose class survives reconstruction the report warns."""


EFFECT_ON = {"log_odds": "log-odds", "logits": "logit"}
"""What the effects of a search are changes of, in words."""


_CURVES = (
    "AttFind",
    DISTINCT,
    "Wu et al.",
    "random",
    "AttFind subset",
    "AttFind independent",
    RANDOM_WEIGHTS,
)
"""Methods of an evaluation in the order of their curves; others come after them."""


@dataclass(frozen=True)
class Amounts:
    """How much a report shows: distinct attributes of each class, pairs of each, examples of each class.

    `between`: attributes from each class to each other one, where they were searched.
    """

    attributes: int = 10
    pairs: int = 6
    examples: int = 4
    reconstructions: int = 8
    between: int = 3


AMOUNTS = Amounts()

PAIRS_OF_CLASSES = 20
"""Attributes shown in all, where there are many classes: of each class so many divided by their number."""


def amounts_for(classes: int) -> Amounts:
    """How much a report of so many classes shows: it stays readable when their number grows."""
    if classes <= 2:
        return AMOUNTS
    attributes = max(3, PAIRS_OF_CLASSES // classes)
    many = classes > 4
    return Amounts(attributes, pairs=3 if many else 4, examples=2, between=1 if many else 3)


def write_report(
    explainer: Explainer,
    data: Dataset | None,
    test: TestImages,
    command: str,
    shown: Amounts = AMOUNTS,
) -> Path:
    """Write report.html into the run and return its path.

    Args:
        data: the run's data set; None for a model that samples.
        test: what `prepare` made of its test images, which are shown.
        command: what repeats the run, shown to be copied.
        shown: how much is shown.

    Raises:
        RunError: the run has not been evaluated yet.
    """
    content = compose(explainer, data, test, command, shown)
    return write_page(explainer.run, content)


def write_page(run: Run, content: ReportContent) -> Path:
    """Write report.html of this content into the run and return its path."""
    path = run.path / "report.html"
    text = render_html(content).encode()
    write_atomically(path, lambda file: file.write(text))
    return path


def compose(
    explainer: Explainer,
    data: Dataset | None,
    test: TestImages,
    command: str,
    shown: Amounts = AMOUNTS,
) -> ReportContent:
    """The content of a run's report; see `write_report`."""
    model, run, findings = explainer.model, explainer.run, explainer.findings
    evaluation = load_evaluation(explainer)
    targets = tuple(
        TargetSection(
            target=name,
            attributes=tuple(
                _attribute(explainer, evaluation, test, entry, shown.pairs)
                for entry in explainer.attributes(name).distinct[: shown.attributes]
            ),
            curves=_curves(evaluation, name),
            counterfactuals=_examples(explainer, test, name, shown.examples),
        )
        for name in evaluation["single"]
    )
    agreement = evaluation["agreement"]
    return ReportContent(
        title=f"What makes an image count as {_either(explainer.class_names)}",
        summary=_summary(explainer, evaluation),
        class_names=explainer.class_names,
        facts=_facts(explainer, data, evaluation),
        warnings=_warnings(evaluation, findings),
        reconstructions=_reconstructions(explainer, test, shown.reconstructions)
        if model.encoder is not None
        else (),
        reconstruction_figures={}
        if agreement is None
        else {
            "Class kept": f"{agreement['estimate']:.1%} of {evaluation['images']} test images "
            f"(95 % interval {agreement['low']:.1%} to {agreement['high']:.1%})",
            "Mean absolute difference": f"{evaluation['l1']:.3f} (pixels from −1 to 1)",
        },
        quality_tables=quality_tables(evaluation),
        pair_tables=pair_tables(explainer.pairs, shown.between),
        targets=targets,
        coordinates=explainer.discovery.space.size,
        effect_on=EFFECT_ON[findings.settings.effect],
        command=command,
        provenance={
            **provenance(),
            "hardware": str(model.hardware),
            "classifier sha256": model.classifier.fingerprint,
            "data sha256": "sampled latents" if data is None else data.fingerprint,
            "recipe": run.config.recipe.name,
            "seed": run.config.seed,
            "training steps": model.step,
        },
    )


def _either(names: Sequence[str]) -> str:
    shown = [f"“{name}”" for name in names[:4]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _summary(explainer: Explainer, evaluation: Mapping[str, Any]) -> str:
    best = []
    for method in evaluation["methods"]:
        if method["method"] == "AttFind":
            curve = method["curve"]
            points = list(zip(curve["k"], curve["rate"], strict=True))
            most = max(curve["rate"])
            k, rate = next(point for point in points if point[1] >= most - 0.01)
            best.append(f"{rate:.0%} to “{method['target']}” with {k}")
    searched = (
        f"AttFind searched {explainer.findings.coordinates} style coordinates "
        f"on {explainer.findings.images} images."
    )
    if not best:
        return searched
    return (
        f"{searched} On {evaluation['images']} other images, changing the attributes it found flips the "
        f"classifier: {'; '.join(best)}."
    )


def _facts(explainer: Explainer, data: Dataset | None, evaluation: Mapping[str, Any]) -> dict[str, str]:
    model, run = explainer.model, explainer.run
    settings = explainer.findings.settings
    report: Any = model.classifier.report
    accuracy = report.get("validation", {}).get("accuracy") if isinstance(report, Mapping) else None
    unseen = "the model sampled anew" if model.encoder is None else "neither training nor discovery saw"
    return {
        "Experiment": run.config.experiment,
        "Classifier": f"{model.classifier.architecture}, classes {', '.join(model.class_names)}"
        + (f", accuracy {accuracy:.1%} on validation images" if accuracy else ""),
        "Images": f"{run.config.resolution} × {run.config.resolution} pixels"
        + ("" if data is None else f", {len(data.discovery)} for discovery and {len(data.test)} for testing"),
        "Generator": f"recipe {run.config.recipe.name}, {model.step} steps, {explainer.findings.coordinates} "
        "searchable style coordinates",
        "Search": f"{settings.method} selection"
        + (", ranked by effect," if settings.order == "effect" else "")
        + f" on {explainer.findings.images} discovery images "
        f"({explainer.findings.unstable} left out as unstable), "
        f"effects on {settings.effect.replace('_', '-')}" + _screened(explainer.findings),
        "Test": f"{evaluation['images']} images that {unseen}; "
        "coordinates go to the ends of the range seen in discovery",
    }


def _screened(findings: Findings) -> str:
    """What a screened search gave up, and how sure that is; nothing of an exact one."""
    if findings.settings.sweep != "screened":
        return ""
    if not findings.screening:
        return "; screened"
    changes = 2 * findings.coordinates
    out = changes - findings.screening[-1].changes_left
    if not out:
        return "; screened, but every change was measured on all images"
    if findings.confidence is None:
        return f"; {out} of {changes} changes screened out by first-order effects alone"
    return (
        f"; {out} of {changes} changes screened out before they were measured on all images "
        f"(confidence {findings.confidence:.1%})"
    )


def _warnings(evaluation: Mapping[str, Any], findings: Findings) -> tuple[str, ...]:
    warnings = [
        f"No test image counts as anything but “{name}”, so nothing is said about what leads there."
        for name, found in findings.attributes.items()
        if found and name not in evaluation["single"]
    ]
    without = [f"“{name}”" for name, found in findings.attributes.items() if not found]
    if without:
        warnings.append(
            f"No attribute leads to {', '.join(without[:5])}"
            + (f" and {len(without) - 5} more classes" if len(without) > 5 else "")
            + ": no discovery image counts as it, or nothing moves there."
        )
    agreement = evaluation["agreement"]
    if agreement is not None and agreement["estimate"] < LOW_AGREEMENT:
        warnings.append(
            f"The classifier keeps its class on only {agreement['estimate']:.0%} of the reconstructions; "
            "explanations of the others are about a different image. Train longer before trusting this "
            "report."
        )
    if findings.unstable > findings.images / 4:
        warnings.append(
            f"{findings.unstable} of {findings.images} discovery images were left out "
            "because nearly everything moves them."
        )
    for method in evaluation["methods"]:
        if method["method"] == "random" and method["curve"]["rate"][-1] > 0.1:
            warnings.append(
                f"Random coordinates already flip {method['curve']['rate'][-1]:.0%} of images to "
                f"“{method['target']}”; flips towards it prove little."
            )
    for method in evaluation["methods"]:
        if method["method"] != "AttFind" or method["confirmed"] is None:
            continue
        last = method["confirmed"][-1]
        if last["share"] is not None and last["share"] < 0.8:
            warnings.append(
                f"An independently trained classifier confirms only {last['share']:.0%} of the flips to "
                f"“{method['target']}”; some of the change may be an artefact and no attribute."
            )
    return tuple(warnings)


def _curves(evaluation: Mapping[str, Any], target: str) -> tuple[Curve, ...]:
    order = {name: place for place, name in enumerate(_CURVES)}
    found = [method for method in evaluation["methods"] if method["target"] == target]
    return tuple(
        Curve(
            label="Random coordinates" if method["method"] == "random" else method["method"],
            counts=tuple(method["curve"]["k"]),
            rates=tuple(method["curve"]["rate"]),
            lows=tuple(method["curve"]["low"]),
            highs=tuple(method["curve"]["high"]),
            images=method["curve"]["n"],
        )
        for method in sorted(found, key=lambda method: order.get(method["method"], len(order)))
    )


def _attribute(
    explainer: Explainer, evaluation: Mapping[str, Any], test: TestImages, entry: Attribute, count: int
) -> AttributeSection:
    shown = gallery(explainer, test, entry, count)
    figures = evaluation["single"][entry.target][entry.rank - 1]
    margin = 1.96 * entry.effect_std / max(1, entry.images) ** 0.5
    return AttributeSection(
        rank=entry.rank,
        name=entry.name,
        coordinate=entry.coordinate,
        direction=DIRECTIONS[entry.direction],
        layer=entry.layer,
        channel=entry.channel,
        effect=entry.effect,
        effect_low=entry.effect - margin,
        effect_high=entry.effect + margin,
        flip_share=figures["estimate"],
        flip_share_low=figures["low"],
        flip_share_high=figures["high"],
        where=shown.where,
        pairs=shown.pairs,
        same=tuple(
            shown_title(other.name, other.rank)
            for other in explainer.attributes(entry.target)
            if other.repeats == entry.rank
        ),
    )


def _examples(
    explainer: Explainer, test: TestImages, target: str, count: int
) -> tuple[CounterfactualExample, ...]:
    """Counterfactuals of the first test images outside the target class, whatever comes out."""
    model = explainer.model
    found = [
        explain_styles(
            model,
            explainer.discovery.space,
            explainer.findings.attributes[target],
            test.styles[row : row + 1],
            target,
            image=None if model.encoder is None else test.images[row : row + 1],
            name=test.names[row],
        )
        for row in outside(explainer, test, target)[:count].tolist()
    ]
    return tuple(as_example(entry) for entry in found)


def _reconstructions(explainer: Explainer, test: TestImages, count: int) -> tuple[Reconstruction, ...]:
    probabilities = explainer.model.classifier.probabilities
    original = probabilities(torch.from_numpy(test.logits_original[:count])).tolist()
    reconstructed = probabilities(torch.from_numpy(test.logits[:count])).tolist()
    return tuple(
        Reconstruction(
            name=test.names[i],
            original=to_picture(test.images[i]),
            reconstruction=to_picture(test.reconstructions[i]),
            probabilities_original=tuple(original[i]),
            probabilities_reconstruction=tuple(reconstructed[i]),
        )
        for i in range(min(count, len(test.names)))
    )
