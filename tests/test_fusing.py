"""What follows a planned linear layer goes along with it, if it is that, and nothing else reads what lies between."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from automc.deployment.fusing import fuse_
from automc.deployment.layers import layerwise
from automc.kernels.tokens import PlannedLinear, TokenChoice, lanes, planned
from automc.scoring.folding import traced

pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")
Tail = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """Two linear layers that are planned, something that takes their place in a trace, and what is done with them."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = (torch.randn(8, 8, generator=generator) for _ in range(2))
        self.first, self.second = (PlannedLinear(planned(w.numpy(), None, TokenChoice(4)), 8, 8) for w in weights)
        self.gelu, self.relu6, self.rough, self.drop = nn.GELU(), nn.ReLU6(), nn.GELU("tanh"), nn.Dropout()
        self.add = nn.Bilinear(8, 8, 8)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, 8)"""
        return self.tail(self, x)


def fused(tail: Tail) -> tuple[list[str], Callable[[Tensor], Tensor], Layers]:
    """What is left to do, in order."""
    net = Layers(tail).eval()

    class Whole(fx.Tracer):
        """Takes a planned layer as one operation, as a graph does that has got one for its own."""

        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, PlannedLinear) or super().is_leaf_module(m, module_qualified_name)

    graph = fx.GraphModule(net, Whole().trace(net))
    fuse_(graph, (torch.randn(2, 3, 8),))
    left = [str(n.target) for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
    return left, graph, net


TAKEN: dict[str, Tail] = {
    "gelu": lambda m, x: F.gelu(m.first(x)),
    "gelu as a module": lambda m, x: m.gelu(m.first(x)),
    "relu": lambda m, x: torch.relu(m.first(x)),
    "limits": lambda m, x: m.relu6(m.first(x)),
    "a residual": lambda m, x: x + m.first(x),
    "a residual behind a dropout": lambda m, x: F.relu(x + m.drop(m.first(m.drop(x)))),
    "a residual, and more": lambda m, x: F.gelu(m.first(x) + x),
}
LEFT: dict[str, Tail] = {
    "another gelu": lambda m, x: F.gelu(m.first(x), approximate="tanh"),
    "another gelu as a module": lambda m, x: m.rough(m.first(x)),
    "a sum that broadcasts": lambda m, x: m.first(x) + x[:1],
    "a sum with a number": lambda m, x: m.first(x) + 1.0,
    "a sum with itself": lambda m, x: (lambda y: y + y)(m.first(x)),
    "a part of a sum": lambda m, x: torch.add(m.first(x), x, alpha=2),
    "a module called add": lambda m, x: m.add(m.first(x), x),
    "a layer used twice": lambda m, x: F.gelu(m.first(F.gelu(m.first(x)))),
}


@pytest.mark.parametrize("tail", TAKEN.values(), ids=TAKEN)
def test_what_a_layer_takes_along(tail: Tail) -> None:
    left, graph, net = fused(tail)
    assert left == ["first"]
    check(graph, net)


@pytest.mark.parametrize("tail", LEFT.values(), ids=LEFT)
def test_what_stays(tail: Tail) -> None:
    left, graph, net = fused(tail)
    assert len(left) > 1
    check(graph, net)


def test_what_somebody_else_reads_stays_and_chains_are_taken_to_their_end() -> None:
    def tail(net: Layers, x: Tensor) -> Tensor:
        y = net.first(x)
        z = net.second(F.gelu(y)) + y
        return F.relu(z) * z

    left, graph, net = fused(tail)
    assert [name for name in left if name in ("first", "second")] == ["first", "second"] and len(left) == 5
    check(graph, net)


def test_two_layers_that_are_added_become_one_sum() -> None:
    left, graph, net = fused(lambda m, x: F.relu(m.first(x) + m.second(x)))
    assert sorted(left) == ["first", "second"]
    check(graph, net)


def check(graph: Callable[[Tensor], Tensor], net: Layers) -> None:
    """The same numbers, of other sizes as well."""
    for shape in ((2, 3, 8), (1, 40, 8)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(graph(x), net(x), rtol=1e-5, atol=1e-5)


def test_a_traced_model_is_fused_where_its_layers_are_planned() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.ReLU()).eval()
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= torch.rand_like(layer.weight) > 0.95
    x = torch.randn(2, 20, 16)
    found = layerwise(traced(net, (x,)), (x,), choose=lambda _, __, others: others[-1])
    assert isinstance(found, fx.GraphModule)
    assert [n.op for n in found.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    exported = torch.export.export(found, (x,)).module()
    for module in (found, exported):
        torch.testing.assert_close(module(x), net(x), rtol=1e-5, atol=1e-5)
