"""What every implementation of a contract must do; each check raises AssertionError with what it found."""

import math
import random
from dataclasses import replace

import numpy as np
import torch

from automc.agent import Agent, AgentFactory, AgentSetting, Transition
from automc.costs.table import Cost, CostTable, total
from automc.criteria.criterion import Criterion, LayerView
from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.graph.facts import ModelFacts
from automc.projection import Costing
from automc.searcher import Problem, SearcherFactory
from automc.space import SearchSpace, SpaceBuilder, first_layers


def check_criterion(criterion: Criterion) -> None:
    """One finite, non-negative score per weight, for linear, plain and grouped layers; the weight is left alone."""
    generator = torch.Generator().manual_seed(0)
    for shape, groups in (((6, 5), 1), ((6, 4, 3, 3), 1), ((6, 2, 3, 3), 3), ((4, 1, 3, 3), 4)):
        weight = torch.randn(shape, generator=generator)
        n = weight[0].numel()
        x = torch.randn(groups, 4 * n, n, generator=generator)
        before = weight.clone()
        score = criterion.score(_view(weight, x, generator))
        assert score.shape == weight.shape, f"{criterion.name}: {tuple(score.shape)} scores for {tuple(weight.shape)}"
        assert bool(torch.isfinite(score).all()), f"{criterion.name}: scores must be finite"
        assert criterion.sign != "positive" or bool((score >= 0).all()), (
            f"{criterion.name}: scores must not be negative"
        )
        assert torch.equal(weight, before), f"{criterion.name}: the weight was changed"
        apart = bool((score.flatten(1) != score.flatten(1)[:, :1]).any())
        assert apart or not criterion.tells_weights_apart, f"{criterion.name}: says it tells weights apart; it does not"


