"""Kill `stylex train` with SIGKILL at random moments, and check that nothing is ever lost.

    python scripts/soak.py --kills 50 --out soak --json soak.json

A tiny training (16 px, fp32, one CPU thread) is killed `--kills` times and started again by the same command.
After each kill the run must be readable and no more than one checkpoint interval be lost; at the end
weights, optimisers, model and metrics must be bit for bit those of a training that nobody interrupted. Every
fourth kill comes at any moment from the start of the program on; the others, so that training gets on, at a
random moment after one to two new checkpoints. Exit status 0 when all of it held, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylex.classifiers import Classifier
from stylex.classifiers.architectures import SmallCNN
from stylex.errors import StylexError
from stylex.run import Run, read_tensors, write_json

RESOLUTION, BATCH, STEPS_A_CHECKPOINT = 16, 4, 5

START_SHARE = 0.4
"""Of a whole training's time, within which a kill at any moment falls: mostly before its first steps."""

SETTINGS = {
    "network.channel_base": 128,
    "network.channel_max": 8,
    "network.encoder_channel_base": "null",
    "network.encoder_channel_max": 8,
    "network.encoder_hidden": "null",
    "network.discriminator_channel_base": "null",
    "network.latent_features": 8,
    "network.z_features": 8,
    "network.mapping_layers": 2,
    "loss.perceptual_network": "classifier",
    "loss.r1_interval": 4,
    "loss.path_length_interval": 4,
    "training.augmentation": "ada",
    "training.augmentation_kimg": 1,
    "training.batch_size": BATCH,
    "training.log_kimg": BATCH / 1000,
    "training.checkpoint_kimg": BATCH * STEPS_A_CHECKPOINT / 1000,
    "training.sample_kimg": BATCH * STEPS_A_CHECKPOINT * 4 / 1000,
}
"""A line in metrics.jsonl every step: it tells how far a killed training had come."""


@dataclass
class Summary:
    """What came of it. `lost_steps` is for each kill the steps that have to be trained again."""

    kills: int = 0
    before_training: int = 0
    lost_steps: list[int] = field(default_factory=list)
    worst_lost_steps: int = 0
    checkpoint_interval_steps: int = STEPS_A_CHECKPOINT
    steps: int = 0
    seconds: float = 0.0
    seed: int = 0
    identical: bool = False
    failures: list[str] = field(default_factory=list)


