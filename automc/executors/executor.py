"""The contract of what works on jobs for a loop, and what a worker is made from."""

from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

J = TypeVar("J")
R = TypeVar("R")
J_in = TypeVar("J_in", contravariant=True)
R_out = TypeVar("R_out", covariant=True)


@runtime_checkable
class Executor(Protocol[J_in, R_out]):
    """Works on jobs somewhere: here, in processes, on other machines.

    A loop keeps up to `slots` jobs submitted and takes results back in the order of submission, so what a search does
    depends on how many candidates are in flight and never on which of them finished first.
    """

    slots: int
    """How many jobs may be in flight."""

    def submit(self, job: J_in) -> None:
        """Begins to work on a job."""
        ...

    def next(self) -> R_out:
        """Waits for the oldest job in flight; one that went wrong has a result that says so, never an exception."""
        ...

    def close(self) -> None:
        """Gives up what is in flight, and everything that was started."""
        ...


Make: TypeAlias = Callable[[], Callable[[J], R]]
"""Called once in each worker; what it returns is called with every job there.

It may have an attribute `unwritten`: tensors in it that nothing ever writes to. Where the memory in which they arrive
belongs to several workers, only these are left there.
"""
Lost: TypeAlias = Callable[[J, str, float], R]
"""The result of a job that no worker came back with: the job, why, and the seconds it took."""
