"""The budget: one or several limits on what a policy may cost.

Grammar: `metric<=amount` joined by commas, for example `macs<=50%` or `params<=0.4M, size<=1MB`. An amount is a
percentage of the dense model or a number with an optional suffix: K, M, G (thousands, millions, billions); for
`size` also B, KB, MB, GB (powers of 1000) and KiB, MiB, GiB (powers of 1024); for `latency`, which is of one batch, s,
ms or us. `throughput>=amount`, in samples a second or as a percentage of the dense model's from 100 up, is latency said
the other way round.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from automc.errors import BudgetError
from automc.registry import COSTS

_TERM = re.compile(
    r"^\s*(?P<metric>[A-Za-z_]\w*)\s*(?P<relation><=|>=)\s*(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>[A-Za-z%]*)\s*$"
)
LATENCY, THROUGHPUT = "latency", "throughput"
"""What is measured instead of counted."""
_COUNT_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTE_UNITS = _COUNT_UNITS | {
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}
_SECOND_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_UNITS = {"size": _BYTE_UNITS, LATENCY: _SECOND_UNITS}
"""By metric, where it has other ones than counts."""


def parse_bytes(text: str) -> int:
    """Bytes in `500MB`, `1GiB`, `1000000`; anything else raises BudgetError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise BudgetError(f"An amount of memory must read like 500MB or 1GiB; {text!r} does not: rewrite it.")
    return int(Decimal(match[1]) * Decimal(_BYTE_UNITS[match[2].lower()]))


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: `metric` may be at most `amount`, or that share of the dense model's; throughput, at least."""

    metric: str
    amount: float
    """Absolute value, or a share in (0, 1] where `relative`; of throughput, from 1 up."""
    relative: bool

    def __str__(self) -> str:
        """The limit in the grammar above; read again, it is this very limit."""
        amount = Decimal(repr(self.amount))
        relation = ">=" if self.metric == THROUGHPUT else "<="
        return f"{self.metric}{relation}" + (f"{_shortest(100 * amount)}%" if self.relative else _shortest(amount))


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that every evaluated policy meets, all of them."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads the grammar above; anything else raises BudgetError."""
        limits = tuple(_parse_limit(term) for term in text.split(","))
        budget = cls(limits)
        if len(set(budget.metrics)) != len(limits):
            raise BudgetError(f"A metric may be limited once; {text!r} repeats one: keep the smaller limit.")
        return budget

    def resolve(self, dense: Mapping[str, float], batch: int = 1) -> dict[str, float]:
        """The limits as absolute values, given the dense model's costs by metric; latency is that of a batch."""
        return {_cost(x.metric): _bound(x, dense[_cost(x.metric)], batch) for x in self.limits}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The costs that are limited, in the order given; throughput is a limit on latency."""
        return tuple(_cost(limit.metric) for limit in self.limits)

    def __str__(self) -> str:
        return ",".join(str(limit) for limit in self.limits)


def _shortest(amount: Decimal) -> str:
    """An amount in six digits where these say all of it, otherwise in full."""
    short = f"{float(amount):g}"
    return short if Decimal(short) == amount else f"{amount.normalize():f}"


def _cost(metric: str) -> str:
    """The cost that a metric limits."""
    return LATENCY if metric == THROUGHPUT else metric


def _bound(limit: Limit, dense: float, batch: int) -> float:
    """What the cost may be at most."""
    if limit.metric == THROUGHPUT:
        return dense / limit.amount if limit.relative else batch / limit.amount
    return _share(limit.amount, dense) if limit.relative else limit.amount


def _share(share: float, of: float) -> float:
    """A decimal share, exactly: in floats 58 % of 12.5 million are a little less than what costs just as much."""
    return float(Fraction(repr(share)) * Fraction(of))


def _parse_limit(term: str) -> Limit:
    match = _TERM.match(term)
    if match is None:
        raise BudgetError(
            f"A limit must read metric<=amount, such as macs<=50%; {term.strip()!r} does not: rewrite it."
        )
    metric, unit = match["metric"].lower(), match["unit"].lower()
    _check_metric(metric)
    least = metric == THROUGHPUT
    if (match["relation"] == ">=") != least:
        raise BudgetError(
            f"A limit must read {metric}{'>=' if least else '<='}amount; {term.strip()!r} does not: turn it round."
        )
    number = float(match["number"])
    if not 0 < number < math.inf:
        raise BudgetError(f"A limit must be above zero and finite; {term.strip()!r} is not: give a positive amount.")
    exact = Decimal(match["number"])  # in floats 4.1 times a million is less than 4100000
    if unit == "%":
        if least and number < 100:
            raise BudgetError(
                f"A throughput must be at least 100% of the dense model's; {term.strip()!r} is below: raise it."
            )
        if number > 100 and not least:
            raise BudgetError(
                f"A percentage of the dense model must be at most 100; {term.strip()!r} is above: lower it."
            )
        return Limit(metric, float(exact / 100), relative=True)
    units = _UNITS.get(metric, _COUNT_UNITS)
    if unit not in units:
        raise BudgetError(
            f"The unit of {metric} must be %, {', '.join(u for u in units if u)} or none; {unit!r} is none of them: "
            f"rewrite {term.strip()!r}."
        )
    return Limit(metric, float(exact * Decimal(repr(units[unit]))), relative=False)


def _check_metric(metric: str) -> None:
    known = (*COSTS, LATENCY, THROUGHPUT)
    if metric not in known:
        raise BudgetError(f"A budget limits {', '.join(known)}; {metric!r} is none of them: use one of these.")
