"""What shrinking keeps: the model itself, flags, ties, layouts, and a state that loads again; what it will not do."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from automc.errors import GraphError
from automc.graph.shrink import shrink
from automc.graph.trace import trace_model


class Small(nn.Module):
    """One residual block with a depthwise layer and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.dw = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down = nn.Conv2d(12, 8, 1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = x + self.gain * self.down(F.relu(self.dw(self.norm(self.up(x)))))
        return self.head(x.mean((2, 3)))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
KEPT = {"stem": np.array([0, 3, 7]), "up": np.array([1, 2, 5, 11])}


def test_kept_units_give_the_shapes_and_a_state_that_loads_again() -> None:
    model = Small()
    graph = trace_model(model, (X,))
    small: Any = shrink(graph, model, KEPT)
    shapes = {name: tuple(t.shape) for name, t in small.state_dict().items()}
    assert shapes["up.weight"] == (4, 3, 1, 1)
    assert shapes["dw.weight"] == (4, 1, 3, 3)
    assert shapes["norm.running_var"] == (4,)
    assert shapes["gain"] == (3, 1, 1)
    assert shapes["head.weight"] == (4, 3)
    assert (small.dw.groups, small.dw.in_channels, small.dw.out_channels) == (4, 4, 4)
    assert (small.norm.num_features, small.head.in_features) == (4, 3)
    assert torch.equal(small.up.weight, model.up.weight[[1, 2, 5, 11]][:, [0, 3, 7]])
    again = shrink(graph, Small(), KEPT)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(X), small.eval()(X))


def test_the_model_itself_is_left_as_it_was() -> None:
    model = Small()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    graph = trace_model(model, (X,))
    small: Any = shrink(graph, model, KEPT)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.training, model.norm.training, small.training, small.norm.training) == (True, False, True, False)
    assert (small.stem.weight.requires_grad, small.up.weight.requires_grad) == (False, True)


def test_a_wholly_frozen_model_still_shrinks() -> None:
    model = Small().requires_grad_(False)
    graph = trace_model(model, (X,))
    assert {g.name for g in graph.facts.groups} == {"stem", "up"}
    small = shrink(graph, model, KEPT)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) / 2


def test_channels_last_stays_channels_last() -> None:
    model = Small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    small: Any = shrink(trace_model(model, (X,)), model, KEPT)
    assert small.down.weight.shape == (3, 4, 1, 1)
    assert small.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.stem.weight.is_contiguous()


def test_tied_and_shared_parameters_stay_one_object() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[4].weight = model[2].weight
    graph = trace_model(model, (torch.randn(2, 5),))
    assert graph.facts.layer("2").tied == ("4.weight",)
    assert graph.facts.params == sum(p.numel() for p in model.parameters())
    small: Any = shrink(graph, model, {"0": np.array([1, 2, 6])})
    assert small[2].weight is small[4].weight
    assert small[2].weight.shape == (3, 3)


@pytest.mark.parametrize(
    "units", [[], [0, 0], [8], [-1, 2], [3, 1], [0.5]], ids=["none", "twice", "beyond", "below", "unsorted", "fraction"]
)
def test_units_that_make_no_sense_are_refused(units: list[Any]) -> None:
    model = Small()
    graph = trace_model(model, (X,), verify=False)
    with pytest.raises(GraphError, match="Kept units must be sorted, distinct, at least one and below 8; group 'stem'"):
        shrink(graph, model, {"stem": np.array(units)})
    with pytest.raises(GraphError, match="'steam' is none"):
        shrink(graph, model, {"steam": np.array([0])})


def test_optional_arguments_keep_their_names() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8 * 36, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            y = torch.relu(self.a(x))
            return self.b((y if mask is None else y * mask).reshape(-1, 288))

    model = Optional()
    small = shrink(trace_model(model, (X,)), model, {"a": np.array([2, 3])})
    assert isinstance(small, torch.fx.GraphModule)
    assert torch.equal(small(X), small(X, mask=None))


def test_the_fingerprint_sees_every_weight_and_the_class() -> None:
    torch.manual_seed(0)
    model = Small()
    first = trace_model(model, (X,), verify=False).facts.fingerprint
    assert trace_model(copy.deepcopy(model), (X,), verify=False).facts.fingerprint == first
    with torch.no_grad():
        model.gain[0] += 1e-3
    assert trace_model(model, (X,), verify=False).facts.fingerprint != first


def test_facts_count_everything() -> None:
    model = Small()
    facts = trace_model(model, (torch.randn(7, 3, 6, 6),)).facts
    dw = facts.layer("dw")
    assert (dw.depthwise, dw.positions, dw.input_size, dw.macs) == (True, 36, (6, 6), 36 * 12 * 9)
    assert facts.layer("up").norm == "norm"
    assert facts.layer("down").norm is None
    assert facts.params == sum(p.numel() for p in model.parameters())
    assert facts.buffer_bytes == 12 * 4 * 2 + 8
    assert [(p.name, p.shape) for p in facts.parameters] == [("gain", (8, 1, 1))]
    assert "gain" in facts.other_tensors
    assert "up.weight" not in facts.other_tensors
    assert [g.coupled for g in facts.groups] == [True, False]


@settings(max_examples=15)
@given(st.data())
def test_random_residual_nets_lose_channels_exactly(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 6))
    kinds = data.draw(st.lists(st.sampled_from(["add", "cat", "gate", "plain", "depthwise", "pool"]), max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = RandomNet(width, kinds)
    x = torch.randn(2, 3, 8, 8)
    graph = trace_model(model, (x,))
    assert not [r for r in graph.facts.refused if r.operation == "verification"]
    group = data.draw(st.sampled_from(graph.facts.groups))
    lost = data.draw(st.integers(1, group.units - 1))
    order = np.random.default_rng(0).permutation(group.units)
    gone, kept = order[:lost], np.sort(order[lost:])
    dense = copy.deepcopy(model).eval()
    with torch.no_grad():
        for member in group.members:
            if member.axis == "in":  # reading nothing is as good as silence: the members' other half
                weight: Any = dense.get_submodule(member.target).weight
                if weight.shape[1] > 1 or weight.shape[0] == 1:
                    weight[:, member.index[gone].ravel()] = 0
        small = shrink(graph, model, {group.name: kept}).eval()
        assert torch.allclose(dense(x), small(x), atol=1e-4, rtol=1e-4)


class RandomNet(nn.Module):
    """A chain of blocks, each of a drawn kind."""

    def __init__(self, width: int, kinds: list[str]) -> None:
        super().__init__()
        self.kinds, self.stem = kinds, nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for kind in kinds:
            groups = width if kind == "depthwise" else 1
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1, groups=groups))
            width *= 2 if kind == "cat" else 1
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            y = block(x)
            if kind == "add":
                x = F.relu(x + y)
            elif kind == "cat":
                x = torch.cat([F.relu(y), x], 1)
            elif kind == "gate":
                x = x * torch.sigmoid(y)
            else:
                x = F.max_pool2d(F.relu(y), 2, padding=1) if kind == "pool" else F.relu(y)
        return self.head(x.mean((2, 3)))
