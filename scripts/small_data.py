"""Train on a few hundred images with and without adaptive augmentation, and see whether it collapses.

    python scripts/small_data.py --out small --images 500 --kimg 30 > small.json

Two trainings of one recipe, one seed and the same images, `training.augmentation` none and ada; the recipe's
schedule is shortened in proportion to `--kimg`, and `--ada-kimg` is how fast ADA's p may rise. Both models
are then measured on faces that neither training saw. Without `--data` and `--classifier`, faces are rendered
and a classifier is trained on all of them first: it is what is explained, the few images are what the
generator learns from. The table goes to standard output as JSON, all else to standard error. Ctrl-C and the
same command again: goes on. Exit status 1 when the run with ADA collapsed.

A figure says collapse where the live check in training would (`stylex.training.stability`), where training
diverged, or where the reconstructions of different faces vary less than a tenth as much as the faces do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylex import classifiers, hardware
from stylex.benchmarks.machine import describe
from stylex.classifiers import Classifier
from stylex.config import RunConfig, changed, load_recipe, validate
from stylex.data import AvatarSpec, ImageSet, load_dataset, render_avatars
from stylex.errors import DataError, RunError, Stopped, StylexError, TrainingDiverged
from stylex.evaluation.distributions import realism
from stylex.evaluation.extractors import EXTRACTORS, Extractor, load_extractor
from stylex.evaluation.intervals import wilson
from stylex.evaluation.measure import prepare, same_class
from stylex.evaluation.quality import swapped
from stylex.hardware import Hardware
from stylex.model import Model, load_model
from stylex.run import Run, read_json, read_tensors
from stylex.training import train, watched_images
from stylex.training.plan import scale_total
from stylex.training.progress import Progress
from stylex.training.stability import HealthRecord

ARMS = ("none", "ada")
"""Values of `training.augmentation`."""

ALIKE = 0.1
"""Share of the faces' variance in features under which reconstructions count as all the same."""


@dataclass(frozen=True)
class Setup:
    """What both trainings have in common."""

    training: ImageSet
    held_out: ImageSet
    watch: ImageSet | None
    classifier: Classifier
    extractor: Extractor
    hardware: Hardware


