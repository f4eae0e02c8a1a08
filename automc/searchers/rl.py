"""A reinforcement-learning agent as a searcher: an episode in `ask`, its reward in `tell`.

Whatever was evaluated, whoever proposed it, becomes an episode of executed actions that the agent remembers; after
its own episodes it learns, one update a step as AMC does. Unless the settings say otherwise, episodes end filled up to
the budget: what the clip left over for layers that did not want it is spent, and the remembered actions are those of
the final policy.

In a budgeted walk each episode has a budget of its own, from the smallest reachable share of the dense cost to the
given one, in the order of the golden ratio's multiples: however many episodes were run, their budgets lie evenly. They
are drawn on the scale of the cost, on which fronts are drawn and their hypervolume is measured. One trained agent then
gives the whole front, by `policy_for`; `automc.policy_for` asks the agent of a study.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from automc.agent import Agent, AgentFactory, AgentSetting
from automc.episode import Walk, WalkSettings, run_episode, transitions
from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import AGENTS
from automc.rewards import REWARDS, worth
from automc.searcher import Problem
from automc.searchers.history import FromHistory
from automc.space import IntArray

GOLDEN = 0.5 * (5.0**0.5 - 1.0)


@dataclass(frozen=True, slots=True)
class AgentSearch:
    """How an agent searches; the defaults make a searcher of its own of every agent."""

    agent: str = "ddpg"
    """Registered name."""
    name: str = ""
    """What its proposals are recorded under; the agent's name by default."""
    walk: WalkSettings = field(default_factory=WalkSettings)
    """What it decides, and what it is shown."""
    reward: str = "accuracy"
    """Registered in `automc.rewards`."""
    warmup: int = 10
    """Episodes before the agent acts by itself; AMC's 100 are a third of its search, searches here are shorter."""
    patient: bool = False
    """Whether it learns nothing in the warm-up, as AMC and HAQ."""
    fill: bool = True
    """Whether episodes end filled up to the budget."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """The agent's own settings, where they differ from its defaults."""


