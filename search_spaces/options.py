"""What can be chosen about a space, with the defaults: arguments of its function, and sections of a space file.

A list may leave out the dense value (every channel, float, no zeros, the whole layer): it is always open.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from automc.errors import AutomcError
from automc.graph.ranks import find
from automc.pattern import family, member, parse
from automc.policy import Codebooks as CodebookNames
from automc.registry import CRITERIA


def _passes(check: Callable[[Any], object]) -> AfterValidator:
    """A value that a check lets through; what the check says otherwise is the error."""

    def validate(value: Any) -> Any:
        try:
            check(value)
        except AutomcError as error:
            raise ValueError(str(error)) from error
        return value

    return AfterValidator(validate)


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    """ValueError for a name that is there twice."""
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ValueError(f"Criteria must be named once; {twice} is there twice: drop one.")
    return names


def _check_share(pattern: str, sparsity: float) -> None:
    """ValueError unless a pattern can have that share of zeros."""
    try:
        share = parse(member(pattern, sparsity)).share
    except AutomcError as error:
        raise ValueError(str(error)) from error
    if sparsity and share is not None and sparsity != share:
        wider = family(pattern)
        raise ValueError(
            f"Pattern {pattern} must be open at {share} alone; sparsities hold {sparsity}: write {wider} or drop it."
        )


MOST = 256
"""Entries that a list may have: every pattern is held against every share."""
Few = Literal[2, 3, 4, 5, 6, 7, 8, 32]
Criterion = Annotated[StrictStr, _passes(CRITERIA.check)]
Factoring = Annotated[StrictStr, _passes(find)]


class Options(BaseModel):
    """Choices about one kind of decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Widths(Options):
    """How many channels a group may keep."""

    least_keep: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.1
    """Least share."""
    multiple_of: Annotated[StrictInt, Field(ge=1)] = 1
    """Fewer channels than all are a multiple of this: what hardware runs at full speed."""
    most_levels: Annotated[StrictInt, Field(ge=2)] = 64
    coupled: StrictBool = False
    """Whether residual streams, whose channels many layers make, are decided as well."""


class Ranking(RootModel[tuple[Criterion, ...]]):
    """Criteria that may choose the channels of a group."""

    model_config = ConfigDict(frozen=True)
    root: Annotated[tuple[Criterion, ...], Field(min_length=1), AfterValidator(_once)] = (
        "obs",
        "activation",
        "fpgm",
        "l1",
    )


class Bits(Options):
    """How few bits a weight and an input may take."""

    weights: tuple[Few, ...] = (2, 3, 4, 5, 6, 7, 8)
    activations: tuple[Few, ...] = (2, 3, 4, 5, 6, 7, 8)
    ends: tuple[Few, ...] = (8,)
    """Of both, in the first and the last layer."""


class Codebooks(RootModel[tuple[CodebookNames, ...]]):
    """How the levels of few-bit weights may lie."""

    model_config = ConfigDict(frozen=True)
    root: Annotated[tuple[CodebookNames, ...], Field(min_length=1)] = ("uniform", "kmeans")

    @property
    def cheapest_first(self) -> tuple[str, ...]:
        """What is open, in the order of its costs."""
        return tuple(name for name in get_args(CodebookNames) if name in self.root)


class Zeros(Options):
    """Which shares of a layer's weights may be zero, in which patterns, chosen by which criteria."""

    sparsities: Annotated[tuple[Annotated[StrictFloat, Field(ge=0, lt=1)], ...], Field(max_length=MOST)] = tuple(
        n / 8 for n in range(7, 0, -1)
    )
    """Eighths, so that N:8 is open at each of them."""
    patterns: Annotated[tuple[StrictStr, ...], Field(min_length=1, max_length=MOST)] = (
        "element",
        "N:8",
        "1x4",
        "4x1",
        "16x1",
    )
    """A layer takes those it has room for."""
    criteria: Annotated[tuple[Criterion, ...], Field(min_length=1), AfterValidator(_once)] = ("obs", "activation", "l1")

    @model_validator(mode="after")
    def _legal(self) -> Self:
        for name in self.patterns:
            for sparsity in self.sparsities or (0.0,):
                _check_share(name, sparsity)
        families = [family(name) for name in self.patterns]
        if len(set(families)) < len(families):
            raise ValueError(f"Patterns must be told apart; {', '.join(self.patterns)} repeat one: drop it.")
        return self


class Factors(Options):
    """How far a layer may be factored, and how."""

    shares: Annotated[tuple[Annotated[StrictFloat, Field(gt=0, le=1)], ...], Field(max_length=MOST)] = (
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.75,
    )
    """Of the layer's parameters and multiply-accumulates."""
    method: Factoring | Annotated[tuple[Factoring, ...], Field(min_length=1)] = ("spatial", "svd")
    """Of several, the first that is defined on a layer: a vertical and a horizontal convolution, or two layers."""

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order in which they are tried."""
        return (self.method,) if isinstance(self.method, str) else self.method


WIDTHS, RANKING, BITS, CODEBOOKS, ZEROS, FACTORS = Widths(), Ranking(), Bits(), Codebooks(), Zeros(), Factors()
