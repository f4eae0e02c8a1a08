"""The joint search: agent and Optuna decide together, and share what is learned with dynamic programming and evolution.

Jointly means three things.
* Inside one trial (arm `agent+tpe`) the agent walks the layers and decides shares while a TPE sampler decides criteria
  and bits, each conditioned on the other (see `arms`).
* Across trials a bandit shares the evaluations among agent+tpe, tpe, dp, spdy and evolution by what each added to
  the front's hypervolume.
* Every evaluation, whoever proposed it, is in the history all arms read and in the agent's replay buffer.

Besides the budget asked for, proposals are made for tighter ones, where the front has gaps (see `aims`): the agent is
shown the budget of its episode, dynamic programming solves for it, samplers learn from the told points nearest to it.

The first trials are given: the uniform policy, then what dynamic programming makes of the layers' errors for budgets
over the whole range. Every arm starts from these; the agent's warm-up is made of them and of earlier studies' trials.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from automc.episode import RATIOS, WalkSettings
from automc.evaluation import Evaluation
from automc.pareto import hypervolume_gain, nondominated
from automc.policy import Policy
from automc.searcher import Problem
from automc.searchers.aims import Aims
from automc.searchers.allocation import Allocation
from automc.searchers.arms import Arm, Programming, Sampling, Switching, Walking, Weighing
from automc.searchers.bandit import Bandit
from automc.searchers.baselines import uniform_point
from automc.searchers.history import FromHistory
from automc.searchers.rl import AgentSearch, AgentSearcher
from automc.searchers.sampled import Trials
from automc.space import FloatArray, IntArray

KNOBS = {"imitation": 10.0, "actor_rate": 1e-3, "deviation": 0.2, "hidden": 64}
"""The agent is shown good policies from the first trial: it copies them and departs from there. Few units learn as
well from a few hundred episodes as AMC's 300, in a tenth of the time."""
OPENING = 5
"""Budgets that dynamic programming opens the search with."""
BEYOND = 1.1
"""Reference cost of the hypervolume, in units of each limit: points at a limit count, too."""


class JointSearcher(FromHistory):
    """Five arms, one history."""

    def __init__(self, problem: Problem, seed: int, *, agent: str = "ddpg") -> None:
        super().__init__(problem, seed)
        self.aims, self.proposer = Aims(problem), ""
        owned = tuple(f for f in RATIOS if f in problem.space.fields) or None  # TPE decides the rest
        knobs = KNOBS if agent == "ddpg" else {}
        search = AgentSearch(agent, name="agent+tpe", walk=WalkSettings(owned, budgeted=True), knobs=knobs)
        self.agent = AgentSearcher(problem, seed, search)
        self.allocation, self.trials = Allocation(problem), Trials(problem)
        self.arms: dict[str, Arm] = {
            "agent+tpe": Walking(self.agent, self.trials),
            "tpe": Sampling(self.trials),
            "dp": Programming(self.allocation),
            "spdy": Weighing(self.allocation, self.history),
            "evolution": Switching(self.allocation, self.history),
        }
        self.bandit = Bandit(tuple(self.arms))
        self._budgets = self.aims.spread(OPENING)
        self._proposed: dict[str, str] = {}
        """Proposer by policy digest, of proposals not yet told."""
        self._bounds = np.array(list(problem.projector.limits.values()))
        self._front: FloatArray = np.empty((0, 1 + len(self._bounds)))
        """Negated score and costs, in units of the limits, of what no other told evaluation beats."""
        self._worst = -np.inf
        """The largest negated score told."""

    def ask(self) -> Policy:
        """The next policy and, in `proposer`, the arm it came from."""
        rng, turn = self.history.rng(), len(self.history.points) + self.history.asked
        if turn == 0:
            self.proposer, tightness = "uniform", 1.0
            point = uniform_point(self.history.problem, self.history.problem.projector)
        elif turn <= len(self._budgets) or not self.history.ranked():
            self.proposer, tightness = "dp", self._budgets[(turn - 1) % len(self._budgets)]
            point = self._plain(tightness)
        else:
            self.proposer, tightness = self.bandit.choose(rng), self.aims.choose(self.history, rng)
            point = self.arms[self.proposer].point(self.aims.at(tightness, self.history), rng)
        return self._propose(point, tightness, rng)

    def reopen(self, policy: Policy, proposer: str) -> None:
        """Notes an open ask and the arm it came from."""
        super().reopen(policy, proposer)
        self._proposed[policy.digest] = proposer

    def tell(self, evaluation: Evaluation) -> None:
        """Tells every arm, and the bandit what the proposal brought."""
        proposer = self._proposed.pop(evaluation.policy.digest, evaluation.proposer)
        rng = self.history.rng(stream=1)
        self.bandit.update(proposer, self._gain(evaluation))
        point = self.history.tell(evaluation)
        self.aims.tell(point)
        self.trials.tell(point, self.history.scores[-1])
        self.agent.learn(point, evaluation, rng, updates=None if proposer == "agent+tpe" else 0)

    def remember(self, evaluations: Iterable[Evaluation]) -> int:
        """Shows the agent trials of earlier studies of the same model (see `AgentSearcher.remember`)."""
        return self.agent.remember(evaluations)

    def state_dict(self) -> dict[str, Any]:
        """The agent's state and the arms' counts."""
        return {"agent": self.agent.state_dict(), "wins": self.bandit.wins, "losses": self.bandit.losses}

    def _plain(self, tightness: float) -> IntArray:
        """What the layers' errors alone say for a budget."""
        problem, projector = self.history.problem, self.aims.projection(tightness)
        start = uniform_point(problem, projector)
        return self.allocation.solve(np.ones(len(start)), start, projector)

    def _propose(self, point: IntArray, tightness: float, rng: np.random.Generator) -> Policy:
        """A policy not proposed before, made feasible under the aim's limits."""
        projector = self.aims.projection(tightness)

        def settle(levels: IntArray, fill: bool) -> IntArray:
            return projector.project(levels, fill=fill)

        policy = self.history.propose(settle(point, True), rng, settle)
        self._proposed[policy.digest] = self.proposer
        return policy

    def _gain(self, evaluation: Evaluation) -> float:
        """What an evaluation adds to the hypervolume of those told before; estimates add nothing, nor does NaN."""
        if not evaluation.ok or evaluation.score is None or not np.isfinite(evaluation.score):
            return 0.0
        costs = np.array([evaluation.cost(name) for name in self.history.problem.projector.limits])
        point = np.concatenate([[-evaluation.score], costs / self._bounds])
        self._worst = max(self._worst, float(point[0]))
        edge = self._worst + 0.1 * abs(self._worst) + 1e-9
        gain = hypervolume_gain(self._front, point, np.concatenate([[edge], np.full(len(costs), BEYOND)]))
        if gain > 0:
            front = np.vstack([self._front, point])
            self._front = front[nondominated(front)]
        return gain


def joint(problem: Problem, seed: int) -> JointSearcher:
    """The searcher registered as `joint`."""
    return JointSearcher(problem, seed)
