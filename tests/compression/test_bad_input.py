"""Data and layers as bad as users bring them: handled, or refused by name."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from automc.compression.compress import Compressor
from automc.errors import GraphError, PolicyError
from automc.graph.trace import trace_model
from automc.policy import GroupDecision, LayerDecision, Policy, Recipe
from automc.task import Task

RECIPES = ["none", "layerwise", "sequential"]


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
        ).eval()


def compress(model: nn.Module, x: Tensor, recipe: str, **layer: object) -> nn.Module:
    graph = trace_model(model, (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),))
    task = Task(model, [x], [(x, torch.zeros(len(x), dtype=torch.long))])
    groups = tuple((g.name, GroupDecision(0.5)) for g in graph.facts.groups)
    layers = tuple((x.name, LayerDecision(**layer)) for x in graph.facts.layers) if layer else ()  # type: ignore[arg-type]
    policy = Policy(graph.facts.fingerprint, groups, layers, Recipe(reconstruct=recipe))  # type: ignore[arg-type]
    return Compressor(graph, model, task).compress(policy)


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("what", ["dead inputs", "equal inputs", "constant images", "zero layer", "one image"])
def test_singular_statistics_give_finite_models(recipe: str, what: str) -> None:
    model, x = net(), images()
    if what == "dead inputs":
        x[:, 1] = 0
        nn.init.constant_(model[0].bias[:4], -100.0)  # type: ignore[index]
    elif what == "equal inputs":
        x[:, 2] = x[:, 0]
    elif what == "constant images":
        x = torch.ones_like(x)
    elif what == "zero layer":
        nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    else:
        x = x[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in ({}, {"sparsity": 0.5, "criterion": "obs"}, {"weight_bits": 4}, {"rank": 0.5}):
            small = compress(model, x, recipe, **layer)
            assert bool(torch.isfinite(small(images())).all()), layer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["layerwise", "sequential"])
def test_activations_that_are_not_finite_are_refused_by_layer(recipe: str, value: float) -> None:
    x = images()
    x[3, 1, 2, 2] = value
    with pytest.raises(GraphError, match=r"'0'|finite"):
        compress(net(), x, recipe)


def test_too_little_calibration_data_is_warned_of_by_layer() -> None:
    with pytest.warns(UserWarning, match="'5' has 32 inputs and 8 calibration rows"):
        compress(net(), images(8), "layerwise")


@pytest.mark.parametrize("pattern", ["1x4", "2:4"])
def test_a_pattern_wider_than_a_layer_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(PolicyError, match="layer '0' has 12 and 3"):
        compress(net(), images(), "sequential", sparsity=0.5, pattern=pattern)
