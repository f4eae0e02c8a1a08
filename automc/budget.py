"""The budget: one or several limits on what a policy may cost.

Grammar: `metric<=amount` joined by commas, for example `macs<=50%` or `params<=0.4M, size<=1MB`. An amount is a
percentage of the dense model or a number with an optional suffix: K, M, G (thousands, millions, billions); for
`size` also B, KB, MB, GB (powers of 1000) and KiB, MiB, GiB (powers of 1024).
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
    r"^\s*(?P<metric>[A-Za-z_]\w*)\s*<=\s*(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>[A-Za-z%]*)\s*$"
)
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


def parse_bytes(text: str) -> int:
    """Bytes in `500MB`, `1GiB`, `1000000`; anything else raises BudgetError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise BudgetError(f"An amount of memory must read like 500MB or 1GiB; {text!r} does not: rewrite it.")
    return int(Decimal(match[1]) * Decimal(_BYTE_UNITS[match[2].lower()]))


@dataclass(frozen=True, slots=True)
class Limit:
    """One upper limit: `metric` may be at most `amount`, or that share of the dense model's."""

    metric: str
    amount: float
    """Absolute value, or a share in (0, 1] where `relative`."""
    relative: bool

    def __str__(self) -> str:
        """The limit in the grammar above; read again, it is this very limit."""
        amount = Decimal(repr(self.amount))
        return f"{self.metric}<=" + (f"{_shortest(100 * amount)}%" if self.relative else _shortest(amount))


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that every evaluated policy meets, all of them."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads the grammar above; anything else raises BudgetError."""
        limits = tuple(_parse_limit(term) for term in text.split(","))
        metrics = [limit.metric for limit in limits]
        if len(set(metrics)) != len(metrics):
            raise BudgetError(f"A metric may be limited once; {text!r} repeats one: keep the smaller limit.")
        return cls(limits)

    def resolve(self, dense: Mapping[str, float]) -> dict[str, float]:
        """The limits as absolute values, given the dense model's costs by metric."""
        return {x.metric: _share(x.amount, dense[x.metric]) if x.relative else x.amount for x in self.limits}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The limited metrics, in the order given."""
        return tuple(limit.metric for limit in self.limits)

    def __str__(self) -> str:
        return ",".join(str(limit) for limit in self.limits)


def _shortest(amount: Decimal) -> str:
    """An amount in six digits where these say all of it, otherwise in full."""
    short = f"{float(amount):g}"
    return short if Decimal(short) == amount else f"{amount.normalize():f}"


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
    number = float(match["number"])
    if not 0 < number < math.inf:
        raise BudgetError(f"A limit must be above zero and finite; {term.strip()!r} is not: give a positive amount.")
    exact = Decimal(match["number"])  # in floats 4.1 times a million is less than 4100000
    if unit == "%":
        if number > 100:
            raise BudgetError(
                f"A percentage of the dense model must be at most 100; {term.strip()!r} is above: lower it."
            )
        return Limit(metric, float(exact / 100), relative=True)
    units = _BYTE_UNITS if metric == "size" else _COUNT_UNITS
    if unit not in units:
        raise BudgetError(
            f"The unit of {metric} must be %, {', '.join(u for u in units if u)} or none; {unit!r} is none of them: "
            f"rewrite {term.strip()!r}."
        )
    return Limit(metric, float(exact * Decimal(units[unit])), relative=False)


def _check_metric(metric: str) -> None:
    if metric not in COSTS:
        raise BudgetError(f"A budget limits {', '.join(COSTS)}; {metric!r} is none of them: use one of these.")
