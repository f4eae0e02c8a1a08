"""Sparsity patterns: which weights of a layer leave together.

    element   any single weight
    N:M       of each M consecutive inputs N stay: 2:4 is Nvidia's semi-structured sparsity (Mishra et al. 2021)
    RxC       blocks of R consecutive outputs and C consecutive inputs: 1x4, 16x1, ...

A search may also name a family, N:M with a letter for the number that stays: N:8 is 2:8 at three quarters of zeros and
4:8 at one half, so that one axis of shares serves every pattern.

Inputs are consecutive along the channels at one kernel position, as channels-last kernels read them. Where channels
do not divide into blocks, the last block of each row of blocks is smaller.
"""

import re
from dataclasses import dataclass

from automc.errors import PolicyError
from automc.visible import brief

_FAMILY = re.compile(r"N:(?P<m>[1-9][0-9]{0,5})")
_NAME = re.compile(
    r"(?P<n>[1-9][0-9]{0,5}):(?P<m>[1-9][0-9]{0,5})|(?P<rows>[1-9][0-9]{0,5})x(?P<columns>[1-9][0-9]{0,5})"
)


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


def member(name: str, sparsity: float) -> str:
    """The pattern that a family such as N:8 is at a share of zeros; any other name as it stands.

    Without zeros it is the densest one, which is then unused. PolicyError for a share that is no multiple of 1/M.
    """
    match = _FAMILY.fullmatch(name)
    if match is None:
        return name
    m = int(match["m"])
    gone = min(round(sparsity * m), m - 1)
    if abs(gone - sparsity * m) > 1e-9:
        raise PolicyError(f"Zeros in {name} must be a multiple of 1/{m}; {sparsity} is none: choose {gone / m:g}.")
    return f"{m - max(gone, 1)}:{m}"


def family(name: str) -> str:
    """The family of an N:M pattern; any other name as it stands."""
    found = None if _FAMILY.fullmatch(name) else parse(name).keep
    return name if found is None else f"N:{found[1]}"


def parse(name: str) -> Pattern:
    """The pattern a name stands for; anything else raises PolicyError."""
    if name == "element":
        return Pattern(name)
    match = _NAME.fullmatch(name)
    if match is None:
        raise PolicyError(f"A pattern must be element, N:M as 2:4, or RxC as 1x4; it is {brief(name)}: choose one.")
    if match["n"] is None:
        return Pattern(name, int(match["rows"]), int(match["columns"]))
    n, m = int(match["n"]), int(match["m"])
    if n >= m:
        raise PolicyError(f"An N:M pattern must keep fewer than M of M weights; {name!r} does not: choose 2:4 or 1:4.")
    return Pattern(name, keep=(n, m))
