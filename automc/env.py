"""The Gymnasium environment around one compression problem."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from automc.episode import Walk, WalkSettings
from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.rewards import REWARDS, Reward, worth
from automc.searcher import Problem

Observation = NDArray[np.float32]
ENV_ID = "automc/Compression-v0"


class CompressionEnv(gym.Env[Observation, Observation]):
    """Walk the layers of a model once, deciding at each how much of it stays; the reward comes at the end.

    ## Observation: Box(0, 1, (10 + A + O + M,), float32), each entry scaled over the episode's steps

    | index | meaning | unit before scaling |
    |---|---|---|
    | 0 | t, index of the step | steps |
    | 1 | n, output channels of the layer | channels |
    | 2 | c, input channels of the layer | channels |
    | 3, 4 | h, w, size of its input | positions |
    | 5 | stride | positions |
    | 6 | k, kernel size | positions |
    | 7 | cost of the dense layer, in macs or the first limited metric | macs, parameters, bytes, bit operations |
    | 8 | reduced: what decisions at earlier layers saved | share of the dense cost |
    | 9 | rest: cost of the layers still to come | share of the dense cost |
    | 10 ... | last executed action, A entries | share |
    | 10 + A ... | what others decided here, up to the next step, O entries; 1 for nothing | mean level |
    | 10 + A + O | field: which owned decision the step is, from 0 to 1; in stepwise walks only | place among them |
    | last | budget: 0 is the smallest reachable one, 1 the given; in budgeted walks only | share of the dense cost |

    O, one for each field of others at groups, at layers and at blocks, is 0 where the walk does not show them; M is the
    number of modes (stepwise, budgeted) that are on.

    ## Action: Box(0, 1, (A,), float32)

    One entry for each of keep, sparsity, rank, weight_bits, activation_bits that the agent owns, or a single one in
    stepwise walks, for the decision that `field` names: the share of channels kept; for the others the level, in cells
    of equal width, 1 being dense. The budget's projection lowers it where the rest of the model could not make up for
    it; in an unclipped walk it stands, and the finished policy is repaired. `info["executed"]` holds what was done.

    ## Reward and end

    0 until the last step; there the policy is evaluated and the reward is that of `reward` (see `automc.rewards`).
    `info` then holds `policy`, as repaired, and `evaluation`.

    ## Budget

    In a budgeted walk each `reset` draws the budget uniformly over what is reachable, or takes
    `options={"budget": share}`, a share of the dense cost; `info["budget"]` holds it as observed.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        problem: Problem,
        evaluate: Callable[[Policy], Evaluation],
        *,
        walk: WalkSettings | None = None,
        reward: str | Reward = "accuracy",
    ) -> None:
        self.walk, self._evaluate, self._problem = Walk(problem, walk), evaluate, problem
        self._reward = REWARDS[reward] if isinstance(reward, str) else reward
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self.walk.state_size,), np.float32)
        self.action_space = gym.spaces.Box(0.0, 1.0, (self.walk.action_size,), np.float32)
        self._levels = self.walk.start(problem.space.largest)
        self._index = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the first layer, every decision of the agent's open again."""
        super().reset(seed=seed)
        info = {}
        if self.walk.settings.budgeted:
            drawn = float(self.np_random.uniform(*self.walk.reach))
            self.walk = self.walk.under((options or {}).get("budget", drawn))
            info["budget"] = self.walk.budget
        self._levels = self.walk.start(self._problem.space.largest)
        self._index = 0
        return self._observation(), info

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes an action at the current layer; PolicyError after the end of an episode."""
        if self._index >= len(self.walk.steps):
            raise PolicyError(f"An episode has {len(self.walk.steps)} steps; this one is over: call reset first.")
        step = self.walk.steps[self._index]
        self._levels = self.walk.execute(self._levels, step, np.asarray(action, dtype=np.float64))
        info: dict[str, Any] = {"executed": self.walk.executed(self._levels, step)}
        self._index += 1
        if self._index < len(self.walk.steps):
            return self._observation(), 0.0, False, False, info
        self._levels = self.walk.finish(self._levels)
        policy = self._problem.space.decode(self._levels)
        evaluation = self._evaluate(policy)
        info |= {"policy": policy, "evaluation": evaluation}
        return self._observation(), worth(self._reward, evaluation, self.walk.dense), True, False, info

    def _observation(self) -> Observation:
        index = min(self._index, len(self.walk.steps) - 1)
        state: Observation = self.walk.states(self._levels, index, index + 1)[0].astype(np.float32)
        return state


def register() -> None:
    """Makes the environment known to Gymnasium as "automc/Compression-v0"; calling it again changes nothing."""
    if ENV_ID not in gym.registry:
        gym.register(id=ENV_ID, entry_point="automc.env:CompressionEnv")


register()  # `gym.make("automc.env:automc/Compression-v0")` imports this module and expects it done
