"""The program: its verbs, and what happens when one fails or is stopped."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from types import FrameType
from typing import Any

import typer

from stylex.cli import (
    STOPPED,
    ask,
    attfind,
    bench,
    classifier,
    compare,
    convert,
    counterfactuals,
    data,
    demo,
    doctor,
    evaluate,
    explain,
    factors,
    report,
    reproduce,
    study,
    train,
    view,
)
from stylex.cli.output import error_line, show_warnings
from stylex.errors import ConfigError, Stopped, StylexError
from stylex.version import __version__

USAGE, FAILED = 2, 1

_BAD_USAGE: Any = typer.BadParameter.__mro__[1]
"""The parser's UsageError: of click or of the copy of click within typer, whichever this typer uses."""

app = typer.Typer(
    name="stylex",
    help="Explain an image classifier: what it looks at, shown in images that change its mind.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stylex {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks; may stand anywhere."),
) -> None:
    """Options before the verb."""


app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(classifier.app, name="classifier")
app.add_typer(factors.app, name="factors")
app.command("train")(train.train)
app.command("attfind")(attfind.attfind)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(ask.app, name="ask")
app.command("compare")(compare.compare)
app.command("counterfactuals")(counterfactuals.counterfactuals)
app.command("report")(report.report)
app.command("explain")(explain.explain)
app.command("reproduce")(reproduce.reproduce)
app.command("convert")(convert.convert)
app.command("doctor")(doctor.doctor)
app.command("view")(view.view)
app.add_typer(study.app, name="study")
app.add_typer(bench.app, name="bench")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Unwind at the first request to stop; a second one ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit: 0 done, 2 usage error, 143 stopped and can be continued, 1 otherwise.

    `--debug` anywhere shows tracebacks. Verbs with a stop of their own (training) put their handlers on top.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    show_warnings()
    code = 0
    try:
        command = typer.main.get_command(app)
        # Not command.main(): it turns Ctrl-C into an exit code of its own.
        # With --json, what code of the user's prints must not get between the reader and the result.
        elsewhere: AbstractContextManager[object] = (
            redirect_stdout(sys.stderr) if "--json" in given else nullcontext()
        )
        with elsewhere, command.make_context("stylex", given) as context:
            command.invoke(context)
        sys.stdout.flush()
    except Stopped as error:
        error_line(str(error))
        code = STOPPED
    except typer.Exit as ended:
        code = ended.exit_code
    except (KeyboardInterrupt, typer.Abort):
        error_line("stopped; what was finished is kept, the same command goes on from there or starts over")
        code = STOPPED
    except ConfigError as error:
        _explain(error, debug)
        code = USAGE
    except StylexError as error:
        _explain(error, debug)
        code = FAILED
    except BrokenPipeError:  # who read us has left; the interpreter must not try to flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except OSError as error:
        _explain(error, debug)
        code = FAILED
    except Exception as error:
        if isinstance(error, _BAD_USAGE):
            where = getattr(getattr(error, "ctx", None), "command_path", "stylex")
            error_line(f"{error.format_message()} (see '{where} --help')")
            sys.exit(USAGE)
        if debug:
            traceback.print_exc()
        if _is_out_of_memory(error):
            error_line(
                "out of memory; try a smaller batch (--set training.batch_size=… or attfind --batch-size …)"
            )
            sys.exit(FAILED)
        error_line(f"unexpected {type(error).__name__}: {error} (a bug; --debug shows where)")
        code = FAILED
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error, or PyTorch's: a RuntimeError, of which only the text tells on a CPU."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _explain(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    error_line(str(error))
