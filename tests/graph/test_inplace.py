"""Changes in place: a graph says what torch computes, however it is reordered, cut or lowered afterwards."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from automc.compression.lowering import lowered, run_tiles
from automc.errors import GraphError
from automc.graph.inplace import ChangeTracer, follow_changes_
from automc.graph.shrink import shrink
from automc.graph.trace import trace_model
from automc.kernels.steps import shape_of
from automc.kernels.tiles import Program, lanes, to_tiles

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions and an activation in place, put together by a function."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()
        self._body = [body]  # no attribute that torch.fx would follow

    def forward(self, x: Tensor) -> Tensor:
        return self._body[0](self, self.a(x))


def pre_activation(net: Net, x: Tensor) -> Tensor:
    return x + net.b(net.relu(x))


def result_dropped(net: Net, x: Tensor) -> Tensor:
    net.relu(x)
    return net.b(x) + x


def function(net: Net, x: Tensor) -> Tensor:
    y = F.leaky_relu(x, 0.1, True)
    return net.b(y) - x


def method(net: Net, x: Tensor) -> Tensor:
    y = x.clamp_(min=0.2)
    return x * net.b(y)


def augmented(net: Net, x: Tensor) -> Tensor:
    y = net.b(x)
    before = y
    y += x
    return before * y


def twice(net: Net, x: Tensor) -> Tensor:
    y = net.b(x)
    net.relu(x)
    x.mul_(2.0)
    return x + y


def under_another_name(net: Net, x: Tensor) -> Tensor:
    y = net.drop(x)
    net.relu(y)
    return net.b(x) + y


def numbers(net: Net, x: Tensor) -> Tensor:
    n = x.size(2)
    m = n
    m += 1
    return net.b(x) * (m - n)


BODIES = [pre_activation, result_dropped, function, method, augmented, twice, under_another_name, numbers]


def functional(net: Net) -> fx.GraphModule:
    """The traced net after changes are followed, its results computed without changing anything."""
    graph = ChangeTracer().trace(net)
    follow_changes_(graph, net)
    return fx.GraphModule(net, graph)


class Copying(fx.Interpreter):
    """Runs a graph with copies of all tensors, so that a change reaches nobody but who reads its result."""

    def run_node(self, n: fx.Node) -> object:
        arguments, options = self.fetch_args_kwargs_from_env(n)
        copied = fx.node.map_aggregate(arguments, lambda x: x.clone() if isinstance(x, Tensor) else x)
        return getattr(self, n.op)(n.target, copied, options)


@pytest.mark.parametrize("body", BODIES)
def test_who_reads_later_reads_what_a_change_has_made(body: Body) -> None:
    net, x = Net(body).eval(), torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(Copying(functional(net)).run(x), net(x))
        torch.testing.assert_close(functional(net)(x), net(x))


@pytest.mark.skipif(not lanes(), reason="no compiler: nothing is lowered")
@pytest.mark.parametrize("body", [pre_activation, result_dropped, augmented, under_another_name])
def test_compiled_steps_compute_what_torch_does(body: Body) -> None:
    net, x = Net(body).eval(), torch.randn(20, 4, 6, 6)
    shape = shape_of(x)
    assert shape is not None
    program = lowered(functional(net), shape, Program())
    if program is None:  # an operation without a step
        return
    assert program.output is not None
    found = run_tiles(program, {program.inputs[0]: to_tiles(x)}, [program.output])[0]
    with torch.no_grad():
        torch.testing.assert_close(program.samples(program.output, found, len(x)), net(x), rtol=1e-4, atol=1e-4)


def test_without_its_branch_an_addition_gives_the_changed_shortcut() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return x + net.b(x)

    def hidden(net: Net, x: Tensor) -> Tensor:
        return x + net.b(F.relu(x, inplace=True))

    for of in (body, hidden):
        net, x = Net(of).eval(), torch.randn(2, 4, 6, 6)
        graph = trace_model(net, (x,))
        [block] = graph.facts.blocks
        with torch.no_grad():
            torch.testing.assert_close(shrink(graph, net, {}, [block.name])(x), F.relu(net.a(x)))


def test_a_view_that_is_changed_while_its_tensor_is_read_costs_the_groups_and_not_the_run() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        net.relu(x.flatten(1))
        return net.b(x)

    with pytest.raises(GraphError, match="A view must not be changed in place"):
        functional(Net(body))
    facts = trace_model(Net(body), (torch.randn(2, 4, 6, 6),)).facts
    assert not facts.traceable and not facts.groups and "changed in place" in facts.refused[-1].reason


def test_a_trace_that_says_something_else_costs_the_groups() -> None:
    class Counts(nn.Module):
        """Its second call is not its first."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.b(self.a(x).relu()) * self.calls

    facts = trace_model(Counts(), (torch.randn(2, 4),)).facts
    assert not facts.traceable and "something else" in facts.refused[-1].reason
