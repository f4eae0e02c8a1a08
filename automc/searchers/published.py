"""AMC and HAQ as they were published, in this library's walk (He et al. 2018; Wang et al. 2019).

What the agent itself keeps and changes stands in `agents/ddpg.py`, what the walk does in `automc/episode.py`. Common
deviations: a policy that was told before is moved to a neighbour in the agent's own decisions instead of being scored
again; the criterion stays at its first value and every other decision at its top, lowered only where the agent's own at
their lowest could not meet the budget; a budget is met after rounding; candidates are scored as in any search, not
trained first.
"""

from automc.episode import BITS, RATIOS, WalkSettings
from automc.errors import PolicyError
from automc.searcher import Problem
from automc.searchers.rl import AgentSearch, AgentSearcher


def amc(problem: Problem, seed: int) -> AgentSearcher:
    """AMC's resource-constrained search, registered as `amc`.

    One share a layer, of channels, zeros or rank, the first that the space opens, in the order of the network; the
    eleven features of the paper; 100 uniform episodes that fill the replay buffer of 100 episodes and teach nothing;
    then noise of deviation 0.5 * 0.95^k and one update a step; the accuracy as reward; what the clip leaves over of the
    budget is not spent.
    """
    return _amc(problem, seed, "amc", "accuracy")


def amc_guaranteed(problem: Problem, seed: int) -> AgentSearcher:
    """AMC's accuracy-guaranteed search, registered as `amc-guaranteed`: the reward is -error * log(cost).

    The budget is only an upper bound, such as "macs<=100%"; the answer is `Study.cheapest` within a drop of the score.
    """
    return _amc(problem, seed, "amc-guaranteed", "accuracy-cost")


def haq(problem: Problem, seed: int) -> AgentSearcher:
    """HAQ, registered as `haq`: weight bits, then activation bits, layer by layer; the finished policy is repaired.

    20 uniform episodes, noise of deviation 0.5 * 0.99^k, a replay buffer of 128 transitions a layer. Deviations: cells
    of equal width are counted over a layer's levels, also where these skip bit widths; the state is AMC's eleven
    features, the last of them the last executed decision, and which of the two decisions it is, instead of HAQ's ten
    (which know the layer's kind and weight count, but not what was spent); the agent remembers the repaired bits; the
    reward is the relative accuracy, not a tenth of its difference.
    Weights are shared by k-means or evenly spaced as the space says, by k-means where it leaves that open.
    """
    opened = tuple(f for f in BITS if f in problem.space.fields)
    if not opened:
        raise PolicyError(
            f"HAQ must have bits to decide; this space opens {_named(problem)}: "
            "choose a space with weight or activation bits, or --searcher amc."
        )
    walk = WalkSettings(owned=opened, stepwise=True, clipped=False, others=False)
    knobs = {"steady": False, "decay": 0.99, "replay": 128 // len(opened)}
    return AgentSearcher(
        problem, seed, AgentSearch(name="haq", walk=walk, warmup=20, patient=True, fill=False, knobs=knobs)
    )


def _amc(problem: Problem, seed: int, name: str, reward: str) -> AgentSearcher:
    owned = next((f for f in RATIOS if f in problem.space.fields), None)
    if owned is None:
        raise PolicyError(
            f"AMC must have {', '.join(RATIOS)} to decide, one of them; this space opens {_named(problem)}: "
            "choose a space with one of these, or --searcher ddpg."
        )
    walk = WalkSettings(owned=(owned,), others=False)
    search = AgentSearch(
        name=name, walk=walk, reward=reward, warmup=100, patient=True, fill=False, knobs={"steady": False}
    )
    return AgentSearcher(problem, seed, search)


def _named(problem: Problem) -> str:
    return ", ".join(sorted(problem.space.fields)) or "nothing"
