"""What a command prints: results on standard output, everything else on standard error."""

import json
import sys
from typing import TYPE_CHECKING, Any

from automc.visible import visible

if TYPE_CHECKING:
    from rich.console import Console


def say(line: str) -> None:
    """A line about the command itself, to standard error."""
    print(visible(line), file=sys.stderr)


def tell(line: str) -> None:
    """A line of what was asked for; whatever names stand in it, the terminal only shows it."""
    print(visible(line))


def print_json(document: Any) -> None:
    """A result for programs."""
    print(json.dumps(document, indent=1))


def console() -> "Console":
    """Wide where the output is no terminal, so that nothing is cut."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)
