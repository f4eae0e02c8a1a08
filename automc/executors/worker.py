"""What runs in a worker process: it is given a parcel, makes what works from it, and answers one job after the other.

Started by `processes` as `python -m automc.executors.worker`; talks through a socket it inherits. It ends with the
process that started it, however that ends: it is bound to it before anything that takes long is imported.
"""

import contextlib
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from automc.errors import told


def main() -> None:
    """Serves until the socket is closed."""
    socket, parent = int(sys.argv[1]), int(sys.argv[2])
    _end_with(parent)
    connection: Connection[Any, Any] = Connection(socket)
    with contextlib.suppress(EOFError, OSError):  # nobody is left to hear of it
        work = _set_up(connection)
        while work is not None:
            connection.send_bytes(_written(worked(work, connection.recv())))


def _set_up(connection: "Connection[Any, Any]") -> Any:
    """What works on jobs; None where it cannot be made, which is said."""
    from automc.executors.parcel import opened

    path, threads, memory_bytes, parcel = connection.recv()
    work, said = made(lambda: opened(parcel), path, threads, memory_bytes)
    parcel.close()  # what is opened holds the memory
    connection.send(("ready", None) if work is not None else ("broken", said))
    return work


def made(
    unpack: Callable[[], Callable[[], Any]], path: Sequence[str], threads: int, memory_bytes: int | None
) -> tuple[Any, str]:
    """What works on jobs in this process, or None and why; `path` is where the other process finds its modules."""
    import torch

    sys.path += [folder for folder in path if folder not in sys.path]
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # the other process has said it already
    try:
        work = unpack()()
    except BaseException as error:  # a model's own code may run here, and end the process if it could
        return None, told(error)

    def bounded(job: Any) -> Any:
        with _bounded(memory_bytes):
            return work(job)

    return bounded, ""


def worked(work: Any, job: Any) -> tuple[str, Any]:
    """What became of a job: done and its result, or raised and why."""
    try:
        return "done", work(job)
    except BaseException as error:  # SystemExit, too, is the job's and not the worker's
        return "raised", told(error)


def _written(answer: tuple[str, Any]) -> bytes:
    """An answer as it is sent; a result that cannot be is a job that raised."""
    try:
        return bytes(cloudpickle.dumps(answer))
    except Exception as error:
        return bytes(cloudpickle.dumps(("raised", f"What it gave cannot leave its process: {told(error)}")))


def _end_with(parent: int) -> None:
    """Has the kernel end this process with its parent, even in the middle of a job; elsewhere it ends after that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def _bounded(memory_bytes: int | None) -> Iterator[None]:
    """In the block, so many bytes more than what is mapped at its begin, at most: an allocation beyond raises."""
    if memory_bytes is None or sys.platform != "linux":
        yield
        return
    import resource

    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + memory_bytes
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [most, *(bound for bound in (before, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


if __name__ == "__main__":
    main()
