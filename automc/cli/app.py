"""The application: its commands, and every error as one line.

An error is one line on standard error and exit status 2; Ctrl-C gives 130, SIGTERM 143. Heavy packages are imported
inside the commands, so that help and typing errors answer at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from automc.cli import models, saved, searching, studies
from automc.cli.output import say
from automc.errors import AutomcError, told

app = typer.Typer(
    help="Search, layer by layer, how to compress a PyTorch model within a budget.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (
    models.tasks,
    models.inspect,
    models.profile,
    searching.search,
    studies.pareto,
    studies.show,
    studies.apply,
    saved.evaluate,
    saved.export,
    saved.bench,
)
"""In the order of the help."""
for _command in COMMANDS:
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from automc import __version__

        print(__version__)
        raise typer.Exit


VersionOption = Annotated[  # eager, since it needs no command
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
]


@app.callback()
def root(version: VersionOption = False) -> None:
    """Search, layer by layer, how to compress a PyTorch model within a budget."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0, or 2 with one line on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    sys.exit(_guarded(lambda: app(args=given, prog_name="automc", standalone_mode=False)))


def _guarded(run: Callable[[], Any]) -> int:
    """The exit status of a command, every exception told in one line; AUTOMC_DEBUG=1 shows where it came from."""
    try:
        status = run()
    except Exception as error:
        if type(error).__name__ == "Abort":  # what older typer makes of Ctrl-C
            return 130
        if os.environ.get("AUTOMC_DEBUG"):
            raise
        say("error: " + " ".join(_explain(error).split()))
        return 2
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> str:
    if isinstance(error, AutomcError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's own errors, whichever click it carries
        return str(error.format_message())
    if isinstance(error, OSError):
        said = error.strerror or error
        return f"{error.filename or 'A file'} must be usable; the system says {said}: mend that and repeat the command."
    if isinstance(error, MemoryError):
        return "Memory must suffice; it did not: use smaller batches, or close other programs."
    return f"A command must finish; this one stopped with {told(error)}: set AUTOMC_DEBUG=1 to see where."
