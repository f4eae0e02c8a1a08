"""Forwards that ask for sizes, types and names: traced with an example beside, and held to what it answered."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import automc
from automc.errors import GraphError
from automc.graph.example import ExampleTracer, answers
from automc.graph.shrink import shrink
from automc.graph.trace import trace_model
from automc.policy import BlockDecision, LayerDecision, Policy

Ask = Callable[["Net", Tensor], Tensor]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Output:
    """Outputs by name."""

    logits: Tensor
    hidden: Tensor
    states: Tensor | None = None


class Net(nn.Module):
    """Two convolutions and a head; between them a question."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 5)
        self.register_buffer("line", torch.linspace(0, 1, 16))
        self.ask = ask

    line: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.ask(self, self.a(x))).mean((2, 3)))


def counted(net: Net, x: Tensor) -> Tensor:
    if x.shape[-1] % 2 or x.size(2) < 4 or x.dim() != 4 or len(x.shape) != 4:
        raise ValueError("odd")
    return x


def unpacked(net: Net, x: Tensor) -> Tensor:
    batch, *rest = x.shape
    return x.reshape(*x.shape[:2], -1).view(batch, -1, *rest[1:])


def sliced(net: Net, x: Tensor) -> Tensor:
    return x * net.line[: x.shape[-1]] + net.line[None, None, : x.size(2), None]


def typed(net: Net, x: Tensor) -> Tensor:
    return x.relu() if x.dtype == net.a.weight.dtype and x.device == net.line.device and x.ndim > 2 else x.double()


def made(net: Net, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device) + torch.ones(x.shape[2], 1)
    return nn.ReLU()(x + places) * (1 if torch.full((x.shape[2],), 2.0).sum() > 3 else 0)


def padded(net: Net, x: Tensor) -> Tensor:
    short = -int(x.shape[-1]) % 3
    return F.pad(x, (0, short, 0, math.ceil(float(x.shape[2]) / 3) * 3 - x.shape[2]))


def looped(net: Net, x: Tensor) -> Tensor:
    for part in range(x.dim() - 2):
        x = x + x.mean(part + 2, keepdim=True)
    return torch.stack([row.relu() for row in x.unbind(2)], 2) if hasattr(x, "unbind") and not hasattr(x, "jax") else x


def halved(net: Net, x: Tensor) -> Tensor:
    names = {"first": x, "second": x.flip(3)}
    return torch.cat([names[k][..., : x.shape[-1] // 2] for k in names], dim=list(range(x.ndim))[-1])


ASKED: tuple[Ask, ...] = (counted, unpacked, sliced, typed, made, padded, looped, halved)


@pytest.mark.parametrize("ask", ASKED, ids=lambda f: f.__name__)
def test_what_a_forward_asks_of_sizes_costs_no_group(ask: Ask) -> None:
    net = Net(ask).eval()
    found = trace_model(net, (X,))
    assert [g.producers for g in found.facts.groups] == [("a",), ("b",)] and not found.facts.refused
    assert found.graph is not None
    kept = {g.name: torch.arange(0, g.units, 2).numpy() for g in found.facts.groups}
    small = shrink(found, net, kept)
    assert [small.get_submodule(n).out_channels for n in ("a", "b")] == [4, 3]
    traced = fx.GraphModule(net, found.graph)
    for batch in (1, 3, 7):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(traced(x), net(x))
        assert small(x).shape == (batch, 5)


def test_a_forward_that_asks_nothing_is_traced_without_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExampleTracer, "trace", lambda *_: pytest.fail("not needed"))
    found = trace_model(Net(lambda net, x: x.relu()), (X,))
    assert len(found.facts.groups) == 2 and found.graph is not None and not answers(found.graph)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x: x if x.sum() > 0 else -x,
        lambda net, x: x[:, :, : int(x.abs().amax()) + 1],
        lambda net, x: x * float(x.mean()),
        lambda net, x: x * (2 if x.max().item() > 0 else 1),
        lambda net, x: torch.stack([row.relu() for row in x]),
    ],
    ids=["truth", "slice", "float", "item", "rows"],
)
def test_what_depends_on_an_inputs_values_is_refused(ask: Ask) -> None:
    facts = trace_model(Net(ask), (X,)).facts
    assert not facts.groups and not facts.traceable and facts.refused[0].where == ""
    assert len(facts.layers) == 3  # their bits and zeros can be searched all the same


