"""What a space opens can be carried out, costs what the table says, and costs less at a lower level."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import automc
from automc.graph.ranks import METHODS
from automc.policy import LayerDecision, Policy, Recipe
from automc.projection import Costing
from automc.registry import SPACES
from automc.search_spaces.files import made
from automc.space import SearchSpace
from tests.spaces import models

QUICK = Recipe(reconstruct="none", images=64, rows=512)
"""Operations of convolutions and linear layers; an attention multiplies activations with each other as well."""


SHORT = ("option_b", "transformer")
PRESETS = [name for name, target in SPACES.table.items() if ".files:" in target]
CASES = [(name, m) for name in SPACES for m in (SHORT if name in PRESETS else ("option_a", "depthwise", *SHORT))]


def counted(model: torch.nn.Module, name: str) -> dict[str, float]:
    """macs, params, and bytes on disk, counted on the module itself."""
    return automc.cost(model, models.task_of(name).example_inputs)


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize(("name", "model"), CASES)
def test_every_point_can_be_compressed_and_costs_what_is_predicted(name: str, model: str) -> None:
    facts = models.facts_of(model)
    space = SearchSpace(facts, SPACES.load(name)(facts), QUICK)
    costing, rng = Costing(space), np.random.default_rng(0)
    for point in [space.smallest, space.sample(rng)]:
        found = counted(models.compressor_of(model).compress(space.decode(point)), model)
        wanted = costing.of(point)
        assert (found["macs"], found["params"]) == (wanted["macs"], wanted["params"])
        assert found["size"] <= wanted["size"]


DECISIONS = (
    {"weight_bits": 8, "activation_bits": 8},
    {"weight_bits": 8, "activation_bits": 8, "codebook": "kmeans", "sparsity": 0.3},
)


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize("rank", [1.0, 0.5])
@pytest.mark.parametrize("decided", DECISIONS, ids=str)
def test_a_file_is_no_larger_than_its_policys_size_however_long_the_names(
    decided: dict[str, float], rank: float
) -> None:
    facts = models.facts_of("long_names")
    layers = [x for x in facts.layers if rank == 1 or x.weight_numel >= 1024]
    decision = LayerDecision(rank=rank, **decided)  # type: ignore[arg-type]
    policy = Policy(facts.fingerprint, (), tuple((x.name, decision) for x in layers), QUICK)
    small = models.compressor_of("long_names").compress(policy)
    assert counted(small, "long_names")["size"] <= Costing(SearchSpace(facts, ())).of_policy(policy)["size"]


JOINED: dict[str, dict[str, Any]] = {
    "factored and rounded": {"open": ["channels-all", "ranks", "bits"]},
    "all of a layer": {"open": ["depth", "ranks", "weights", "codebooks"]},
    "half the channels": {"open": ["joint"], "channels": {"least_keep": 0.5, "coupled": True}},
    **{f"narrowed {m}": {"open": ["channels-all", "ranks"], "ranks": {"method": m}} for m in METHODS},
}


@cache
def costing_of(name: str, model: str) -> Costing:
    facts = models.wide() if model == "wide" else models.facts_of(model)
    build = made(name, JOINED[name], name) if name in JOINED else SPACES.load(name)
    return Costing(SearchSpace(facts, build(facts)))


def test_joined_spaces_open_ranks_where_layers_are_large() -> None:
    for name in ("joint", *JOINED):
        steady = not name.startswith("narrowed") or name.split()[1] in ("svd", "spatial", "cp")
        assert ("rank" in {a.field for a in costing_of(name, "wide").space.axes}) == steady, name


@pytest.mark.parametrize("model", ["wide", "transformer", "depthwise"])
@pytest.mark.parametrize("name", [*SPACES, *JOINED])
@given(seed=st.integers(0, 2**31), bold=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=8)
def test_no_cost_rises_when_one_decision_takes_a_lower_level(name: str, model: str, seed: int, bold: float) -> None:
    costing, rng = costing_of(name, model), np.random.default_rng(seed)
    space = costing.space
    extreme = np.where(rng.random(len(space.axes)) < 0.5, 0, space.sizes - 1)  # where limits of the space bind
    point = np.where(rng.random(len(space.axes)) < bold, extreme, space.sample(rng))
    lower = np.repeat(point[None], len(point), axis=0) - np.diag((point > 0) & space.ordered).astype(np.int64)
    names = tuple(costing.costs)
    assert (costing.batch(lower, names) <= costing.batch(point[None], names)).all()
