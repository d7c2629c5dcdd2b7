"""`stylex attfind`: find the attributes of a trained run."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from stylex import parallel
from stylex.attfind import Attribute, Findings
from stylex.attfind.pairs import Pairs, load_pairs, named_pairs, pairs_to_json
from stylex.attfind.search import fingerprint
from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    RunPath,
    Threads,
    hardware_of_all,
    result,
)
from stylex.config import AttFindSettings, override, validate
from stylex.hardware import Hardware
from stylex.parallel import World
from stylex.run import Run

if TYPE_CHECKING:
    from stylex.data import ImageSet


def attfind(
    path: RunPath,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Discovery images of each class.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="subset, independent or removal.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Search setting, key=value.")] = None,
    one_vs_one: Annotated[
        bool, typer.Option("--one-vs-one", help="Also attributes from every class to every other.")
    ] = False,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--screened",
            help="Measure every change on every image, or most changes on some images only; "
            "default: the second for more than 100 images.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Changed images synthesised at once.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory the sweep may take, such as 4G; default: half of what is free."),
    ] = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure the effect of every style coordinate and rank the attributes for every class."""
    from stylex.attfind.batches import parse_memory

    run = Run.open(path)
    sweep = None if exact is None else "exact" if exact else "screened"
    given = {"images_per_class": images, "method": method, "batch_size": batch_size, "sweep": sweep}
    settings = run.config.attfind.model_dump() | {
        key: value for key, value in given.items() if value is not None
    }
    chosen_settings = validate(AttFindSettings, override(settings, set_ or []), "settings of attfind")
    most = None if memory is None else parse_memory(memory)
    with parallel.joined(device=device) as world:
        hardware = hardware_of_all(device, precision, threads, world)
        with run.locked() if world.first else nullcontext():
            findings = _search(run, hardware, chosen_settings, data, most, world, one_vs_one)
    if world.first:
        pairs = named_pairs(load_pairs(run, fingerprint(findings)), findings) if one_vs_one else {}
        lines = [describe(findings), *describe_pairs(pairs), *describe_screening(findings)]
        content = {
            "run": str(path),
            **findings.to_json(),
            "pairs": pairs_to_json(pairs),
        }
        result(as_json, content, "\n".join(lines))


def _search(
    run: Run,
    hardware: Hardware,
    settings: AttFindSettings,
    data: str | None,
    memory: int | None,
    world: World,
    one_vs_one: bool,
) -> Findings:
    """One process's part; the first one reads the images and shows progress."""
    from stylex.attfind import search
    from stylex.cli.sweeping import sweep_view
    from stylex.explainer import load_images
    from stylex.model import load_model
    from stylex.stylespace import searchable_positions

    model = load_model(run, hardware)
    discovery: ImageSet | None = None

    def read() -> None:
        nonlocal discovery
        if model.encoder is not None:
            discovery = load_images(run, data, measured="discovery").discovery

    world.from_first(read)
    if not world.first:
        return search(run, model, None, settings, memory=memory, world=world)
    with sweep_view(len(searchable_positions(model.generator.synthesis.layout))) as view:
        return search(
            run,
            model,
            discovery,
            settings,
            view.on_progress,
            on_changes=view.on_changes,
            memory=memory,
            world=world,
            one_vs_one=one_vs_one,
        )


def describe_screening(findings: Findings) -> list[str]:
    """How a screened search went as lines of text, its confidence last; none for an exact one."""
    lines = []
    for stage in findings.screening:
        how = "first-order effects" if stage.first_order else "effects"
        sure = "" if stage.sure is None else f", {stage.sure:.1%} sure"
        lines.append(
            f"  screened by {how} on {stage.images} images: {stage.changes_left} of "
            f"{2 * findings.coordinates} changes left{sure}"
        )
    if findings.confidence is not None:
        lines.append(f"screened search: confidence {findings.confidence:.1%}")
    return lines


def describe(findings: Findings, most: int = 10) -> str:
    """Attributes as lines of text."""
    lines = []
    for target, found in findings.attributes.items():
        if found:
            order = ", ranked by effect" if findings.settings.order == "effect" else ""
            lines.append(f"towards '{target}' ({findings.images} images searched{order})")
            lines += _ranked(found[:most])
    return "\n".join(lines)


def describe_pairs(pairs: Pairs, most: int = 3) -> list[str]:
    """Attributes from each class to each other one as lines of text."""
    lines = []
    for (source, target), found in pairs.items():
        if found:
            lines.append(f"from '{source}' to '{target}' ({found[0].images} images searched)")
            lines += _ranked(found[:most])
    return lines


def _ranked(entries: Iterable[Attribute]) -> list[str]:
    return [
        f"  {entry.rank:2d}. {entry.title}: effect {entry.effect:+.2f}, flips {entry.flipped:.0%} alone"
        + ("" if entry.repeats is None else f", the same change as {entry.repeats}")
        for entry in entries
    ]