@pytest.mark.parametrize(
    "ask", [lambda net, x: x if len(x) == 2 else x * 2, lambda net, x: x * int(x.shape[0])], ids=["len", "int"]
)
def test_what_depends_on_the_batch_is_refused(ask: Ask) -> None:
    facts = trace_model(Net(ask), (X,)).facts
    assert not facts.groups and "sizes of the example" in facts.refused[0].reason


def test_a_traced_forward_refuses_sizes_of_which_the_answer_would_be_another() -> None:
    net = Net(padded).eval()
    graph = trace_model(net, (X,)).graph
    assert graph is not None
    traced = fx.GraphModule(net, graph)
    with pytest.raises(GraphError, match="it saw 8 and sees 10: give an example like this input"):
        traced(torch.randn(2, 3, 10, 10))
    other = fx.GraphModule(Net(counted), trace_model(Net(counted), (X,)).graph or fx.Graph())
    with pytest.raises(GraphError, match="it saw False and sees"):
        other(torch.randn(2, 3, 9, 9))


def test_a_trace_spoils_no_later_one() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(math.floor(x.shape[-1]))

    for _ in range(2):
        found = trace_model(Net(made), (X,))
        assert found.graph is not None
        fx.GraphModule(Net(made), found.graph).recompile()
        trace_model(Plain(), (X,))
    fx.symbolic_trace(Net(lambda net, x: x.relu()))


class Named(Net):
    """Gives its outputs by name, and takes more than it is given."""

    def forward(self, pixels: Tensor, scale: float = 2.0, **more: Any) -> Output:  # type: ignore[override]
        if pixels.shape[1] != 3 or more:
            raise ValueError("three channels")
        hidden = self.a(pixels.to(self.b.weight.dtype)) * scale
        return Output(super().forward(pixels), hidden.mean((2, 3)))


def test_outputs_by_name_stay_so_and_offer_no_channels(tmp_path: Path) -> None:
    net = Named(counted).eval()
    task = automc.Task(
        net,
        calibration=[((X,), torch.zeros(4))],
        validation=[((X,), torch.zeros(4))],
        metric=lambda made, y: made.logits.argmax(1) == y,
    )
    facts = trace_model(net, (X,)).facts
    assert [g.producers for g in facts.groups] == [("b",)]  # a's are given away
    decisions = (("b", LayerDecision(weight_bits=8, activation_bits=8)), ("head", LayerDecision(weight_bits=4)))
    small = automc.apply(task, Policy(facts.fingerprint, layers=decisions))
    with torch.no_grad():
        found, wanted = small(X), net(X)
    assert type(found) is Output and found.states is None
    assert float((found.logits - wanted.logits).norm() / wanted.logits.norm()) < 0.2
    storage = tmp_path / "named.journal"
    assert automc.search(task, budget="bops<=20%", space="joint", trials=2, searcher="random", storage=storage).best.ok


class Projected(nn.Module):
    """A residual block with a layer on its shortcut, which sequential fits lead towards the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shortcut, self.inner, self.last = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.shortcut(x) + self.last(self.inner(x).relu())
        return self.head(x.relu().mean((2, 3)))


def test_without_a_block_what_is_left_of_its_sum_is_fitted() -> None:
    torch.manual_seed(0)
    net = Projected().eval()
    x = torch.randn(64, 3, 8, 8)
    task = automc.Task(net, calibration=[((x,), net(x).argmax(1))], validation=[((x,), net(x).argmax(1))])
    facts = trace_model(net, (x,)).facts
    (block,) = facts.blocks
    bits = (("shortcut", LayerDecision(weight_bits=6)),)
    policy = Policy(facts.fingerprint, layers=bits, blocks=((block.name, BlockDecision(0.0)),))
    with torch.no_grad():
        wanted, alone = net(x), net.head(net.shortcut(net.first(x).relu()).relu().mean((2, 3)))
        found = automc.apply(task, policy)(x)
    assert float((found - wanted).norm()) < 0.7 * float((alone - wanted).norm())
