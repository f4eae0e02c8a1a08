"""Which task a command is about."""

from typing import Any

from automc.errors import TaskError


def reference_of(given: str | None, recorded: Any, where: str) -> str:
    """The task that was named now, or in an earlier command: what a file says alone has no code run."""
    from automc.tasks import named

    if given:
        named.note(given)
        return given
    if not recorded or not isinstance(recorded, str):
        raise TaskError("A task must be known by a reference; this one was an object: add --task file.py:attribute.")
    named.check(recorded, where)
    return recorded
