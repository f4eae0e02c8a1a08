"""One scored policy, as frozen data with a JSON form."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from automc.errors import StudyError
from automc.policy import Policy
from automc.visible import brief

State = Literal["ok", "pruned", "infeasible", "failed"]
"""`pruned`: scored on some of the samples only, and stopped as a clear loser."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known about one policy after it was scored; only state `ok` may enter a front."""

    policy: Policy
    state: State
    score: float | None
    """What is searched, higher is better: the metric, or likeness to the dense model. Where state is pruned,
    an estimate of it from the samples seen; None where it is neither ok nor pruned."""
    costs: tuple[tuple[str, float], ...]
    """Every cost of the policy, by name: macs, params and bops as counts, size in bytes."""
    share: float = 1.0
    """Share of the validation samples seen, in [0, 1]; below 1 where state is pruned, 0 where it was only predicted."""
    seconds: float = 0.0
    """Wall-clock time the evaluation took."""
    proposer: str = ""
    """Which searcher (or which arm of a joint search) proposed the policy."""
    reason: str = ""
    """Why the state is not ok, in one sentence."""
    number: int = -1
    """Position in the study, from 0; -1 before it is recorded."""
    metric: float | None = None
    """The task's metric, whatever is searched; where state is pruned, its mean over the samples seen. None where state
    is neither."""
    stages: tuple[tuple[int, float], ...] = ()
    """(Samples seen, estimated score by then), rising, where somebody looked on the way: a race, or Ray Tune."""
    predicted: float | None = None
    """What the surrogate said of the score beforehand; None where it was not asked or knew too little."""

    @property
    def ok(self) -> bool:
        """Whether this evaluation may enter a front."""
        return self.state == "ok"

    @property
    def scored(self) -> bool:
        """Whether the score says something about the policy, exact (ok) or estimated from samples (pruned)."""
        return self.state in ("ok", "pruned") and self.score is not None and self.share > 0

    def cost(self, name: str) -> float:
        """One cost by name; StudyError where it was not recorded."""
        for known, value in self.costs:
            if known == name:
                return value
        raise StudyError(
            f"A recorded cost must be one of {[n for n, _ in self.costs]}; {brief(name)} is not: name one of them."
        )

    def to_json(self) -> str:
        """The JSON form, on one line."""
        return json.dumps(
            {
                "policy": self.policy.to_dict(),
                "state": self.state,
                "score": self.score,
                "costs": dict(self.costs),
                "share": self.share,
                "seconds": self.seconds,
                "proposer": self.proposer,
                "reason": self.reason,
                "metric": self.metric,
                "stages": self.stages,
                "predicted": self.predicted,
            }
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], number: int = -1) -> "Evaluation":
        """Reads the form `to_json` writes; anything else raises StudyError or PolicyError."""
        try:
            found = cls(
                policy=Policy.from_dict(data["policy"]),
                state=data["state"],
                score=data["score"],
                costs=tuple((str(n), float(v)) for n, v in data["costs"].items()),
                share=float(data.get("share", 1.0)),
                seconds=float(data.get("seconds", 0.0)),
                proposer=str(data.get("proposer", "")),
                reason=str(data.get("reason", "")),
                number=number,
                metric=data.get("metric"),
                stages=tuple((int(seen), float(score)) for seen, score in data.get("stages", ())),
                predicted=data.get("predicted"),
            )
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise StudyError(
                f"An evaluation must be as automc writes it; this one is not ({brief(error)}): take an unchanged one."
            ) from error
        _check(found)
        return found


def _check(found: Evaluation) -> None:
    """StudyError for a state there is none of, and for what is no number where one is compared."""
    if found.state not in get_args(State):
        raise StudyError(f"A state must be one of {get_args(State)}; it is {brief(found.state)}: mend the record.")
    for name in ("score", "metric", "predicted"):
        value = getattr(found, name)
        if value is not None and type(value) not in (int, float):
            raise StudyError(f"A {name} must be a number; it is {brief(value)}: mend the record.")
    numbers = [found.share, *(() if found.score is None else (found.score,))]
    numbers += [cost for _, cost in found.costs] if found.ok else []
    if (found.ok and found.score is None) or not all(map(_finite, numbers)):
        raise StudyError("Score, share and costs of a trial must be finite; they are not: mend the record.")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is no float
        return False
