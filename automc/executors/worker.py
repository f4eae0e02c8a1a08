"""What runs in a worker process: it is given a parcel, makes what works from it, and answers one job after the other.

Started by `processes` as `python -m automc.executors.worker`; talks through a socket it inherits. It ends with the
process that started it, however that ends, and leaves Ctrl-C to it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from automc.errors import AutomcError
from automc.executors.parcel import opened


def main() -> None:
    """Serves until the socket is closed."""
    socket, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    connection: Connection[Any, Any] = Connection(socket)
    with contextlib.suppress(EOFError, OSError):  # nobody is left to hear of it
        work = _set_up(connection)
        while work is not None:
            connection.send(worked(work, connection.recv()))


def _set_up(connection: "Connection[Any, Any]") -> Any:
    """What works on jobs; None where it cannot be made, which is said."""
    path, threads, memory_bytes, parcel = connection.recv()
    work, said = made(lambda: opened(parcel), path, threads, memory_bytes)
    connection.send(("ready", None) if work is not None else ("broken", said))
    return work


def made(
    unpack: Callable[[], Callable[[], Any]], path: Sequence[str], threads: int, memory_bytes: int | None
) -> tuple[Any, str]:
    """What works on jobs in this process, or None and why; `path` is where the other process finds its modules."""
    sys.path += [folder for folder in path if folder not in sys.path]
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # the other process has said it already
    try:
        work = unpack()()
        _bound(memory_bytes)
    except Exception as error:  # a model's own code may run here
        return None, _said(error)
    return work, ""


def worked(work: Any, job: Any) -> tuple[str, Any]:
    """What became of a job: done and its result, or raised and why."""
    try:
        return "done", work(job)
    except Exception as error:
        return "raised", _said(error)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AutomcError) and text else f"{type(error).__name__}: {text}"[:300]


def _end_with(parent: int) -> None:
    """Has the kernel end this process with its parent, even in the middle of a job; elsewhere it ends after that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _bound(memory_bytes: int | None) -> None:
    """From here on, so many bytes more than what is mapped now, at most: an allocation beyond raises in its job."""
    if memory_bytes is None or sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))


if __name__ == "__main__":
    main()