def make_data(folder: Path, count: int = 40) -> tuple[Path, Path]:
    """A folder of pictures with a red or a green patch, and a random classifier."""
    numbers = np.random.default_rng(0)
    images = folder / "images"
    for number in range(count):
        pixels = numbers.integers(0, 80, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
        pixels[3:11, 4:12, number % 2] = 230
        place = images / ("red", "green")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    torch.manual_seed(0)
    widths = (4, 4, 8, 8)
    explained = Classifier(
        SmallCNN(2, widths).eval(),
        architecture="small_cnn",
        options={"widths": widths},
        class_names=("green", "red"),
        input_size=RESOLUTION,
    )
    explained.save(folder / "classifier.safetensors")
    return images, folder / "classifier.safetensors"


def command(out: Path, images: Path, classifier: Path, recipe: str, steps: int) -> list[str]:
    """The one command that starts and continues the run."""
    settings = SETTINGS | {"training.total_kimg": steps * BATCH / 1000}
    if recipe == "fast":
        settings |= {"loss.adversarial_start_kimg": 0.04, "loss.adversarial_ramp_kimg": 0.02}
        settings |= {"sparsity.start_kimg": 0.04, "sparsity.ramp_kimg": 0.02}
    arguments = ["train", "--data", images, "--classifier", classifier, "--out", out, "--recipe", recipe]
    arguments += ["--size", RESOLUTION, "--device", "cpu", "--precision", "fp32", "--threads", 1]
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    return [sys.executable, "-m", "stylex", *map(str, arguments)]


def last_logged_step(run: Path) -> int:
    """Of the last whole line of metrics.jsonl, 0 when there is none."""
    try:
        lines = (run / "metrics.jsonl").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def newest_step(run: Path) -> int:
    """Of the newest checkpoint by its name, 0 when there is none."""
    names = sorted((run / "checkpoints").glob("step-*.safetensors"))
    return int(names[-1].stem.removeprefix("step-")) if names else 0


def kill_once(start: list[str], out: Path, numbers: random.Random, *, anywhere: bool, typical: float) -> bool:
    """Start, wait for a random moment, kill. Returns whether it was still running.

    Args:
        anywhere: at any moment of the first START_SHARE · `typical` seconds; else after new checkpoints.
    """
    wanted = newest_step(out) + STEPS_A_CHECKPOINT * numbers.choice((1, 2))
    begin = time.monotonic()
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if anywhere:
        time.sleep(numbers.uniform(0, START_SHARE * typical))
    else:
        while newest_step(out) < wanted and process.poll() is None and time.monotonic() - begin < 300:
            time.sleep(0.002)
        time.sleep(numbers.uniform(0, 0.1))
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if not running and process.returncode != 0:
        raise StylexError(f"training ended by itself: {last_words(errors)}")
    return running


def finish(start: list[str]) -> None:
    """Let a training come to its end. Raises StylexError when it does not."""
    done = subprocess.run(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise StylexError(f"training ended with status {done.returncode}: {last_words(done.stderr)}")


def last_words(errors: bytes) -> str:
    """The last line on standard error."""
    return (errors.decode(errors="replace").strip().splitlines() or ["(nothing said)"])[-1]


def examine(out: Path, reached: int, summary: Summary) -> None:
    """After a kill: the run opens, its newest checkpoint and model are whole, little is lost."""
    if not (out / "run.json").exists():
        summary.before_training += 1
        return
    run = Run.open(out)
    files = run.checkpoint_files()
    for file in [*files, *run.checkpoints.glob("best.safetensors")]:
        read_tensors(file)
    if run.model_file.exists():
        read_tensors(run.model_file)
    lost = reached - newest_step(out)
    summary.lost_steps.append(lost)
    summary.worst_lost_steps = max(summary.lost_steps)
    if lost > STEPS_A_CHECKPOINT:
        summary.failures.append(f"kill {summary.kills}: {lost} steps lost, a checkpoint is written every 5")


def outcome(out: Path) -> dict[str, Any]:
    """What must be the same: checksums of tensors, and the metrics without what a clock has to say."""
    run = Run.open(out)
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    metrics = [
        {key: value for key, value in line.items() if key not in ("seconds", "images_per_second")}
        for line in lines
    ]
    files = [*run.checkpoint_files(), run.model_file, run.checkpoints / "best.safetensors"]
    return {file.name: read_tensors(file)[1]["sha256"] for file in files} | {"metrics": metrics}


def soak(folder: Path, kills: int, recipe: str, seed: int) -> Summary:
    """Run it all in a folder. Raises StylexError when a run cannot be read or continued."""
    begin, numbers, summary = time.monotonic(), random.Random(seed), Summary(seed=seed)
    images, classifier = make_data(folder)
    summary.steps = STEPS_A_CHECKPOINT * (3 * kills + 4)  # each kill lets one to three checkpoints pass
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    finish(command(whole, images, classifier, recipe, summary.steps))
    typical = min(time.monotonic() - started, 20.0)
    start = command(killed, images, classifier, recipe, summary.steps)
    while summary.kills < kills:
        anywhere = summary.kills % 4 == 0
        if not kill_once(start, killed, numbers, anywhere=anywhere, typical=typical):
            summary.failures.append(
                f"training ended after {summary.kills} of {kills} kills; take more steps a kill"
            )
            break
        summary.kills += 1
        examine(killed, last_logged_step(killed), summary)
        print(
            f"kill {summary.kills} of {kills}: at step {last_logged_step(killed)}, "
            f"checkpoint of step {newest_step(killed)}",
            file=sys.stderr,
        )
    finish(start)
    a, b = outcome(whole), outcome(killed)
    different = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    summary.identical = not different
    if different:
        summary.failures.append(f"not as in the uninterrupted training: {', '.join(different)}")
    summary.seconds = round(time.monotonic() - begin, 1)
    return summary


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill stylex train at random moments; nothing may be lost.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--recipe", default="fast", help="fast, stylex or stylegan2")
    parser.add_argument("--seed", type=int, help="of the random moments; by default drawn and printed")
    parser.add_argument("--out", type=Path, help="folder to keep the runs in; by default a temporary one")
    parser.add_argument("--json", type=Path, help="file for the summary")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            summary = soak(folder, given.kills, given.recipe, seed)
        except StylexError as error:
            summary = Summary(seed=seed, failures=[str(error)])
    if given.json:
        write_json(given.json, asdict(summary))
    print(
        f"{summary.kills} kills in {summary.seconds:.0f} s (seed {seed}): "
        f"at most {summary.worst_lost_steps} steps lost at {summary.checkpoint_interval_steps} a checkpoint; "
        f"{'identical to' if summary.identical else 'NOT the same as'} the uninterrupted training"
    )
    for failure in summary.failures:
        print(f"failed: {failure}")
    return 1 if summary.failures or not summary.identical else 0


if __name__ == "__main__":
    sys.exit(main())
