"""A pass that begins at a cut gives the very tensors of one that begins at the start."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx

from automc.compression.compress import Compressor
from automc.compression.fitting import FittingPass
from automc.compression.prefix import PassMemory, Snapshot, cuts, keys, spread
from automc.policy import LayerDecision, Policy, Recipe
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

    def resume(self: FittingPass, at: fx.Node) -> None:
        resumed.append(at.name)
        real(self, at)

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


def test_a_key_tells_whatever_lies_before_the_cut_and_nothing_behind(setup: Setup) -> None:
    graph, facts = setup.graph.graph, setup.graph.facts
    assert graph is not None
    at = spread(cuts(graph))
    order = [str(n.target) for n in graph.nodes]
    dense = Policy(facts.fingerprint)
    plain = keys(graph, at, facts, dense, setup.compressor.structure(dense), "tiles")
    for layer in facts.layers:
        policy = replace(dense, layers=((layer.name, LayerDecision(weight_bits=4)),))
        changed = keys(graph, at, facts, policy, setup.compressor.structure(policy), "tiles")
        for node in at:
            behind = order.index(layer.name) > list(graph.nodes).index(node)
            assert (changed[node] == plain[node]) == behind
    unused = replace(dense, layers=((facts.layers[0].name, LayerDecision(pattern="2:4", criterion="obs")),))
    assert keys(graph, at, facts, unused, setup.compressor.structure(unused), "tiles") == plain
    kinds = keys(graph, at, facts, dense, setup.compressor.structure(dense), "chunks")
    assert not set(kinds.values()) & set(plain.values())
    other = dense.with_recipe(Recipe(seed=1))
    assert not set(keys(graph, at, facts, other, setup.compressor.structure(other), "tiles").values()) & set(
        plain.values()
    )


def test_a_snapshot_is_wanted_at_the_second_passing_and_once() -> None:
    memory, snapshot = PassMemory(1000), Snapshot((torch.ones(3),), {}, frozenset())
    assert not memory.wants("a") and "a" not in memory
    assert memory.wants("a") and memory.wants("a")
    memory.put("a", snapshot)
    assert not memory.wants("a") and memory["a"] is snapshot
    with pytest.raises(KeyError):
        memory["b"]
