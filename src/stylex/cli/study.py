"""`stylex study`: ask people whether they see what an attribute changes, and analyse what they say."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    RunPath,
    Threads,
    choose_hardware,
    note,
    result,
)
from stylex.errors import ConfigError, RunError
from stylex.run import Run, write_atomically

if TYPE_CHECKING:
    from stylex.study.analysis import Analysis, Share
    from stylex.study.design import Design, StudySettings
    from stylex.study.machine import MachineResult

app = typer.Typer(help="Ask people whether they see what an attribute changes.", no_args_is_help=True)

TOKEN_FILE = "admin-token"

UNKNOWN_ATTRIBUTES = "by attribute: not known; '1: A, attribute' in the key says what a question is about"

Attributes = Annotated[int | None, typer.Option(min=2, max=40, help="Attributes asked about; 6.")]
Questions = Annotated[int | None, typer.Option(min=1, max=20, help="Questions about each; 3.")]
Order = Annotated[
    str | None, typer.Option(help="random: drawn for each participant; fixed: one form for all.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything that is drawn.")]
Attention = Annotated[int | None, typer.Option(min=0, max=10, help="Attention checks; 2.")]
Naming = Annotated[bool | None, typer.Option("--naming/--no-naming", help="Ask at the end what changes.")]
Control = Annotated[
    bool | None,
    typer.Option("--control/--no-control", help="A block at the end with images that stand still."),
]
Target = Annotated[str | None, typer.Option(help="Class whose attributes are asked about; by default all.")]
Title = Annotated[str | None, typer.Option(help="On the first page.")]
Consent = Annotated[
    Path | None, typer.Option(help="Text of the consent page, paragraphs between empty lines.")
]


@app.command()
def prepare(
    path: RunPath,
    attributes: Attributes = None,
    questions: Questions = None,
    order: Order = None,
    seed: Seed = None,
    attention: Attention = None,
    naming: Naming = None,
    control: Control = None,
    target: Target = None,
    title: Title = None,
    consent: Consent = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Draw a study's animations and questions, without serving it. A study that has answers is kept."""
    asked = _asked(attributes, questions, order, seed, attention, naming, control, target, title, consent)
    design = _prepared(Run.open(path), asked, data, (device, precision, threads))
    content = {
        "run": str(path),
        "attributes": len(design.attributes),
        "questions": len(design.questions),
        "animations": len(design.images),
    }
    text = f"{len(design.questions)} questions about {len(design.attributes)} attributes"
    result(as_json, content, text)


