"""Which processes are still there."""

import os
import time
from collections.abc import Collection
from pathlib import Path


def children(process: int | None = None) -> list[int]:
    """Processes that a process, by default this one, has started and that have not been waited for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(entry) == (process or os.getpid()):
            found.append(int(entry.name))
    return sorted(found)


def alive(processes: Collection[int]) -> list[int]:
    """Those of some processes that run; what has ended and was not waited for does not."""
    return [process for process in processes if _state(Path("/proc", str(process))) not in ("", "Z")]


def gone(processes: Collection[int], within: float = 10.0, *, reaped: bool = True) -> bool:
    """Whether some processes end within so many seconds; children of this one are waited for, if they are `reaped`."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        left = [p for p in processes if Path("/proc", str(p)).exists()] if reaped else alive(processes)
        if not left:
            return True
        time.sleep(0.02)
    return False


def _state(entry: Path) -> str:
    return _stat(entry)[0]


def _parent(entry: Path) -> int:
    return int(_stat(entry)[1])


def _stat(entry: Path) -> tuple[str, str]:
    """State and parent; nothing of a process that is gone."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return "", "-1"
    return fields[0], fields[1]
