"""A reinforcement-learning agent as a searcher: an episode in `ask`, its reward in `tell`.

Whatever was evaluated, whoever proposed it, becomes an episode of executed actions that the agent remembers; after
its own episodes it learns, one update a step as AMC does. Episodes end filled up to the budget: what the clip left
over for layers that did not want it is spent, and the remembered actions are those of the final policy.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from automc.agent import Agent, Transition
from automc.episode import Walk, run_episode
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import AGENTS
from automc.rewards import REWARDS
from automc.searcher import Problem
from automc.searchers.history import History
from automc.space import Field, IntArray

WARMUP = 10
"""Episodes before the agent acts by itself; AMC's 100 are a third of its search, searches here are shorter."""


class AgentSearcher:
    """Runs an agent's episodes on a problem."""

    def __init__(
        self,
        problem: Problem,
        seed: int,
        *,
        agent: str = "ddpg",
        owned: Sequence[Field] | None = None,
        reward: str = "accuracy",
        warmup: int = WARMUP,
    ) -> None:
        self.history = History(problem, seed)
        self.proposer = agent
        self.walk = Walk(problem, owned)
        self.agent: Agent = make_agent(agent, self.walk, seed, warmup)
        self._reward = REWARDS[reward]
        self._own: set[bytes] = set()

    def ask(self) -> Policy:
        """The policy of one episode; decisions the agent does not own stay at their top."""
        rng = self.history.rng()
        point = self.episode(self.history.problem.space.largest, rng)
        policy = self.history.propose(self.history.problem.projector.project(point, fill=True), rng)
        self._own.add(self.history.problem.space.encode(policy).tobytes())
        return policy

    def episode(self, given: IntArray, rng: np.random.Generator) -> IntArray:
        """The levels of one walk, with the decisions the agent does not own as given."""
        with single_thread():
            return run_episode(self.walk, given, lambda state: self.agent.act(state, rng))

    def tell(self, evaluation: Evaluation) -> None:
        """Remembers an evaluation as an episode; learns if the agent proposed it."""
        rng = self.history.rng(stream=1)
        point = self.history.tell(evaluation)
        own = point.tobytes() in self._own or evaluation.proposer == self.proposer
        self.learn(point, evaluation, rng, updates=None if own else 0)

    def learn(self, point: IntArray, evaluation: Evaluation, rng: np.random.Generator, updates: int | None) -> None:
        """Gives the agent one episode of executed actions."""
        reward = self._reward(evaluation, self.history.problem.dense_score)
        with single_thread():
            self.agent.observe(transitions(self.walk, point, reward), rng, updates=updates)

    def state_dict(self) -> dict[str, Any]:
        """The agent's state."""
        return {"agent": self.agent.state_dict(), "told": len(self.history.points)}


def transitions(walk: Walk, levels: IntArray, reward: float) -> list[Transition]:
    """Any policy as an episode: states, executed actions, the final reward on every step (AMC)."""
    states = walk.states(levels)
    actions = [walk.executed(levels, step) for step in walk.steps]
    last = len(actions) - 1
    return [
        Transition(states[i], actions[i], reward, states[min(i + 1, last)], done=i == last) for i in range(len(actions))
    ]


def make_agent(name: str, walk: Walk, seed: int, warmup: int) -> Agent:
    """A registered agent for a walk's states and actions."""
    factory = AGENTS.load(name)
    agent: Agent = factory(walk.state_size, walk.action_size, seed=seed, warmup=warmup)
    return agent


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One PyTorch thread: networks this small lose time to a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def amc(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `amc`: DDPG with AMC's settings, owning every ordered decision."""
    return AgentSearcher(problem, seed)
