"""What `stylex train --dry-run` says to people."""

from __future__ import annotations

from pathlib import Path

from stylex.config import RunConfig
from stylex.training.costs import Estimate
from stylex.training.plan import duration


def describe(out: Path, config: RunConfig, estimate: Estimate, training_images: int) -> str:
    """A few aligned lines: settings, parameters, coordinates, memory, time."""
    training = config.recipe.training
    size = estimate.size
    batch = f"{training.batch_size}" + (f" × {training.accumulate}" if training.accumulate > 1 else "")
    parts = ", ".join(f"{name} {count:,}" for name, count in size.parameters.items())
    rows = {
        "settings": f"recipe {config.recipe.name}, {config.resolution} px, batch {batch}, "
        f"{training.total_kimg:g} kimg; {training_images:,} training images",
        "parameters": f"{sum(size.parameters.values()):,}: {parts}",
        "coordinates": f"{size.searchable:,} searchable of {size.styles:,} styles",
        "memory": _memory(estimate, training.batch_size),
        "time": _time(config, estimate),
    }
    lines = [f"{out}: dry run, nothing was written"]
    return "\n".join(lines + [f"  {name:<12} {text}" for name, text in rows.items()])


def _memory(estimate: Estimate, batch_size: int) -> str:
    state = _bytes(estimate.size.state_bytes)
    free = "" if estimate.available_bytes is None else f", of {_bytes(estimate.available_bytes)} available"
    warning = "" if estimate.fits else ": TOO LITTLE, take a smaller batch or narrower networks"
    cost = estimate.cost
    if cost is None:
        return f"{state} for weights, gradients, Adam and averages alone{free}{warning}"
    how = f"measured at batch {cost.batch_size}"
    if cost.batch_size != batch_size:
        how += f", in proportion for {batch_size}"
    activations = _bytes(int(cost.activation_bytes * batch_size / cost.batch_size))
    return (
        f"{_bytes(estimate.peak_bytes)} at the peak{free}{warning} ({_bytes(cost.base_bytes)} program and "
        f"data, {state} weights, gradients, Adam and averages, {activations} activations, {how})"
    )


def _time(config: RunConfig, estimate: Estimate) -> str:
    cost = estimate.cost
    if cost is None or estimate.seconds is None:
        return "not measured: the memory does not suffice"
    left = estimate.images - estimate.images_done
    speed = f"{left / estimate.seconds:.1f} images/s" if estimate.seconds else "finished"
    done = f" ({estimate.images_done / 1000:.1f} kimg are done)" if estimate.images_done else ""
    loss = config.recipe.loss
    each = [f"{kind} step {seconds:.2f} s" for kind, seconds in cost.kinds.items()]
    intervals = {"path_length": loss.path_length_interval, "r1": loss.r1_interval}
    each += [
        f"{name.replace('_', ' ')} {seconds:.2f} s every {intervals[name]}"
        for name, seconds in cost.phases.items()
    ]
    if cost.warm_up is not None:
        each.append(f"warm-up step {cost.warm_up:.2f} s for {loss.adversarial_start_kimg:g} kimg")
    if estimate.preparation:
        each.append(f"evidence {duration(estimate.preparation)} before the first step")
    rounds = "once" if cost.rounds == 1 else f"{cost.rounds} times"
    return (
        f"{duration(estimate.seconds)} for {estimate.steps:,} steps{done}, {speed} on average; "
        f"batches of {cost.batch_size}, each sort of step timed {rounds}: {', '.join(each)}"
    )


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