def _view(weight: torch.Tensor, x: torch.Tensor, generator: torch.Generator) -> LayerView:
    """Everything a criterion may need, drawn at random; x are input rows (groups, rows, n)."""

    def like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    back = torch.randn(len(x), 50, len(weight) // len(x), generator=generator)
    return LayerView(
        weight,
        gram=x.transpose(1, 2) @ x,
        mean=x.mean(dim=1),
        active=(x > 0).float().mean(dim=1),
        norm_scale=weight.flatten(1).norm(dim=1),
        gradient=like(weight),
        hessian_gradient=like(weight),
        output_gram=back.transpose(1, 2) @ back,
        flow=like(weight).abs(),
        sensitivity=like(weight).abs(),
        generator=generator,
    )


def check_cost(cost: Cost, space: SearchSpace) -> None:
    """Finite, positive, never rising when one decision gives a level up; the dense point is no cheaper than 100 %."""
    costing, rng = Costing(space), np.random.default_rng(0)

    def of(points: np.ndarray) -> np.ndarray:
        return total(cost, costing.table, costing.table.shapes(costing.candidates(points)))

    for _ in range(20):
        point = space.sample(rng)
        lower = np.repeat(point[None], len(point), axis=0) - np.diag((point > 0) & space.ordered).astype(np.int64)
        assert bool((of(lower) <= of(point[None])).all()), f"{cost.name}: must not rise when a candidate keeps less"
        assert bool(np.isfinite(of(lower)).all()) and bool((of(lower) >= 0).all()), f"{cost.name}: finite and positive"
    assert float(of(space.largest[None])[0]) >= cost.dense(CostTable(space.facts)) - 1e-6


def check_space(build: SpaceBuilder, facts: ModelFacts) -> None:
    """Axes of existing places, each once, ascending to the dense value, in forward order within a kind of decision;
    points survive decode and encode, and places decided together are decided alike. SpaceError where an axis names an
    unknown place, two decide the same, or values repeat or do not ascend in cost."""
    space = SearchSpace(facts, build(facts))
    keys = [a.key for a in space.axes]
    assert len(set(keys)) == len(keys), "each decision may be opened once"
    first = first_layers(facts)
    for axis in space.axes:
        order = [first[axis.kind][place] for place in axis.places]
        assert order == sorted(order), f"{axis.key}: places must stand in forward order, they are {axis.places}"
    dense = space.decode(space.largest)
    for name, group in dense.groups:
        assert group.keep == 1.0, f"{name}: the top level must keep every channel"
    assert not dense.dropped, "the top level must keep every block"
    for name, layer in dense.layers:
        top = (layer.weight_bits, layer.activation_bits, layer.sparsity, layer.rank)
        assert top == (32, 32, 0.0, 1.0), f"{name}: the top level must be dense, it is {top}"
    rng = np.random.default_rng(0)
    for _ in range(20):
        point = space.sample(rng)
        policy = space.decode(point)
        assert np.array_equal(space.encode(policy), point), "a point must survive decode and encode"
        decided = {"group": policy.group, "layer": policy.layer, "block": policy.block}
        for axis in space.axes:
            alike = {getattr(decided[axis.kind](place), axis.field) for place in axis.places}
            assert len(alike) == 1 or axis.field == "pattern", f"{axis.key}: {axis.places} must be decided alike"


def check_agent(factory: AgentFactory, setting: AgentSetting | None = None) -> None:
    """Actions in [0, 1], counted episodes, a complete state, no number that is not finite, no global randomness."""
    setting = setting or AgentSetting(state_size=13, action_size=2, steps=5, warmup=3)
    before = _global_randomness()
    agent, rng = factory(setting), np.random.default_rng(0)
    for number in range(12):
        episode = _episode(agent, setting, rng, explore=bool(number % 2))
        agent.observe(episode, rng, updates=0 if number % 3 == 2 else None)
        assert agent.episode == number + 1, "episode must count what was observed"
    _check_plain(agent.state_dict())
    _check_refusal(agent, _episode(agent, setting, rng))
    restored = factory(replace(setting, seed=1))
    restored.load_state_dict(agent.state_dict())
    assert _goes_on(agent, setting) == _goes_on(restored, setting), "a restored agent must go on as the saved one"
    assert _goes_on(factory(setting), setting) == _goes_on(factory(setting), setting), "the same seed, the same agent"
    assert before == _global_randomness(), "an agent must leave the global generators alone"


def _episode(
    agent: Agent, setting: AgentSetting, rng: np.random.Generator, *, explore: bool = True
) -> list[Transition]:
    """One episode of random states and the agent's own actions."""
    states = rng.uniform(size=(setting.steps, setting.state_size))
    states[:, 0] = np.linspace(0.0, 1.0, setting.steps)
    last, steps = setting.steps - 1, []
    for i, state in enumerate(states):
        action = agent.act(state, rng, explore=explore)
        shape = (setting.action_size,)
        assert action.shape == shape, f"an action must have {setting.action_size} entries, it has {action.shape}"
        assert bool(((action >= 0) & (action <= 1)).all()), "actions must lie in [0, 1]"
        steps.append(Transition(state, action, float(action.mean()), states[min(i + 1, last)], i == last))
    return steps


def _check_refusal(agent: Agent, episode: list[Transition]) -> None:
    """A reward that is no number is refused, and nothing is learnt from it."""
    before = repr(agent.state_dict())
    for reward in (math.nan, math.inf):
        try:
            agent.observe([*episode[:-1], replace(episode[-1], reward=reward)], np.random.default_rng(0))
        except PolicyError:
            assert repr(agent.state_dict()) == before, "a refused episode must leave the agent as it was"
        else:
            raise AssertionError(f"a reward of {reward} must be refused")


def _goes_on(agent: Agent, setting: AgentSetting) -> list[list[float]]:
    """What an agent does in three further episodes."""
    rng = np.random.default_rng(1)
    done: list[list[float]] = []
    for _ in range(3):
        episode = _episode(agent, setting, rng)
        agent.observe(episode, rng)
        done += [t.action.tolist() for t in episode]
    return done


def _global_randomness() -> tuple[str, ...]:
    return str(torch.get_rng_state().tolist()), str(np.random.get_state()), str(random.getstate())


def check_searcher(factory: SearcherFactory, problem: Problem, trials: int = 12) -> None:
    """Feasible proposals whatever is told, several asks before a tell, and the same proposals after a resume."""
    first, history = factory(problem, 0), []
    for number in range(trials):
        policy = first.ask()
        point = problem.space.encode(policy)
        assert problem.space.decode(point) == policy, "a proposal must lie on the space's levels"
        assert problem.projector.feasible(point), "a proposal must meet the budget"
        costs = tuple(problem.projector.costing.of(point).items())
        proposer = str(getattr(first, "proposer", ""))  # as the loop records it
        evaluation = Evaluation(policy, "ok", 0.1 * (number % 5), costs, proposer=proposer)
        if number % 4 == 3:
            evaluation = replace(evaluation, state="failed", score=None, reason="told to fail")
        elif number % 4 == 2:
            evaluation = replace(evaluation, state="pruned", share=0.1, reason="told to be stopped early")
        history.append(evaluation)
        first.tell(evaluation)
    again = factory(problem, 0)
    for evaluation in history:
        again.tell(evaluation)
    assert same_state(again.state_dict(), first.state_dict()), (
        "a resumed searcher must know what the uninterrupted one does"
    )
    assert again.ask() == first.ask(), "a resumed searcher must go on as the uninterrupted one"
    open_asks = [first.ask() for _ in range(3)]
    assert all(problem.projector.feasible(problem.space.encode(p)) for p in open_asks)
    _check_plain(first.state_dict())


def same_state(first: object, second: object) -> bool:
    """Whether two `state_dict`s hold the same tensors and values."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_state(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same_state, first, second))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def _check_plain(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, (str, int)), f"a state's keys must be text or numbers, not {key!r}"
            _check_plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item)
    else:
        plain = (torch.Tensor, str, int, float, bool, type(None))
        assert isinstance(value, plain), f"a state holds tensors and JSON values, not {type(value).__name__}"
