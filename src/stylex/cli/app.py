"""The program: its verbs, and what happens when one fails or is stopped."""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType
from typing import Any

import typer

from stylex.cli import attfind, classifier, data, demo, evaluate, explain, report, train
from stylex.cli.output import error_line
from stylex.errors import ConfigError, Stopped, StylexError
from stylex.version import __version__

USAGE, FAILED, STOPPED = 2, 1, 143

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
) -> None:
    """Options before the verb."""


app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(classifier.app, name="classifier")
app.command("train")(train.train)
app.command("attfind")(attfind.attfind)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("explain")(explain.explain)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit: 0 done, 2 usage error, 143 stopped and can be continued, 1 otherwise.

    `--debug` anywhere shows tracebacks.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    code = 0
    try:
        command = typer.main.get_command(app)
        code = int(command.main(given, prog_name="stylex", standalone_mode=False) or 0)
    except Stopped as error:
        error_line(str(error))
        code = STOPPED
    except (KeyboardInterrupt, typer.Abort):
        error_line("stopped; what was finished is kept, the same command goes on from there")
        code = STOPPED
    except ConfigError as error:
        _explain(error, debug)
        code = USAGE
    except StylexError as error:
        _explain(error, debug)
        code = FAILED
    except BrokenPipeError:
        code = FAILED
    except MemoryError:
        error_line(
            "out of memory; try a smaller batch (--set training.batch_size=… or attfind --batch-size …)"
        )
        code = FAILED
    except OSError as error:
        _explain(error, debug)
        code = FAILED
    except Exception as error:
        if isinstance(error, _BAD_USAGE):
            context = getattr(error, "ctx", None)
            where = context.command_path if context is not None else "stylex"
            error_line(f"{error.format_message()} (see '{where} --help')")
            sys.exit(USAGE)
        if debug:
            traceback.print_exc()
        error_line(f"unexpected {type(error).__name__}: {error} (a bug; --debug shows where)")
        code = FAILED
    sys.exit(code)


def _explain(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    error_line(str(error))