@app.command()
def serve(
    path: RunPath,
    attributes: Attributes = None,
    questions: Questions = None,
    order: Order = None,
    seed: Seed = None,
    attention: Attention = None,
    naming: Naming = None,
    control: Control = None,
    target: Target = None,
    title: Title = None,
    consent: Consent = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8020,
    public_url: Annotated[
        str | None, typer.Option(help="Where people reach it, if a server with https stands in front.")
    ] = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Serve a study until it is stopped (Ctrl-C); the same command goes on with it."""
    from stylex.web import check_installed

    check_installed()
    from stylex.attfind import load_findings
    from stylex.study.app import create_app, read_pictures
    from stylex.study.material import attribute_names, study_folder
    from stylex.study.store import Store
    from stylex.web.serving import address, allowed_hosts, is_loopback, listen
    from stylex.web.serving import serve as serve_pages

    run = Run.open(path)
    hosts = allowed_hosts(host, public_url)  # before any work: the URL may be none, the port taken
    listening = listen(host, port)
    asked = _asked(attributes, questions, order, seed, attention, naming, control, target, title, consent)
    design = _prepared(run, asked, data, (device, precision, threads))
    folder = study_folder(run)
    store = Store(folder / "answers.sqlite", design)
    pages = create_app(
        store,
        read_pictures(folder / "material"),
        _admin_token(folder / TOKEN_FILE),
        lambda: attribute_names(run, design, load_findings(run)),
        hosts=hosts,
        public_url=public_url,
    )
    url = address(listening)
    shown = public_url.rstrip("/") if public_url else url
    if not is_loopback(host) and public_url is None:
        note("warning: answers travel unencrypted; put a server with https in front and give --public-url")
    text = f"{shown}\nadministration: {shown}/admin, token in {folder / TOKEN_FILE}\n(Ctrl-C ends it)"
    result(as_json, {"run": str(path), "url": url, "admin_token_file": str(folder / TOKEN_FILE)}, text)
    serve_pages(pages, listening)


@app.command()
def export(
    path: RunPath,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the files; those of the same names are replaced.")
    ],
    attentive: Annotated[
        bool, typer.Option("--attentive", help="Only who passed all attention checks.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a study's answers and key as files; the server may go on meanwhile."""
    from stylex.web import check_installed

    check_installed()
    from stylex.attfind import load_findings
    from stylex.study.export import write_files
    from stylex.study.material import attribute_names, study_folder
    from stylex.study.store import Store

    run = Run.open(path)
    design = _existing(run)
    file = study_folder(run) / "answers.sqlite"
    if not file.exists():
        raise RunError(f"{file}: nobody has been asked yet; 'stylex study serve {path}' asks")
    store = Store(file, design)
    written = write_files(store, attribute_names(run, design, load_findings(run)), out, attentive=attentive)
    people = store.participants()
    store.dispose()
    content = {
        "run": str(path),
        "participants": len(people),
        "finished": sum(entry.finished is not None for entry in people),
        "files": [str(file) for file in written],
    }
    text = f"{content['finished']} of {content['participants']} participants finished\n"
    result(as_json, content, text + "\n".join(map(str, written)))


@app.command()
def analyse(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS.csv", help="A row for each participant.")],
    key: Annotated[
        Path, typer.Option("--key", help="The right choices, '1: A' or '1: A, attribute' a line.")
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="The run asked about: attributes get their names.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Accuracy of answers, ours or those of a study made elsewhere, beside the published results."""
    from stylex.study import analyse as analyse_answers

    names = None if run is None else _question_names(Run.open(run), key)
    found = analyse_answers(answers, key, attributes=names, seed=seed)
    result(as_json, {"answers": str(answers), **found.to_json()}, describe(found))


@app.command()
def machine(
    path: RunPath,
    factors: Annotated[
        Path | None,
        typer.Option("--factors", help="A factor detector; by default the run's detector.safetensors."),
    ] = None,
    participants: Annotated[int, typer.Option(min=1, max=1000, help="Forms that the machine fills in.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", help="File for its answers, as CSV.")] = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Dry-run a study: a factor detector answers it, and attributes that cannot be told apart are flagged."""
    from stylex.attfind import load_findings
    from stylex.evaluation.factors import FactorDetector
    from stylex.study.machine import read_changes, take_part
    from stylex.study.material import attribute_names, load_pairs

    run = Run.open(path)
    file = factors or run.path / "detector.safetensors"
    if not file.exists():
        raise ConfigError(
            f"{file}: no such file; 'stylex factors train' makes a detector, --factors names it"
        )
    detector = FactorDetector.load(file)
    design = _prepared(run, {}, data, (device, precision, threads))
    changes = read_changes(detector, *load_pairs(run))
    names = attribute_names(run, design, load_findings(run))
    found = take_part(design, changes, names, participants)
    if out is not None:
        write_atomically(out, lambda file: file.write(found.csv().encode()))
    result(as_json, {"run": str(path), **found.to_json()}, describe_machine(found))


def describe(found: Analysis) -> str:
    """An analysis for people."""

    def std(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    def share(entry: Share) -> str:
        return f"{entry.estimate:.3f} ({entry.low:.3f} to {entry.high:.3f})"

    test = found.chance
    lines = [
        f"{found.participants} participants, {found.questions} questions",
        f"accuracy {share(found.interval)}, 95 %, {found.interval.method}",
        f"standard deviation over questions {std(found.std_questions)}, "
        f"over participants {std(found.std_participants)}",
        f"against chance: {test.above} participants above, {test.at} at, {test.below} below 0.5, "
        f"sign test p = {test.p_value:.2g}; {test.individually} above chance by themselves",
        "",
        *(f"{name.ljust(28)} {share(entry)}" for name, entry in found.by_attribute.items()),
        *(() if found.by_attribute else (UNKNOWN_ATTRIBUTES,)),
        *(f"question {number}".ljust(29) + share(entry) for number, entry in found.by_question.items()),
        "",
        "published                    accuracy ± std    ours − theirs",
    ]
    for entry in found.published:
        size = "" if entry.participants is None else f", {entry.participants} people × {entry.questions}"
        within = "within our interval" if entry.inside else "outside our interval"
        figures = f"{entry.accuracy:.3f} ± {entry.std:.3f}     {entry.difference:+.3f}"
        lines.append(f"{entry.source.ljust(28)} {figures}, {within}{size}")
    if found.unclear:
        lines.append(f"\nnot told apart from others: {', '.join(found.unclear)}")
    return "\n".join(lines)


def describe_machine(found: MachineResult) -> str:
    """What a machine participant found, for people."""
    lines = [f"{found.participants} forms answered by the factor detector, accuracy {found.accuracy:.3f}", ""]
    lines.append("attribute                    accuracy (95 %)       by what can be named")
    for entry in found.attributes:
        text = f"{entry.attribute.ljust(28)} {entry.accuracy:.2f} ({entry.low:.2f} to {entry.high:.2f})   "
        text += f"{entry.named:.2f}   reads {entry.reads} {entry.change:+.2f}"
        if entry.confused_with:
            text += f", taken for {entry.confused_with}"
        lines.append(text + ("   ← FLAGGED" if entry.flagged else ""))
    if found.flagged:
        lines.append(f"\npeople may not tell these apart: {', '.join(found.flagged)}")
    return "\n".join(lines)


def _asked(
    attributes: int | None,
    questions: int | None,
    order: str | None,
    seed: int | None,
    attention: int | None,
    naming: bool | None,
    control: bool | None,
    target: str | None,
    title: str | None,
    consent: Path | None,
) -> dict[str, Any]:
    """Settings that were given; others keep the study's value, or the default."""
    if order not in (None, "random", "fixed"):
        raise ConfigError(f"--order {order}: random or fixed")
    words = None
    if consent is not None:
        try:
            words = consent.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--consent {consent}: cannot be read ({error})") from None
    given = {
        "attributes": attributes,
        "questions": questions,
        "order": order,
        "seed": seed,
        "attention": attention,
        "naming": naming,
        "control": control,
        "target": target,
        "title": title,
        "consent": words,
    }
    return {key: value for key, value in given.items() if value is not None}


def _prepared(
    run: Run, asked: dict[str, Any], data: str | None, computing: tuple[str, str, int | None]
) -> Design:
    """The run's study; drawn where there is none, or another one was asked for and nobody has answered."""
    from pydantic import ValidationError

    from stylex.study.design import StudySettings
    from stylex.study.material import load_design, study_folder
    from stylex.web import check_installed

    existing = load_design(run)
    before = {} if existing is None else existing.settings.model_dump()
    try:
        settings = StudySettings(**(before | asked))
    except ValidationError as error:
        raise ConfigError(f"the study's settings: {error.errors()[0]['msg']}") from None
    if existing is not None and settings == existing.settings and data is None:
        return existing
    if existing is not None:
        check_installed()
        from stylex.study.store import count_participants

        people = count_participants(study_folder(run) / "answers.sqlite")
        if people:
            raise RunError(
                f"{study_folder(run)}: {people} participants answer another study; "
                "move the folder away to begin a new one, or leave the options out"
            )
    return _drawn(run, settings, data, computing)


def _drawn(
    run: Run, settings: StudySettings, data: str | None, computing: tuple[str, str, int | None]
) -> Design:
    from stylex.evaluation.measure import prepare as prepare_images
    from stylex.explainer import load_images, open_explainer
    from stylex.study.material import make_study, study_folder

    device, precision, threads = computing
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    if settings.target is not None and settings.target not in explainer.class_names:
        raise ConfigError(f"no class '{settings.target}'; there are {', '.join(explainer.class_names)}")
    images = None if explainer.model.encoder is None else load_images(run, data).test
    with run.locked():
        note("reading the test images")
        test = prepare_images(explainer.model, images, run.config.seed)
        for name in (
            "answers.sqlite",
            "answers.sqlite-wal",
            "answers.sqlite-shm",
        ):  # of a study nobody answered
            (study_folder(run) / name).unlink(missing_ok=True)
        return make_study(explainer, test, settings, note, source=data)


def _existing(run: Run) -> Design:
    from stylex.study.material import load_design

    design = load_design(run)
    if design is None:
        raise RunError(f"{run.path}: no study yet; 'stylex study serve {run.path}' makes one")
    return design


def _question_names(run: Run, key: Path) -> dict[int, str]:
    """Question → name of its attribute, as it is now; the key tells a study from its control block."""
    from stylex.attfind import load_findings
    from stylex.study.answers import read_key
    from stylex.study.material import attribute_names

    design, right = _existing(run), read_key(key)
    if right not in (design.key, design.control_key):
        raise ConfigError(f"--key {key}: belongs to another study than that of {run.path}; leave --run out")
    names = attribute_names(run, design, load_findings(run))
    return design.by_question(names, control=right != design.key)


def _admin_token(file: Path) -> str:
    """The administrator's token: made once, readable by its owner only."""
    if file.exists():
        token = file.read_text(encoding="utf-8").strip()
        if len(token) < 20:
            raise RunError(f"{file}: holds no token of 20 characters or more; delete it to have one made")
        return token
    token = secrets.token_urlsafe(32)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(token + "\n")
    return token
