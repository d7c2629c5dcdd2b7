"""`stylex bench`: how fast this machine does the work, beside a peer where one is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, progress, result
from stylex.errors import ConfigError

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


@app.command("scale")
def scale(
    recipe: Annotated[str, typer.Option(help="Recipe by name, or a YAML file.")] = "stylex",
    size: Annotated[int, typer.Option(min=8, help="Pixels a side, a power of two.")] = 256,
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one a GPU.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images a step, of all processes together.")] = 16,
    numbers: Annotated[
        str, typer.Option("--precision", help="Of the networks on paper: bf16 or fp32.")
    ] = "bf16",
    tflops: Annotated[float, typer.Option(min=0.001, help="ASSUMED rate of each GPU, 10¹² FLOP/s.")] = 100.0,
    gigabytes: Annotated[
        float, typer.Option(min=0.001, help="ASSUMED rate of each GPU's link, GB/s.")
    ] = 20.0,
    measure: Annotated[bool, typer.Option("--measure", help="Also time real steps on this machine.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Recipe setting, section.key=value.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Training on many GPUs on paper: parameters, operations, memory, communication, time."""
    from stylex.benchmarks.scale import measure as measure_here
    from stylex.benchmarks.scale import plan_scale
    from stylex.config import load_recipe
    from stylex.data import check_size
    from stylex.errors import ConfigError
    from stylex.training.costs import OutOfMemory

    check_size(size)
    if numbers not in ("bf16", "fp32"):
        raise ConfigError(f"precision is '{numbers}'; choose bf16 or fp32")
    chosen = load_recipe(recipe, set_ or ())
    plan = plan_scale(chosen, size, gpus, batch_size=batch, precision=numbers)
    computing, averaging = plan.hours(tflops, gigabytes)
    content = {
        "computed": plan.to_json(),
        "assumed": {
            "tflops": tflops,
            "gigabytes_a_second": gigabytes,
            "computing_hours": computing,
            "averaging_hours": averaging,
        },
        "measured": None,
    }
    lines = [
        f"computed: recipe {plan.recipe}, {size} px, {gpus} GPUs, batch {batch}, {numbers}, "
        f"{plan.total_kimg:g} kimg",
        f"  parameters: {', '.join(f'{name} {count:,}' for name, count in plan.parameters.items())}",
        f"  an image of a step: {plan.flops_an_image / 1e9:,.0f} GFLOP, "
        f"{plan.noise_numbers:,} random numbers a synthesis",
        f"  on each GPU: {plan.state_bytes / 1e6:,.0f} MB state, {plan.kept_bytes / 1e6:,.0f} MB kept for "
        f"backward, {plan.sent_bytes / 1e6:,.0f} MB sent a step",
        f"at {tflops:g} TFLOP/s and {gigabytes:g} GB/s a GPU, both assumed: "
        f"{computing:.1f} h computing, {averaging:.1f} h averaging gradients",
    ]
    if measure:
        try:
            found = measure_here(chosen, size, choose_hardware(device, numbers, threads))
        except OutOfMemory as error:
            raise ConfigError(f"{error}; measure a smaller --size") from None
        content["measured"] = found.to_json()
        kinds = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in found.cost.kinds.items())
        more = ", ".join(f"{name} {seconds:.2f} s more" for name, seconds in found.cost.phases.items())
        lines.append(f"measured on {found.machine}: a step of two images, {kinds}; {more}")
    result(as_json, content, "\n".join(lines))


@app.command("attfind")
def attfind(
    size: Annotated[
        list[str] | None, typer.Option(help="shipped, study or authors; all by default; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each piece of work is measured.")] = 3,
    peer: Annotated[
        Path | None, typer.Option(help="A clone of rosinality/stylegan2-pytorch, to run beside ours.")
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """The search: changes measured a second, arithmetic achieved, memory; four ways, and a peer's."""
    from stylex.benchmarks import bench_attfind
    from stylex.benchmarks.searching import SIZES

    chosen = tuple(name for name in SIZES if size is None or name in size)
    unknown = sorted(set(size or ()) - set(SIZES))
    if unknown:
        raise ConfigError(f"--size {unknown[0]}: choose {', '.join(SIZES)}")
    hardware = choose_hardware(device, precision, threads)
    with progress() as display:
        task = display.add_task("measuring the search, round", total=None)
        found = bench_attfind(
            hardware,
            sizes=chosen,
            rounds=rounds,
            peer=peer,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    lines = [f"machine: {found.machine}"]
    for each in found.sizes:
        lines.append(
            f"{each.name}: {each.coordinates} coordinates, batches of {each.batch_size}, "
            f"{each.layers} of {each.layers_in_all} layers; "
            f"a convolution reaches {each.convolution_peak_flops / 1e12:.2f} TFLOP/s"
        )
        for name, way in each.paths.items():
            lines.append(
                f"  {name}: {way.evaluations_per_second:.1f} evaluations/s, "
                f"{way.flops_per_second / 1e12:.2f} TFLOP/s ({way.share_of_convolution_peak:.0%}), "
                f"{way.peak_memory_bytes / 2**20:.0f} MiB"
            )
        if each.peer_evaluations_per_second is not None and each.speedup is not None:
            peers = each.peer_evaluations_per_second
            lines.append(f"  the peer: {peers:.2f} evaluations/s; the sweep is {each.speedup:.1f} × as fast")
        if each.where_the_time_goes:
            lines.append("  where the sweep's time goes, in those layers:")
        lines += [f"    {entry.share:5.1%}  {entry.kind}" for entry in each.where_the_time_goes]
    if (whole := found.screened) is not None:
        lines.append(
            f"screened, {whole.images} images of the shipped model: {whole.seconds:.0f} s, with all that "
            f"belongs to it, {whole.measured / whole.changes:.0%} of the changes measured; an exact search "
            f"would need {whole.evaluations_per_second:.0f} evaluations/s to be as fast; "
            f"{whole.flops_per_second / 1e12:.2f} TFLOP/s ({whole.share_of_convolution_peak:.0%}), "
            f"{whole.peak_memory_bytes / 2**20:.0f} MiB"
        )
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
