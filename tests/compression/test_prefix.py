"""A pass that begins at a cut gives the very tensors of one that begins at the start."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from automc.compression.compress import Compressor
from automc.compression.fitting import FittingPass
from automc.compression.prefix import PassMemory, Snapshot, cuts, keys, sharing_order, spread, worthwhile
from automc.graph.trace import trace_model
from automc.policy import LayerDecision, Policy, Recipe
from automc.tasks.resnet import ResNet
from tests.compression.conftest import Setup

RECIPES = [Recipe(), Recipe(reconstruct="layerwise"), Recipe(reconstruct="none")]


def neighbours(setup: Setup, recipe: Recipe, count: int = 5) -> list[Policy]:
    """A random policy and some that differ from it in one axis each, the last axes first."""
    rng = np.random.default_rng(0)
    start = setup.space.sample(rng)
    start[[i for i, axis in enumerate(setup.space.axes) if axis.kind == "block"]] = 1
    points = [start]
    for axis in np.linspace(len(start) - 1, 0, count).astype(int):
        other = start.copy()
        other[axis] = (other[axis] + 1) % setup.space.sizes[axis]
        points.append(other)
    return [setup.space.decode(p).with_recipe(recipe) for p in points]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.reconstruct)
def test_reused_prefixes_change_nothing(setup: Setup, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed: list[str] = []
    real = FittingPass._resume

    def resume(self: FittingPass, at: fx.Node, snapshot: Snapshot) -> None:
        resumed.append(at.name)
        real(self, at, snapshot)

    monkeypatch.setattr(FittingPass, "_resume", resume)
    shared = Compressor(setup.graph, setup.task.model, setup.task)
    for policy in neighbours(setup, recipe):
        found = shared.compress(policy).state_dict()
        fresh = Compressor(setup.graph, setup.task.model, setup.task).compress(policy).state_dict()
        again = shared.compress(policy).state_dict()
        for name, tensor in fresh.items():
            assert torch.equal(found[name], tensor) and torch.equal(again[name], tensor), name
    assert len(resumed) >= 5


def test_behind_a_cut_only_its_value_is_needed(setup: Setup) -> None:
    graph, model = setup.graph.graph, setup.task.model
    assert graph is not None
    x = setup.task.example_inputs[0]
    whole = fx.Interpreter(fx.GraphModule(model, graph), garbage_collect_values=False)
    with torch.no_grad():
        whole.run(x)
    values = {node.name: value for node, value in whole.env.items()}
    found = spread(cuts(graph))
    assert found
    for cut in found:
        rest = fx.Graph()
        copied = {cut: rest.placeholder("value")}
        for node in list(graph.nodes)[list(graph.nodes).index(cut) + 1 :]:
            copied[node] = rest.node_copy(node, copied.__getitem__)  # KeyError: something else is needed
        with torch.no_grad():
            assert torch.equal(fx.GraphModule(model, rest)(values[cut.name]), model(x))


def test_what_saves_hardly_any_work_is_not_held() -> None:
    model = ResNet(20).eval()
    found = trace_model(model, (torch.zeros(1, 3, 32, 32),))
    assert found.graph is not None
    left = [node.name for node in cuts(found.graph)], [node.name for node in worthwhile(found.graph, found.facts)]
    assert left[1] == left[0][-len(left[1]) :] and 0 < len(left[0]) - len(left[1]) <= 6
    assert left[0][0] not in left[1]


def test_a_key_tells_whatever_lies_before_the_cut_and_nothing_behind(setup: Setup) -> None:
    graph, facts = setup.graph.graph, setup.graph.facts
    assert graph is not None
    at = spread(cuts(graph))
    order = [str(n.target) for n in graph.nodes]
    dense = Policy(facts.fingerprint)
    plain = keys(graph, at, facts, dense, setup.compressor.structure(dense))
    for layer in facts.layers:
        policy = replace(dense, layers=((layer.name, LayerDecision(weight_bits=4)),))
        changed = keys(graph, at, facts, policy, setup.compressor.structure(policy))
        for node in at:
            behind = order.index(layer.name) > list(graph.nodes).index(node)
            assert (changed[node] == plain[node]) == behind
    unused = replace(dense, layers=((facts.layers[0].name, LayerDecision(pattern="2:4", criterion="obs")),))
    assert keys(graph, at, facts, unused, setup.compressor.structure(unused)) == plain
    other = dense.with_recipe(Recipe(seed=1))
    assert not set(keys(graph, at, facts, other, setup.compressor.structure(other)).values()) & set(plain.values())


def held(names: str) -> Snapshot:
    return Snapshot((torch.ones(len(names)),), {}, frozenset())


def test_a_snapshot_is_wanted_at_the_second_passing_and_once() -> None:
    memory, snapshot = PassMemory(1000), held("a")
    assert memory.wanted("tiles", {"x": "a"}) == [] and memory.deepest("tiles", {"x": "a"}) is None
    assert memory.wanted("tiles", {"x": "a"}) == ["x"] == memory.wanted("tiles", {"x": "a"})
    memory.put("tiles", "a", snapshot)
    assert memory.wanted("tiles", {"x": "a"}) == []
    assert memory.deepest("tiles", {"x": "a", "y": "b"}) == ("x", snapshot)
    assert memory.deepest("chunks", {"x": "a"}) is None


def test_what_lies_before_the_deepest_snapshot_is_not_wanted() -> None:
    memory, places = PassMemory(1000), {"x": "a", "y": "b", "z": "c"}
    memory.wanted("tiles", places)
    memory.put("tiles", "b", held("b"))
    assert memory.wanted("tiles", places) == ["z"]


def test_planned_snapshots_are_left_at_once_and_outlast_others() -> None:
    memory, places = PassMemory(3 * held("a").bytes), {"x": "a", "y": "b", "z": "c"}
    with memory.planned([("a", "b"), ("a",)]):
        assert memory.wanted("tiles", places) == ["x", "y"]
        assert memory.wanted("tiles", {"x": "a", "z": "c"}) == ["x"]  # "y" cannot be held here
        memory.put("tiles", "a", held("a"))
        memory.put("tiles", "o", held("o"))
        memory.put("tiles", "p", held("p"))
        assert memory.wanted("tiles", places) == ["y"]
        memory.put("tiles", "b", held("b"))
    assert [memory.deepest("tiles", {0: name}) is not None for name in "aopb"] == [True, False, True, True]
    assert memory.wanted("tiles", {"w": "d"}) == []


chains = st.lists(
    st.lists(st.sampled_from("xyz"), max_size=6).map(lambda x: tuple(itertools.accumulate(x))), max_size=12
)


@given(chains)
def test_candidates_that_share_most_follow_each_other(given: list[tuple[str, ...]]) -> None:
    found = sharing_order(given)
    assert sorted(index for index, _ in found) == list(range(len(given)))
    held: set[str] = set()
    ran, most = 0, 0
    for index, leaves in found:
        chain = given[index]
        start = max((i + 1 for i, digest in enumerate(chain) if digest in held), default=0)
        ran += len(chain) - start
        plan = {leaf[-1] for leaf in leaves}
        assert all(chain[: len(leaf)] == leaf for leaf in leaves)
        held = {d for d in held if d in plan} | {d for d in chain[start:] if d in plan}
        most = max(most, len(held))
    assert ran == len({digest for chain in given for digest in chain})  # each shared part once, and no part twice
    assert most <= len(given).bit_length()
