"""A search of the lab that tells callbacks, as `automc.search` does."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from automc import loop
from automc.callbacks.callback import Callback, Ending
from automc.callbacks.telling import telling
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.study import Study
from tests.study import lab


def search(
    study: Study,
    callbacks: Sequence[Callback],
    trials: int = 8,
    evaluate: Callable[[Policy], Evaluation] = lab.lookup,
) -> Study:
    with telling(callbacks, study) as told:
        loop.run(lab.problem(), lab.Draws(), evaluate, study, trials=trials, on_trial=told)
    return study


def mixed(policy: Policy) -> Evaluation:
    """Some fail and some break a limit, by the policy alone."""
    found = lab.lookup(policy)
    kind = int(policy.digest[:4], 16) % 5
    if kind == 0:
        return replace(found, state="failed", score=None, reason="Told\nto <fail>.")
    return replace(found, costs=(("macs", 900.0), ("size", 1.0))) if kind == 1 else found


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.trials: list[Evaluation] = []
        self.ended: list[tuple[Ending, str]] = []

    def begin(self, study: Study) -> None:
        self.begun.append(len(study.evaluations))

    def trial(self, study: Study, evaluation: Evaluation) -> None:
        self.trials.append(evaluation)

    def end(self, study: Study, how: Ending, reason: str) -> None:
        self.ended.append((how, reason))
