"""Latency: seconds of one pass, foretold from what the layers of a model took on this machine.

A table holds, for each kind of layer (equal layers are measured once), the seconds of a whole float layer at several
numbers of channels, and which share of these is left with zeros, in factors, or in 8 bits. Between what was measured
it is interpolated. What a pass adds to that (a layer, whole or in factors, runs slower among others than alone, its
weights come from farther away, and not all is layers) are four numbers, fitted to whole models. No level costs less
than a lower one: what was measured otherwise is raised, so that a prediction errs towards too slow; factors that are
slower than the whole layer count as the whole layer.

Anyone may write such a table, for a device that automc does not run on:

{"format": "automc-latency", "version": 1, "fingerprint": "...", "device": "...", "threads": 1, "batch": 1,
 "dense": 0.0021, "scale": 1.1, "factored": 1.5, "fetch": 1e-10, "rest": 0.0001,
 "kinds": [{"layers": ["conv1", "conv2"], "inputs": [4, 16], "outputs": [4, 16],
            "seconds": [[1e-5, 2e-5], [2e-5, 4e-5]],            a row for each number of inputs
            "zeros": {"element": [[0.5, 0.9], [0.75, 0.6]]},    share of zeros, share of the seconds
            "factors": {"svd": [[0.5, 0.6]]},                   share of the layer's rank, share of the seconds
            "eight_bits": {"16x4": [[0.0, 0.4], [0.75, 0.2]]}}]}

Seconds are those of a whole batch; `zeros`, `factors` and `eight_bits` may be left out, and layers that are in no kind
take no time of their own.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from automc.costs.table import Candidates, CostTable, FloatArray, Shapes
from automc.errors import BudgetError, PolicyError
from automc.files import parsed_json, read_file, write_atomic
from automc.graph.facts import ModelFacts
from automc.graph.ranks import METHODS
from automc.pattern import family
from automc.visible import brief, visible

IntArray = NDArray[np.int64]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Curve = tuple[tuple[Share, Share], ...]
"""Points (x, share of the whole layer's seconds), x rising."""
MOST_BYTES = 2**26
"""That a table's file may have."""
EIGHT = 8
"""Bits, of weights and inputs, up to which a layer runs in integers."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kind(_Entry):
    """Layers that take equally long."""

    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    inputs: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Numbers of input channels that were measured, rising; the last is all of them."""
    outputs: Annotated[tuple[Count, ...], Field(min_length=1)]
    seconds: tuple[tuple[Seconds, ...], ...]
    """A row for each number of inputs, of a whole float layer."""
    zeros: Mapping[str, Curve] = Field(default_factory=dict)
    """By pattern, over shares of zeros; N:M patterns of one M are one family."""
    factors: Mapping[str, Curve] = Field(default_factory=dict)
    """By method, over shares of the layer."""
    eight_bits: Mapping[str, Curve] = Field(default_factory=dict)
    """As `zeros`, of layers whose weights and inputs have 8 bits or fewer."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.seconds) != len(self.inputs) or {len(row) for row in self.seconds} != {len(self.outputs)}:
            raise ValueError("seconds must have a row for each number of inputs, a column for each of outputs")
        for name in ("inputs", "outputs"):
            _check_rising(getattr(self, name), name)
        for curves in (self.zeros, self.factors, self.eight_bits):
            for name, curve in curves.items():
                _check_rising([x for x, _ in curve], name)
        for name in (*self.zeros, *self.eight_bits):
            _check_pattern(name)
        return self

    @cached_property
    def _grid(self) -> FloatArray:
        """The seconds, none less than with fewer channels."""
        return np.maximum.accumulate(np.maximum.accumulate(np.array(self.seconds), axis=0), axis=1)

    def of(self, inputs: FloatArray, outputs: FloatArray) -> FloatArray:
        """Seconds of whole layers with so many channels left; beyond what was measured as at its edge."""
        grid = self._grid
        (top, bottom, down), (left, right, across) = _between(self.inputs, inputs), _between(self.outputs, outputs)
        # From the lower side, not as a weighted mean: that would vary in the last digit where a grid is level.
        upper = grid[top, left] + across * (grid[top, right] - grid[top, left])
        lower = grid[bottom, left] + across * (grid[bottom, right] - grid[bottom, left])
        found: FloatArray = upper + down * (lower - upper)
        return found


class LatencyTable(_Entry):
    """What was measured of one model on one device."""

    format: Literal["automc-latency"] = "automc-latency"
    version: Literal[1] = 1
    fingerprint: str
    """Of the model; its policies' JSON has it, too."""
    device: str
    threads: Count
    batch: Count
    """Samples a pass."""
    dense: Seconds
    """Of the dense model, in its fastest form: what 100 % means."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What a whole layer among others takes, relative to one alone."""
    factored: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The same of layers in factors."""
    fetch: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds that each weight other than zero takes besides: alone, a layer finds its weights in the nearest cache."""
    rest: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds outside of layers."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    noise: float | None = None
    """Half the distance of the quartiles of repeated runs, relative to their median, over everything measured."""
    form: str = ""
    """How models run: as one plan, or layer by layer."""
    versions: Mapping[str, str] = Field(default_factory=dict)
    models: tuple[tuple[Seconds, Seconds], ...] = ()
    """Of the whole models that these numbers are fitted to: seconds foretold, and measured."""

    @property
    def error(self) -> float | None:
        """The median of how far predictions were off for the models they are fitted to."""
        return float(np.median([abs(said / took - 1) for said, took in self.models])) if self.models else None

    def timed_by(self, processor: str) -> bool:
        """Whether the table is of such a processor, by automc's own kernels."""
        return self.device == processor and bool(self.form)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_atomic(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """A table in a file; BudgetError, in one sentence, for what is none."""
        try:
            text = read_file(path, MOST_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise BudgetError(
                f"A latency table must be readable; {path} is not ({said}): run automc profile."
            ) from error
        try:
            found = parsed_json(text)
        except ValueError as error:
            raise BudgetError(
                f"A latency table must be as automc profile writes it; the whole of {path} is not (no JSON: {error}): "
                "mend it."
            ) from error
        return cls.checked(found, str(path))

    @classmethod
    def checked(cls, found: Any, where: str) -> "LatencyTable":
        """A table as JSON has it; BudgetError, which names `where` it stands, for what is none."""
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = brief(".".join(map(str, first["loc"])) or "the whole")
            raise BudgetError(
                f"A latency table must be as automc profile writes it; {place} of {where} is not "
                f"({first['msg']:.200}): mend it."
            ) from error

    def check(self, facts: ModelFacts) -> None:
        """BudgetError for the table of another model."""
        if self.fingerprint != facts.fingerprint:
            mine = self.fingerprint[:12]
            raise BudgetError(
                f"A latency table must be of the model that is searched; its fingerprint {visible(mine)} differs from "
                f"this model's {facts.fingerprint[:12]}: run automc profile."
            )
        known = {x.name for x in facts.layers}
        unknown = [name for kind in self.kinds for name in kind.layers if name not in known]
        if unknown:
            raise BudgetError(
                f"A latency table must name layers of the model; {brief(unknown[0])} is none: see automc inspect."
            )


class Latency:
    """The cost of a table: seconds a batch."""

    name = "latency"

    def __init__(self, table: LatencyTable) -> None:
        self.table = table

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        """Each layer's part (B, L)."""
        seconds = np.zeros_like(shapes.out)
        for kind in self.table.kinds:
            columns = np.array([table.columns[name] for name in kind.layers], dtype=np.int64)
            whole = kind.of(shapes.inputs[:, columns], shapes.out[:, columns])
            kept = whole * _kept(kind, shapes.candidates, columns, table.patterns)
            parts = kept * _in_factors(kind, shapes.candidates, columns)
            among = np.minimum(self.table.scale * kept, self.table.factored * parts)
            factored = shapes.candidates.rank[:, columns] < 1
            seconds[:, columns] = np.where(factored, among, self.table.scale * kept)
        return np.where(shapes.out > 0, seconds, 0.0) + self.table.fetch * fetched(shapes)

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        """What belongs to no layer (B,)."""
        return np.full(len(shapes.out), self.table.rest)

    def dense(self, table: CostTable) -> float:
        """As it was measured."""
        return self.table.dense


def fetched(shapes: Shapes) -> FloatArray:
    """Weights other than zero that each layer has to fetch (B, L)."""
    return (shapes.out > 0) * shapes.weights * (1.0 - shapes.candidates.sparsity)


def _kept(kind: Kind, candidates: Candidates, columns: IntArray, patterns: Sequence[str]) -> FloatArray:
    """Which share of the whole layers' seconds is left (B, n) with zeros and in few bits."""
    sparsity, pattern = candidates.sparsity[:, columns], candidates.pattern[:, columns]
    left = np.ones(sparsity.shape)
    if kind.zeros:
        left = _of_zeros(kind.zeros, sparsity, pattern, patterns)
    if kind.eight_bits:
        bits = np.maximum(candidates.weight_bits[:, columns], candidates.activation_bits[:, columns])
        integers = (bits <= EIGHT) & (candidates.shared[:, columns] == 0)
        few = _of_zeros(kind.eight_bits, sparsity, pattern, patterns)
        left = np.where(integers, np.minimum(left, few), left)
    return left


def _in_factors(kind: Kind, candidates: Candidates, columns: IntArray) -> FloatArray:
    """Which share of that is left (B, n) in factors; all of it by methods that were not measured."""
    rank, method = candidates.rank[:, columns], candidates.method[:, columns]
    left = np.ones(rank.shape)
    for code, name in enumerate(METHODS):
        if name in kind.factors:
            left = np.where((rank < 1) & (method == code), _on(kind.factors[name], rank, whole=1.0), left)
    return left


def _of_zeros(
    curves: Mapping[str, Curve], sparsity: FloatArray, pattern: FloatArray, patterns: Sequence[str]
) -> FloatArray:
    """Shares left at shares of zeros in patterns; in unknown patterns those of the slowest known one, and without zeros
    as well, where a pattern says nothing."""
    families: dict[str, Curve] = {}
    for name, curve in curves.items():
        families[family(name)] = (*families.get(family(name), ()), *curve)
    found = {name: _on(curve, sparsity, whole=0.0) for name, curve in families.items()}
    left: FloatArray = np.maximum.reduce(list(found.values()))
    for code, name in enumerate(patterns):
        if name in found:
            left = np.where((pattern == code) & (sparsity > 0), found[name], left)
    return left


def _on(curve: Curve, x: FloatArray, *, whole: float) -> FloatArray:
    """A curve at x, never falling towards where the layer is whole; there it is 1 unless it says otherwise."""
    points = {whole: 1.0, **dict(curve)}
    towards = sorted(points, reverse=whole == 0.0)
    ys = np.maximum.accumulate([points[v] for v in towards])
    order = np.argsort(towards)
    found: FloatArray = np.interp(x, np.array(towards)[order], ys[order])
    return found


def _between(known: Sequence[int], at: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Indices of the measured numbers below and above, and how far between them a number lies."""
    grid = np.array(known, dtype=np.float64)
    inside = np.clip(at, grid[0], grid[-1])
    low = np.searchsorted(grid, inside, side="right") - 1
    high = np.minimum(low + 1, len(grid) - 1)
    width = np.maximum(grid[high] - grid[low], 1.0)  # 0 at the last one
    return low, high, (inside - grid[low]) / width


def _check_pattern(name: str) -> None:
    try:
        family(name)
    except PolicyError as error:
        raise ValueError(str(error)) from error


def _check_rising(values: Sequence[float], name: str) -> None:
    if any(b <= a for a, b in itertools.pairwise(values)) or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must rise")
