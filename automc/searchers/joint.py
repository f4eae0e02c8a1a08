"""The joint search: agent and Optuna decide together, and share what is learned with dynamic programming and evolution.

Jointly means three things.
* Inside one trial (arm `agent+tpe`) the agent walks the layers and decides shares while a TPE sampler decides
  criteria and bits. In turn, one conditions the other: either the sampler goes first and the agent sees its choice in
  every state, or the agent goes first and the sampler is fitted to the told trials nearest to the agent's shares.
* Across trials a bandit shares the evaluations among agent+tpe, tpe, knapsack and evolution by what they brought.
* Every evaluation is told to all of them: the agent's replay buffer, the samplers' history, the parents.

The first trials are given: the uniform policy and the plain knapsack solution. Both are good already, and every arm
starts from them.
"""

from typing import Any

import numpy as np

from automc.distributions import distributions, levels_of, parameters
from automc.episode import WalkSettings
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem, Searcher
from automc.searchers.bandit import Bandit
from automc.searchers.baselines import uniform_point
from automc.searchers.evolution import EvolutionSearcher
from automc.searchers.history import History
from automc.searchers.knapsack import KnapsackSearcher
from automc.searchers.optuna_search import OptunaSearcher, finished_trial, memory_study, suggested, tpe, tpe_sampler
from automc.searchers.rl import AgentSearch, AgentSearcher
from automc.space import Field, IntArray

AGENT_FIELDS: tuple[Field, ...] = ("keep", "sparsity", "rank")
"""What the agent decides where the space opens it; TPE decides the rest."""
NEAREST = 20
"""Told trials the conditioned sampler is fitted to, at most half of all."""
GOOD = 3
"""A proposal pays if it is among so many best, or on the front."""


class JointSearcher:
    """Four arms, one history."""

    def __init__(self, problem: Problem, seed: int, *, agent: str = "ddpg") -> None:
        self.history = History(problem, seed)
        self.proposer = ""
        fields = {a.field for a in problem.space.axes}
        owned = tuple(f for f in AGENT_FIELDS if f in fields) or None
        own = [int(s) for s in np.random.default_rng(seed).integers(2**31, size=4)]  # no arm repeats another's draws
        self.agent = AgentSearcher(problem, own[0], AgentSearch(agent, walk=WalkSettings(owned)))
        self.tpe: OptunaSearcher = tpe(problem, own[1])
        self.knapsack = KnapsackSearcher(problem, own[2])
        self.evolution = EvolutionSearcher(problem, own[3])
        self.bandit = Bandit(("agent+tpe", "tpe", "knapsack", "evolution"))
        self._arms: dict[str, str] = {}
        """Arm by policy digest, for proposals not yet told."""
        self._front: list[tuple[float, ...]] = []

    def ask(self) -> Policy:
        """The next policy and, in `proposer`, the arm it came from."""
        rng = self.history.rng()
        self.proposer = self._next_arm(rng)
        policy = self._from_arm(self.proposer, rng)
        self._arms[policy.digest] = self.proposer
        return policy

    def tell(self, evaluation: Evaluation) -> None:
        """Tells every arm, and the bandit whether the proposal paid."""
        arm = self._arms.pop(evaluation.policy.digest, evaluation.proposer)
        self.bandit.update(arm, won=self._pays(evaluation))
        rng = self.history.rng(stream=1)
        point = self.history.tell(evaluation)
        self.agent.learn(point, evaluation, rng, updates=None if arm == "agent+tpe" else 0)
        others: tuple[Searcher, ...] = (self.tpe, self.knapsack, self.evolution)
        for searcher in others:
            searcher.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """The arms' states and counts."""
        return {"agent": self.agent.state_dict(), "knapsack": self.knapsack.state_dict(), "wins": self.bandit.wins}

    def _next_arm(self, rng: np.random.Generator) -> str:
        done = len(self.history.points) + self.history.asked
        return ("uniform", "knapsack")[done] if done < 2 else self.bandit.choose(rng)

    def _from_arm(self, arm: str, rng: np.random.Generator) -> Policy:
        problem = self.history.problem
        if arm == "uniform":
            return self.history.propose(uniform_point(problem, problem.projector), rng)
        if arm == "agent+tpe":
            point = self._sampler_first(rng) if rng.random() < 0.5 else self._agent_first(rng)
            return self.history.propose(problem.projector.project(point, fill=True), rng)
        searchers: dict[str, Searcher] = {"tpe": self.tpe, "knapsack": self.knapsack, "evolution": self.evolution}
        return self.history.propose(problem.space.encode(searchers[arm].ask()), rng)

    def _sampler_first(self, rng: np.random.Generator) -> IntArray:
        """TPE suggests everything; the agent, shown criteria and bits, decides its fields anew."""
        return self.agent.episode(self.tpe.suggest(rng), rng)

    def _agent_first(self, rng: np.random.Generator) -> IntArray:
        """The agent walks beside the best known criteria and bits; TPE then decides these, given the agent's shares."""
        best = self.history.ranked()
        given = self.history.points[best[0]] if best else self.history.problem.space.largest
        point = self.agent.episode(given, rng)
        free = ~self.agent.walk.owned_axes
        if not free.any() or not best:
            return point
        point[free] = self._conditioned(point, np.flatnonzero(free), best, rng)
        return point

    def _conditioned(self, point: IntArray, free: IntArray, scored: list[int], rng: np.random.Generator) -> IntArray:
        """Levels of the free axes from a sampler that knows only the trials nearest to `point` in the agent's axes."""
        problem = self.history.problem
        owned = self.agent.walk.owned_axes
        tops = np.maximum(problem.space.sizes - 1, 1)
        gaps = np.abs(self.history.matrix()[scored][:, owned] - (point / tops)[owned]).sum(axis=1)
        near = np.argsort(gaps, kind="stable")[: min(NEAREST, max(len(scored) // 2, 2))]
        axes = [problem.space.axes[i] for i in free]
        ranges = distributions(axes)
        study = memory_study(1)
        for i in (scored[n] for n in near):
            params = parameters(axes, self.history.points[i][free])
            study.add_trial(finished_trial(params, ranges, [self.history.scores[i]], 0))
        return levels_of(axes, suggested(study, tpe_sampler(int(rng.integers(2**31))), ranges))

    def _pays(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation is among the best told so far, or no told one dominates it."""
        if not evaluation.scored or evaluation.score is None:
            return False
        better = sum(s > evaluation.score for s in self.history.scores)
        costs = (evaluation.cost(name) for name in self.history.problem.projector.limits)
        key = (-evaluation.score, *costs)
        dominated = any(all(a <= b for a, b in zip(other, key, strict=True)) for other in self._front)
        if not dominated and evaluation.ok:
            self._front = [o for o in self._front if not all(a <= b for a, b in zip(key, o, strict=True))] + [key]
        return better < GOOD or (not dominated and better < 3 * GOOD)


def joint(problem: Problem, seed: int) -> JointSearcher:
    """The searcher registered as `joint`."""
    return JointSearcher(problem, seed)