def settings(
    name: str,
    kimg: float,
    ada_kimg: float,
    seed: int,
    resolution: int,
    augmentation: str,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """The recipe, its schedule shortened to `kimg`, with an augmentation; assignments have the last word."""
    given = {assignment.partition("=")[0] for assignment in assignments}
    recipe = scale_total(load_recipe(name, assignments), kimg, given)
    every = {"checkpoint_kimg": kimg / 10, "sample_kimg": kimg / 5, "log_kimg": kimg / 60}
    changes: dict[str, Any] = {f"training.{key}": value for key, value in every.items()}
    changes |= {"training.augmentation": augmentation, "training.augmentation_kimg": ada_kimg}
    recipe = changed(recipe, {key: value for key, value in changes.items() if key not in given})
    content = {
        "experiment": f"small-data-{augmentation}",
        "data": "small",
        "classifier": "small",
        "resolution": resolution,
        "seed": seed,
        "recipe": recipe.model_dump(),
    }
    return validate(RunConfig, content, "small data")


def open_run(path: Path, config: RunConfig, classifier: Classifier) -> Run:
    """A new run, or the one that an earlier call left. Raises RunError when that one has other settings."""
    if not (path / "run.json").exists():
        return Run.create(path, config, prepare=lambda run: classifier.save(run.classifier_file))
    run = Run.open(path)
    if run.config != config:
        raise RunError(f"{path}: a run with other settings; choose another --out")
    return run


def measure(run: Run, setup: Setup) -> dict[str, Any]:
    """The figures of a trained run: on held-out images, unless a name says otherwise."""
    model = load_model(run, setup.hardware)
    if model.encoder is None:
        raise RunError(f"{run.path}: recipe '{run.config.recipe.name}' has no encoder; choose fast or stylex")
    test, seen = prepare(model, setup.held_out, 0), prepare(model, setup.training, 0)
    kept = same_class(test.logits_original, test.logits, model.classifier.activation)
    constant = test.images.median(dim=0, keepdim=True).values
    apart = (test.images - test.reconstructions.cpu()).abs().mean()
    features = setup.extractor.extract(test.images)
    drawn = setup.extractor.extract(test.reconstructions)
    figures = {
        "encoder_variance": variance_of_latents(model, test.images),
        "encoder_variance_at_start": recorded(run, "variance_at_start"),
        "l1": float(apart),
        "l1_training": float((seen.images - seen.reconstructions.cpu()).abs().mean()),
        "l1_share_of_constant_image": float(apart / (constant - test.images).abs().mean()),
        "agreement": wilson(int(kept.sum()), len(kept)).to_json(),
        "agreement_over_chance": over_chance(test.logits_original, test.logits),
        "diversity_of_reconstructions": spread(drawn) / spread(features),
        "reconstructions": realism(setup.extractor.name, features, drawn).to_json(),
    }
    if model.generator.condition_features:
        others = setup.extractor.extract(swapped(model, test.images, 0))
        figures["swapped"] = realism(setup.extractor.name, features, others).to_json()
    scores = {
        "real_training": model.scores(seen.images, torch.from_numpy(seen.logits_original)),
        "real_held_out": model.scores(test.images, torch.from_numpy(test.logits_original)),
        "generated": model.scores(seen.reconstructions, torch.from_numpy(seen.logits_original)),
    }
    means = {key: float(value.mean()) for key, value in scores.items()}
    gap = means["real_training"] - means["generated"]
    return figures | {
        "discriminator": {
            **means,
            # Karras et al. 2020 (ADA), equation 1: r_t and r_v
            "sign_training": float(scores["real_training"].sign().mean()),
            "overfitting": (means["real_training"] - means["real_held_out"]) / gap if gap else None,
        }
    }


def variance_of_latents(model: Model, images: Tensor) -> float:
    """Of what the encoder's network finds, as `health/encoder_variance` in metrics.jsonl."""
    assert model.encoder is not None
    with torch.inference_mode():
        parts = [model.encoder.learned(part.to(model.hardware.device)) for part in images.split(64)]
    return float(torch.cat(parts).var(dim=0).mean())


def recorded(run: Run, key: str) -> Any:
    """A value of the live check's record in the newest checkpoint; None where there is none."""
    files = run.checkpoint_files()
    return (read_tensors(files[-1])[1].get("health") or {}).get(key) if files else None


def over_chance(before: Any, after: Any) -> float | None:
    """Cohen's kappa of the argmax of two sets of logits [N, K]; None where chance is 1."""
    one, other = before.argmax(axis=1), after.argmax(axis=1)
    chance = sum(float((one == k).mean() * (other == k).mean()) for k in range(before.shape[1]))
    return None if chance >= 1 else (float((one == other).mean()) - chance) / (1 - chance)


def spread(features: Tensor) -> float:
    """Total variance of features [N, D]."""
    return float(features.double().var(dim=0).sum())


def augmentation_p(run: Run) -> dict[str, float] | None:
    """ADA's probability p over the training, of metrics.jsonl; None where it logged none."""
    lines = run.metrics_file.read_text().splitlines() if run.metrics_file.exists() else []
    found = [entry["augmentation/p"] for entry in map(json.loads, lines) if "augmentation/p" in entry]
    return {"last": found[-1], "highest": max(found)} if found else None


def verdict(figures: dict[str, Any], failure: str | None) -> list[str]:
    """Why a run counts as collapsed, in words; empty when it does not."""
    said = [] if failure is None else [failure]
    if not figures:
        return said
    # As if everything had worked once: what is certain trouble in training then is so here.
    record = HealthRecord(figures["encoder_variance_at_start"], lowest_l1_share=0.0, highest_over_chance=1.0)
    found = {
        "health/encoder_variance": figures["encoder_variance"],
        "health/l1_share": figures["l1_share_of_constant_image"],
    }
    if figures["agreement_over_chance"] is not None:
        found["health/agreement_over_chance"] = figures["agreement_over_chance"]
    said += record.failures(found, 1.0)[0]
    if figures["diversity_of_reconstructions"] < ALIKE:
        said.append("reconstructions of different images are nearly the same")
    return said


def run_arm(path: Path, config: RunConfig, setup: Setup) -> dict[str, Any]:
    """Train one run, or go on with it, and measure it."""
    run = open_run(path, config, setup.classifier)
    name, failure = config.recipe.training.augmentation, None

    def show(now: Progress) -> None:
        print(
            f"{name}: {now.images / 1000:.1f} of {now.total_images / 1000:g} kimg, "
            f"{now.images_per_second:.0f} images/s",
            file=sys.stderr,
        )

    try:
        train(run, setup.training, setup.classifier, setup.hardware, watch=setup.watch, on_progress=show)
    except TrainingDiverged as error:
        failure = str(error)
    figures = measure(run, setup) if run.model_file.exists() else {}
    events = run.path / "stability.json"
    return {
        "augmentation": name,
        "collapsed": verdict(figures, failure),
        "returns": read_json(events)["returns"] if events.exists() else [],
        "augmentation_p": augmentation_p(run),
        **figures,
    }


def compare(out: Path, configs: dict[str, RunConfig], setup: Setup) -> dict[str, Any]:
    """Both trainings, and the table."""
    arms = {name: run_arm(out / name, config, setup) for name, config in configs.items()}
    first = next(iter(configs.values()))
    return {
        "images": len(setup.training),
        "held_out": len(setup.held_out),
        "kimg": first.recipe.training.total_kimg,
        "ada_kimg": first.recipe.training.augmentation_kimg,
        "recipe": first.recipe.name,
        "resolution": first.resolution,
        "seed": first.seed,
        "extractor": setup.extractor.name,
        "machine": asdict(describe(setup.hardware)),
        "arms": arms,
    }


def few(images: ImageSet, count: int, seed: int, what: str) -> ImageSet:
    """`count` random ones. Raises DataError when there are not as many."""
    if len(images) < count:
        raise DataError(
            f"{len(images)} {what} images, {count} are asked for; give more data or ask for fewer"
        )
    return images.select(np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False)))


