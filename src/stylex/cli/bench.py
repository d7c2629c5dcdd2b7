"""`stylex bench`: how fast this machine does the work, beside a peer where one is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, progress, result

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.command("train")
def train(
    rounds: Annotated[int, typer.Option(min=1, help="How often each piece of work is measured.")] = 3,
    peer: Annotated[
        Path | None, typer.Option(help="A clone of rosinality/stylegan2-pytorch, to run beside ours.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Training: seconds of a study step, images/s of the recipes, where the time goes."""
    from stylex.benchmarks import bench_training

    hardware = choose_hardware(device, precision, threads)
    with progress() as display:
        task = display.add_task("measuring training, round", total=rounds)
        found = bench_training(
            hardware,
            rounds=rounds,
            seed=seed,
            peer=peer,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    lines = [
        f"machine: {found.machine}",
        f"a step of the study (512 channels, batch 4): {found.study_step_seconds:.2f} s",
    ]
    if found.peer_step_seconds is not None and found.speedup is not None:
        lines.append(f"the peer's step: {found.peer_step_seconds:.2f} s, {found.speedup:.1f} × ours")
    share = found.achieved_flops / found.convolution_peak_flops
    lines += [
        f"128 channels, batch 16 (recipe stylex): {found.wide_images_per_second:.1f} images/s, "
        f"{share:.0%} of the {found.convolution_peak_flops / 1e12:.2f} TFLOP/s that a convolution reaches",
        f"recipe fast: {found.fast_images_per_second:.1f} images/s, "
        f"its warm-up {found.fast_warm_up_images_per_second:.1f}",
        "where the time of recipe fast goes:",
    ]
    lines += [f"  {entry.share:5.1%}  {entry.kind}" for entry in found.where_the_time_goes]
    result(as_json, found.to_json(), "\n".join(lines))


@app.command("loader")
def loader(
    data: Annotated[str, typer.Argument(help="Images, as for 'stylex train --data'.")],
    size: Annotated[int, typer.Option(help="Pixels along a side, a power of two.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long batches are drawn.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Loading alone: images/s in random batches from the memory-mapped file, and decoded once."""
    from stylex.benchmarks.loader import bench_loader
    from stylex.benchmarks.machine import describe

    hardware = choose_hardware("cpu", "fp32", None)
    found = bench_loader(describe(hardware), data, size=size, batch_size=batch_size, seconds=seconds)
    text = (
        f"machine: {found.machine}\n{found.images} images of {size} px: decoded once at "
        f"{found.decoded_per_second:.0f} images/s into {found.megabytes:.0f} MB, then loaded in batches of "
        f"{batch_size} at {found.loaded_per_second:.0f} images/s"
    )
    result(as_json, found.to_json(), text)
