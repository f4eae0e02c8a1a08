"""The trials of one run of Ray Tune, from what it says of them to what stands in the study.

The study is the truth: each trial that is over is recorded there once, with its state, constraints and reason, and told
to the searcher from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from automc.begin import Begun
from automc.errors import AutomcError, ExecutorError, StudyError
from automc.evaluation import Evaluation
from automc.loop import checked
from automc.policy import Policy

POLICY = "policy"
"""What a trial's config calls its policy, which is written as JSON."""
BROKEN = "broken"
"""The state of a trial whose actor could not be set up, which is none of the candidate's fault."""
TUNE = "ray tune"
"""Who has proposed what no searcher did: a scheduler that changes configs."""
RESUME = (
    "A search must go on from its study; Ray Tune's files hold nothing of it: make a new Tuner, with "
    "automc.tune_searcher of the same study."
)
_ENDED = "Ray Tune ended the trial with an error; error.txt in the trial's folder says which."


@dataclass(slots=True)
class _Trial:
    """A trial that is not over."""

    text: str
    """Its policy, as JSON."""
    looks: dict[int, float] = field(default_factory=dict)
    """By number of samples seen, the score by then."""
    last: Mapping[str, Any] | None = None
    """What it reported last."""


class Ledger:
    """What is known, what is open, and what is yet to be recorded."""

    def __init__(self, begun: Begun) -> None:
        self.setting, self.study, self._searcher = begun.setting, begun.study, begun.searcher
        self.known: dict[str, Evaluation] = {}
        """By the policy's digest, what is recorded."""
        self._open: dict[str, _Trial] = {}
        """By Tune's name of the trial."""
        self._proposers: dict[str, str] = {}
        """By a policy's JSON."""
        self._left: list[Evaluation] = []
        """What is over and yet to be recorded."""
        self._error: AutomcError | None = None
        """Why the run cannot go on."""
        for evaluation in self.study.evaluations:
            self._learn(evaluation)

    @property
    def open(self) -> tuple[str, ...]:
        """The policies, as JSON, of trials that are not over."""
        return tuple(trial.text for trial in self._open.values())

    def ask(self) -> tuple[Policy, str]:
        """The searcher's next policy, and its JSON."""
        policy = self._searcher.ask()
        text = policy.to_line()
        self._proposers[text] = str(getattr(self._searcher, "proposer", self.study.meta.get("searcher", "")))
        return policy, text

    def repeat(self, policy: Policy, text: str) -> None:
        """Records what is known of a policy as another trial."""
        known = self.known[policy.digest]
        self._left.append(replace(known, number=-1, seconds=0.0, proposer=self._proposer(text)))
        self.settle()

    def begin(self, trial_id: str, text: str) -> None:
        """Takes note of a trial, unless it is known."""
        self._open.setdefault(trial_id, _Trial(text))

    def report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Takes note of a stage. One of another policy, where a scheduler has changed the config, ends the trial of the
        first, and begins one.
        """
        trial = self._open.get(trial_id)
        if trial is None:
            return
        text = str(result.get(f"config/{POLICY}", trial.text))
        if text != trial.text:
            self.over(trial_id)
            trial = self._open[trial_id] = _Trial(text)
        trial.last = result
        if result.get("state") == "pruned":
            trial.looks[int(result["samples"])] = float(result["score"])

    def over(self, trial_id: str, *, error: bool = False) -> None:
        """Records a trial by its last report; one that has made none was taken back and is not recorded, unless it
        ended with an error. What this raises, `settle` raises again.
        """
        trial = self._open.pop(trial_id, None)
        if trial is None:
            return  # Tune says so a second time where the first has raised
        try:
            found = self._failed(trial, _ENDED) if error else self._evaluation(trial)
        except AutomcError as raised:
            self._error = raised
            raise
        if found is not None:
            self._left.append(checked(found, self.setting.problem.projector.limits))
        self.settle()

    def settle(self) -> None:
        """Records what is over, and tells the searcher all that was recorded meanwhile, by whomever.

        StudyError where that cannot be, whereafter it is tried again; and why else the run cannot go on.
        """
        while self._left:
            self.study.append(self._left[0])
            del self._left[0]
        for evaluation in self.study.news():
            self._learn(evaluation)
        if self._error is not None:
            raise self._error

    def _evaluation(self, trial: _Trial) -> Evaluation | None:
        """What a trial's last report says of its policy."""
        last = trial.last
        if last is None:
            return None
        state = last.get("state")
        if state not in ("ok", "pruned", "failed", BROKEN):
            raise StudyError(f"A trial must report what became of it; its state is {state!r}: take automc.trainable.")
        if state == BROKEN:
            raise ExecutorError(f"Actors must be able to begin; one says {last['reason']}: mend that.")
        if state == "failed":
            return self._failed(trial, str(last["reason"]))
        samples, score, share = int(last["samples"]), float(last["score"]), float(last["share"])
        known = replace(self._described(trial), state=state, score=score, metric=float(last["metric"]), share=share)
        if state == "pruned":
            reason = f"Stopped by Ray Tune after {samples} samples, {100 * share:.3g}% of all."
            return replace(known, reason=reason, stages=tuple(trial.looks.items()))
        return replace(known, stages=(*trial.looks.items(), (samples, score)) if trial.looks else ())

    def _failed(self, trial: _Trial, reason: str) -> Evaluation:
        return replace(self._described(trial), reason=reason)

    def _described(self, trial: _Trial) -> Evaluation:
        """A trial's policy, its costs and its time, as yet without a score."""
        policy = Policy.from_json(trial.text)
        costs = self.setting.evaluator.costs(policy)
        seconds = float((trial.last or {}).get("seconds", 0.0))
        return Evaluation(policy, "failed", None, costs, seconds=seconds, proposer=self._proposer(trial.text))

    def _proposer(self, text: str) -> str:
        return self._proposers.get(text, TUNE)

    def _learn(self, evaluation: Evaluation) -> None:
        self.known.setdefault(evaluation.policy.digest, evaluation)
        self._searcher.tell(evaluation)