def prepare_setup(given: argparse.Namespace) -> Setup:
    """Images, classifier and extractor; faces and classifier are made where none are given."""
    chosen = hardware.choose(given.device, given.precision, given.threads)
    print(f"computing on {chosen}", file=sys.stderr)
    data = given.data or given.out / "faces"
    if given.data is None and not data.exists():
        print(f"rendering {given.faces} faces", file=sys.stderr)
        render_avatars(data, count=given.faces, size=given.size, seed=0, spec=AvatarSpec.default())
    dataset = load_dataset(data, size=given.size)
    file = given.classifier or given.out / "classifier.safetensors"
    if not file.exists() and given.classifier is None:
        print("training the classifier", file=sys.stderr)
        trained, _ = classifiers.train(
            dataset.training, dataset.discovery, architecture="small_cnn", seed=0, hardware=chosen
        )
        trained.save(file)
    training = few(dataset.training, given.images, given.seed, "training")
    held_out = few(dataset.test, min(given.held_out, len(dataset.test)), given.seed, "test")
    watch = watched_images(dataset)
    extractor = load_extractor(given.extractor).to(chosen.device)
    return Setup(training, held_out, watch, classifiers.load(file), extractor, chosen)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train on few images with and without ADA; does it collapse?"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; continued if it exists")
    parser.add_argument("--images", type=int, default=500, help="training images")
    parser.add_argument("--kimg", type=float, default=30.0, help="thousand images that each training sees")
    parser.add_argument("--ada-kimg", type=float, help="in which p can go from 0 to 1; by default kimg / 3")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images, and of training")
    parser.add_argument("--recipe", default="fast", help="fast, stylex, study, vdv, or a YAML file")
    parser.add_argument("--set", action="append", default=[], dest="assignments", help="section.key=value")
    parser.add_argument("--data", type=Path, help="folder of images with three sets; by default avatars")
    parser.add_argument("--classifier", type=Path, help="file of 'stylex classifier train'")
    parser.add_argument("--faces", type=int, default=5000, help="to render where no --data is given")
    parser.add_argument("--held-out", type=int, default=500, help="test images to measure on, at most")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--extractor", default="auto", choices=EXTRACTORS, help="features for FID")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        setup = prepare_setup(given)
        configs = {
            arm: settings(
                given.recipe,
                given.kimg,
                given.ada_kimg or given.kimg / 3,
                given.seed,
                given.size,
                arm,
                given.assignments,
            )
            for arm in ARMS
        }
        table = compare(given.out, configs, setup)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 143
    except StylexError as error:
        print(f"small_data: {error}", file=sys.stderr)
        return 2
    print(json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False))
    for name, arm in table["arms"].items():
        print(f"{name}: {'; '.join(arm['collapsed']) or 'did not collapse'}", file=sys.stderr)
    return 1 if table["arms"]["ada"]["collapsed"] else 0


if __name__ == "__main__":
    sys.exit(main())
