"""Sparsity patterns: which weights of a layer leave together.

    element   any single weight
    N:M       of each M consecutive inputs N stay: 2:4 is Nvidia's semi-structured sparsity (Mishra et al. 2021)
    RxC       blocks of R consecutive outputs and C consecutive inputs: 1x4, 16x1, ...

Inputs are consecutive along the channels at one kernel position, as channels-last kernels read them. Where channels
do not divide into blocks, the last block of each row of blocks is smaller.
"""

import re
from dataclasses import dataclass

from automc.errors import PolicyError

_NAME = re.compile(r"(?P<n>[1-9]\d*):(?P<m>[1-9]\d*)|(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """What leaves together, or how many of their neighbours stay."""

    name: str
    rows: int = 1
    """Consecutive outputs in a block."""
    columns: int = 1
    """Consecutive inputs in a block."""
    keep: tuple[int, int] | None = None
    """(N, M): of each M consecutive inputs N stay; None where blocks are free."""

    @property
    def span(self) -> int:
        """Consecutive inputs that are decided on together."""
        return self.columns if self.keep is None else self.keep[1]

    @property
    def share(self) -> float | None:
        """The only share of zeros an N:M pattern has; None where any share will do."""
        return None if self.keep is None else 1 - self.keep[0] / self.keep[1]

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether a layer with this many outputs and inputs per conv-group has room for one block."""
        return outputs >= self.rows and inputs >= self.span


def parse(name: str) -> Pattern:
    """The pattern a name stands for; anything else raises PolicyError."""
    if name == "element":
        return Pattern(name)
    match = _NAME.fullmatch(name)
    if match is None:
        raise PolicyError(f"A pattern must be element, N:M as 2:4, or RxC as 1x4; it is {name!r}: choose one of them.")
    if match["n"] is None:
        return Pattern(name, int(match["rows"]), int(match["columns"]))
    n, m = int(match["n"]), int(match["m"])
    if n >= m:
        raise PolicyError(f"An N:M pattern must keep fewer than M of M weights; {name!r} does not: choose 2:4 or 1:4.")
    return Pattern(name, keep=(n, m))
