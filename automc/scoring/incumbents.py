"""Whom a candidate may be stopped by: recorded evaluations that cost no more in any limited cost.

Being worse than such a one, a candidate can neither be the best nor stand on the front. Of them the `keep`-th best by
score counts, so that the best `keep` at any cost are scored in full. An evaluation that `keep` others beat at no higher
cost can never be that one and is forgotten (the skyband of Papadias et al. 2005; for one, the front).

Policies that fill the same budget differ by a part in a thousand, since channels are whole. With a slack such a part
counts as nothing: `best` is as safe as without, and the front may lose a point beside a better one that costs more by
less than the slack.
"""

from collections.abc import Mapping, Sequence

from automc.errors import TaskError
from automc.evaluation import Evaluation

MOST = 64
"""Incumbents held at once."""


class Incumbents:
    """A function of the evaluations added, in their order, and of nothing else."""

    def __init__(
        self, costs: Sequence[str], keep: int = 1, most: int = MOST, slack: Mapping[str, float] | None = None
    ) -> None:
        self._costs, self._keep, self._most = tuple(costs), check_keep(keep, most), most
        self._slack = dict(slack or {})
        """By cost, how much more still counts as no more for who may stop whom."""
        self._held: list[Evaluation] = []
        """Best first, of equal scores the cheaper one, of equal costs the earlier one."""

    @property
    def held(self) -> tuple[Evaluation, ...]:
        """Best first."""
        return tuple(self._held)

    def add(self, evaluation: Evaluation) -> None:
        """Takes note of a fully scored evaluation; a policy counts once, an evaluation that is not ok never."""
        known = any(e.policy == evaluation.policy for e in self._held)
        if known or not evaluation.ok or evaluation.score is None:
            return
        ranked = sorted([*self._held, evaluation], key=self._rank)  # stable: earlier ones stay before
        self._held = [e for i, e in enumerate(ranked) if len(self._no_dearer(ranked[:i], e)) < self._keep]
        if len(self._held) > self._most:
            self._held.remove(self._least_useful())

    def rival(self, costs: Mapping[str, float]) -> Evaluation | None:
        """Whom a candidate of these costs has to lose against to be stopped; None where too few cost no more."""
        bounds = {name: costs[name] + self._slack.get(name, 0.0) for name in self._costs}
        eligible = [e for e in self._held if all(e.cost(name) <= bound for name, bound in bounds.items())]
        return eligible[self._keep - 1] if len(eligible) >= self._keep else None

    def discard(self, evaluation: Evaluation) -> None:
        """Forgets one."""
        self._held = [e for e in self._held if e.policy != evaluation.policy]

    def _rank(self, evaluation: Evaluation) -> tuple[float, ...]:
        return (-_score(evaluation), *(evaluation.cost(name) for name in self._costs))

    def _no_dearer(self, others: Sequence[Evaluation], than: Evaluation) -> list[Evaluation]:
        return [o for o in others if all(o.cost(name) <= than.cost(name) for name in self._costs)]

    def _least_useful(self) -> Evaluation:
        """The one whose best stand-in, no dearer and ranked behind it, scores nearest to it."""

        def loss(index: int) -> float:
            behind = self._no_dearer(self._held[index + 1 :], self._held[index])
            return _score(self._held[index]) - _score(behind[0]) if behind else float("inf")

        # Of equal losses the lowest score goes.
        return self._held[min(reversed(range(len(self._held))), key=loss)]


def check_keep(keep: int, most: int = MOST) -> int:
    """The number as given; TaskError unless a race can protect so many."""
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= most:
        raise TaskError(f"A race keeps the best 1 to {most} trials; it was given {keep!r}: give keep=1 or a few.")
    return keep


def _score(evaluation: Evaluation) -> float:
    return float("-inf") if evaluation.score is None else evaluation.score