class AgentSearcher(FromHistory):
    """Runs an agent's episodes on a problem."""

    def __init__(self, problem: Problem, seed: int, search: AgentSearch | None = None) -> None:
        super().__init__(problem, seed)
        self.search = search or AgentSearch()
        self.proposer = self.search.name or self.search.agent
        self.walk = Walk(problem, self.search.walk)
        self.agent = make_agent(self.search, self.walk, seed)
        self._reward, self._dense = REWARDS[self.search.reward], self.walk.dense
        self._own: set[bytes] = set()

    def ask(self) -> Policy:
        """The policy of one episode; decisions the agent does not own stay at their top, as far as that fits."""
        rng = self.history.rng()
        walk = self.walk.under(self._next_share())
        point = self._filled(walk, self.episode(self.history.problem.space.largest, rng, walk), self.search.fill)

        def settle(levels: IntArray, fill: bool) -> IntArray:
            return self._filled(walk, walk.settle(np.where(walk.owned_axes, levels, point)), fill)

        policy = self.history.propose(point, rng, settle)
        self._own.add(self.history.problem.space.encode(policy).tobytes())
        return policy

    def episode(
        self, given: IntArray, rng: np.random.Generator, walk: Walk | None = None, *, explore: bool = True
    ) -> IntArray:
        """The levels of one walk, with the decisions the agent does not own as given."""
        with single_thread():
            return run_episode(walk or self.walk, given, lambda state: self.agent.act(state, rng, explore=explore))

    def policy_for(self, share: float) -> Policy:
        """What the agent, without exploring, does with a budget of that share of the dense cost.

        Of the first limited metric; it is cut to the range that was searched. PolicyError where the agent was never
        shown budgets.
        """
        if not self.walk.settings.budgeted:
            raise PolicyError(
                f"An agent must have been shown budgets to serve another one; {self.proposer!r} knows its own only: "
                "search with amc-budgets."
            )
        walk = self.walk.under(share)
        point = self.episode(self.walk.space.largest, np.random.default_rng(0), walk, explore=False)
        return self.walk.space.decode(self._filled(walk, point, self.search.fill))

    def tell(self, evaluation: Evaluation) -> None:
        """Remembers an evaluation as an episode; learns if the agent proposed it."""
        rng = self.history.rng(stream=1)
        point = self.history.tell(evaluation)
        own = point.tobytes() in self._own or evaluation.proposer == self.proposer
        ready = not self.search.patient or self.agent.episode >= self.search.warmup
        self.learn(point, evaluation, rng, updates=None if own and ready else 0)

    def learn(self, point: IntArray, evaluation: Evaluation, rng: np.random.Generator, updates: int | None) -> bool:
        """Gives the agent one episode of executed actions; False where there is none, for a score only predicted."""
        if evaluation.state == "pruned" and not evaluation.scored:
            return False
        reward = worth(self._reward, evaluation, self._dense)
        with single_thread():
            self.agent.observe(transitions(self.walk, point, reward), rng, updates=updates)
        return True

    def remember(self, evaluations: Iterable[Evaluation]) -> int:
        """Shows the agent evaluations of earlier studies or of given policies, before the search; returns how many.

        They fill the warm-up and teach as episodes of others do; the searcher may propose their policies again.
        Policies over this budget are left out, since no episode could have executed them; those of another model raise
        PolicyError. Scores must be of this search's kind. A search that is resumed must be given the same ones.
        """
        space, projector = self.walk.space, self.walk.projector
        count = 0
        for evaluation in evaluations:
            point = space.encode(evaluation.policy)
            if projector.feasible(point):
                rng = np.random.default_rng((self.history.seed, 2, count))
                count += self.learn(point, evaluation, rng, updates=0)
        return count

    def state_dict(self) -> dict[str, Any]:
        """The agent's state."""
        return super().state_dict() | {"agent": self.agent.state_dict()}

    def _next_share(self) -> float:
        """The next episode's budget."""
        low, high = self.walk.reach
        turn = len(self.history.points) + self.history.asked + 1
        offset = np.random.default_rng((self.history.seed, 3)).uniform()
        return float(low + (high - low) * ((offset + turn * GOLDEN) % 1.0))

    def _filled(self, walk: Walk, point: IntArray, fill: bool) -> IntArray:
        """A feasible point, what is left of the episode's budget spent where that is wanted."""
        return walk.projector.project(point, fill=True) if fill and self.search.fill else point


def make_agent(search: AgentSearch, walk: Walk, seed: int) -> Agent:
    """A registered agent for a walk's states and actions."""
    factory: AgentFactory = AGENTS.load(search.agent)
    return factory(AgentSetting(walk.state_size, walk.action_size, len(walk.steps), seed, search.warmup, search.knobs))


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One PyTorch thread: networks this small lose time to a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ddpg(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `ddpg`: AMC's agent with a short warm-up, every ordered decision, budgets spent."""
    return AgentSearcher(problem, seed)


def reinforce(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `reinforce` (Williams 1992; Huang et al. 2018)."""
    return AgentSearcher(problem, seed, AgentSearch("reinforce"))


def td3(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `td3` (Fujimoto et al. 2018)."""
    return AgentSearcher(problem, seed, AgentSearch("td3", patient=True))


def sac(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `sac` (Haarnoja et al. 2018)."""
    return AgentSearcher(problem, seed, AgentSearch("sac", patient=True))


def ppo(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `ppo` (Schulman et al. 2017)."""
    return AgentSearcher(problem, seed, AgentSearch("ppo"))


def amc_budgets(problem: Problem, seed: int) -> AgentSearcher:
    """The searcher registered as `amc-budgets`: `ddpg`, with the budget in its state and a budget for each episode."""
    return AgentSearcher(problem, seed, AgentSearch(name="amc-budgets", walk=WalkSettings(budgeted=True)))
