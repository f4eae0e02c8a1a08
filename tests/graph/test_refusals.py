"""What cannot be followed is refused by name, and what remains is still right."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automc.errors import GraphError
from automc.graph.shrink import shrink
from automc.graph.trace import trace_model
from automc.graph.verify import verify_group


class Net(nn.Module):
    """Named modules and a function that is the forward of a subclass."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward


class One(Net):
    """With one input: torch.fx cannot count *inputs."""

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self, x)


class Pair(Net):
    """With two inputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self._forward(self, x, y)


def conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


def around(middle: nn.Module) -> nn.Module:
    return nn.Sequential(conv(3, 8), middle, conv(8, 6), nn.ReLU(), conv(6, 4))


def tokens(middle: Callable[[Any, Any], Any], **modules: nn.Module) -> nn.Module:
    return One(lambda s, x: s.out(middle(s, s.a(x))), a=nn.Linear(5, 8), out=nn.Linear(8, 3), **modules)


def tied_embedding() -> nn.Module:
    net = One(lambda s, x: s.head(torch.relu(s.a(s.table(x)))), table=nn.Embedding(11, 8), a=nn.Linear(8, 8),
              head=nn.Linear(8, 11, bias=False))  # fmt: skip
    net.head.weight = net.table.weight  # type: ignore[union-attr]
    return net


IMAGE, SEQUENCE = (2, 3, 8, 8), (2, 6, 5)
REFUSED: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], str]] = [
    ("LayerNorm", lambda: tokens(lambda s, t: s.norm(t), norm=nn.LayerNorm(8)), SEQUENCE, "norm"),
    ("GroupNorm", lambda: around(nn.GroupNorm(1, 8)), IMAGE, "1"),
    ("GroupNorm", lambda: around(nn.GroupNorm(4, 8, affine=False)), IMAGE, "1"),
    ("InstanceNorm2d", lambda: around(nn.InstanceNorm2d(8)), IMAGE, "1"),
    ("InstanceNorm2d", lambda: around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), IMAGE, "1"),
    ("LocalResponseNorm", lambda: around(nn.LocalResponseNorm(2)), IMAGE, "1"),
    ("ConvTranspose2d", lambda: around(nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2)), IMAGE, "1"),
    ("Softmax", lambda: around(nn.Softmax(dim=1)), IMAGE, "1"),
    ("MultiheadAttention", lambda: tokens(
        lambda s, t: s.mha(t, t, t)[0], mha=nn.MultiheadAttention(8, 2)), SEQUENCE, "mha"),
    ("LSTM", lambda: tokens(lambda s, t: s.lstm(t)[0], lstm=nn.LSTM(8, 8, 2, batch_first=True)), SEQUENCE, "lstm"),
    ("GRU", lambda: tokens(lambda s, t: s.gru(t)[0], gru=nn.GRU(8, 8)), SEQUENCE, "gru"),
    ("TransformerEncoder", lambda: tokens(
        lambda s, t: s.enc(t), enc=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1)), SEQUENCE, "enc"),
    ("matmul", lambda: tokens(lambda s, t: torch.matmul(t, t.transpose(1, 2)).softmax(-1) @ t), SEQUENCE, "matmul"),
    ("fft_fft", lambda: tokens(lambda s, t: torch.fft.fft(t).real), SEQUENCE, "fft_fft"),
    ("roll", lambda: tokens(lambda s, t: torch.roll(t, 1, -1)), SEQUENCE, "roll"),
    ("sort", lambda: tokens(lambda s, t: torch.sort(t, dim=-1)[0]), SEQUENCE, "sort"),
    ("softmax", lambda: tokens(lambda s, t: F.softmax(t, dim=-1)), SEQUENCE, "softmax"),
    ("mean", lambda: tokens(lambda s, t: t - t.mean(-1, keepdim=True)), SEQUENCE, "mean"),
    ("scaled_dot_product_attention", lambda: tokens(lambda s, t: F.scaled_dot_product_attention(t, t, t)), SEQUENCE,
     "scaled_dot_product_attention"),
    ("tied weight", tied_embedding, (2, 5), "head"),
]  # fmt: skip


def example(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape) if len(shape) != 2 else torch.randint(11, shape)


@pytest.mark.parametrize(("operation", "make", "shape", "where"), REFUSED, ids=[r[0] for r in REFUSED])
def test_an_operation_that_mixes_channels_is_refused_by_name(
    operation: str, make: Callable[[], nn.Module], shape: tuple[int, ...], where: str
) -> None:
    model = make().eval()
    x = example(shape)
    graph = trace_model(model, (x,))
    names = [(r.where, r.operation) for r in graph.facts.refused]
    assert (where, operation) in names
    assert not any(m.target in ("a", "0") and m.axis == "out" for g in graph.facts.groups for m in g.members)
    kept = {g.name: np.arange(g.units - 1) for g in graph.facts.groups}
    assert shrink(graph, model, kept)(x).shape == model(x).shape


@pytest.mark.parametrize("last", [nn.LogSoftmax(dim=1), nn.Softmax(dim=1), nn.LocalResponseNorm(2)])
def test_nothing_is_said_of_what_only_the_output_meets(last: nn.Module) -> None:
    facts = trace_model(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), last), (torch.randn(IMAGE),)).facts
    assert [g.name for g in facts.groups] == ["0"] and facts.refused == ()
    facts = trace_model(nn.Sequential(conv(3, 8), last, conv(8, 4)), (torch.randn(IMAGE),)).facts
    assert [r.where for r in facts.refused] == ["1"]


def test_a_module_is_refused_once() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    model = nn.Sequential(nn.Linear(5, 8), encoder, nn.Linear(8, 3))
    (found,) = trace_model(model, (torch.randn(SEQUENCE),)).facts.refused
    assert (found.where, found.operation) == ("1", "TransformerEncoder") and "inside" in found.reason


def test_an_unknown_function_of_the_user_is_refused_by_name() -> None:
    model = One(lambda s, x: s.b(scramble(s.a(x))), a=conv(3, 8), b=conv(8, 4))
    graph = trace_model(model, (torch.randn(IMAGE),))
    assert graph.facts.groups == ()
    assert [r.operation for r in graph.facts.refused] == ["scramble"]


def scramble(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1) * torch.arange(x.shape[1])[:, None, None]


torch.fx.wrap("scramble")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if x.sum() > 0:
            x = torch.relu(x)
        return self.b(x)


def test_data_dependent_control_flow_gives_facts_without_groups() -> None:
    model = Branching()
    graph = trace_model(model, (torch.randn(4, 6, 5),))
    facts = graph.facts
    assert (facts.traceable, graph.graph, facts.groups) == (False, None, ())
    assert [(x.name, x.positions, x.input_size) for x in facts.layers] == [("a", 6, (6,)), ("b", 6, (6,))]
    assert "cannot trace" in facts.refused[0].reason
    x = torch.randn(2, 6, 5)
    copy = shrink(graph, model, {})
    assert copy is not model
    assert torch.equal(copy(x), model(x))
    with pytest.raises(GraphError, match="none: see"):
        shrink(graph, model, {"a": np.array([0])})


def test_a_buffer_across_the_channels_keeps_them() -> None:
    model = One(lambda s, x: s.b(s.a(x) * s.mask), a=conv(3, 8), b=conv(8, 4))
    model.register_buffer("mask", torch.rand(1, 8, 1, 1))
    graph = trace_model(model, (torch.randn(IMAGE),))
    assert graph.facts.groups == ()
    assert [(r.where, r.operation) for r in graph.facts.refused] == [("mask", "buffer")]


def test_a_constant_made_in_forward_across_the_channels_keeps_them() -> None:
    model = One(lambda s, x: s.b(s.a(x) * torch.arange(8.0).view(8, 1, 1)), a=conv(3, 8), b=conv(8, 4))
    graph = trace_model(model, (torch.randn(IMAGE),))
    assert graph.facts.groups == ()
    assert [r.operation for r in graph.facts.refused] == ["constant"]


def test_a_factor_that_depends_on_the_channel_count_is_refused_by_the_check() -> None:
    model = One(lambda s, x: (lambda y: s.b(y / y.shape[1]))(s.a(x)), a=conv(3, 8), b=conv(8, 4, bias=False))
    graph = trace_model(model, (torch.randn(IMAGE),))
    assert graph.facts.groups == ()
    assert graph.facts.refused[0].operation == "verification"
    assert len(trace_model(model, (torch.randn(IMAGE),), verify=False).facts.groups) == 1


@pytest.mark.parametrize("axis", ["out", "in"])
def test_a_corrupted_index_map_does_not_pass_the_check(axis: str) -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))
    graph = trace_model(model, (torch.randn(IMAGE),))
    group = graph.facts.groups[0]
    assert verify_group(graph, model, group) < 1e-9
    members = tuple(replace(m, index=np.roll(m.index, 1, axis=0)) if m.axis == axis else m for m in group.members)
    assert verify_group(graph, model, replace(group, members=members)) > 1e-4
    without = tuple(m for m in group.members if m.axis != axis)
    assert verify_group(graph, model, replace(group, members=without)) > 1e-4


def test_two_inputs_are_followed_and_never_cut() -> None:
    model = Pair(lambda s, x, y: s.c(F.relu(s.a(x) + s.b(y))), a=conv(3, 8), b=conv(2, 8), c=conv(8, 4))
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 2, 8, 8)
    graph = trace_model(model, (x, y))
    assert [(g.name, g.units, g.coupled) for g in graph.facts.groups] == [("a", 8, True)]
    assert shrink(graph, model, {"a": np.array([1, 5])})(x, y).shape == (4, 4, 8, 8)


def test_a_sum_with_the_input_keeps_the_channels() -> None:
    model = One(lambda s, x: s.b(x + s.a(x)), a=conv(3, 3), b=conv(3, 4))
    assert trace_model(model, (torch.randn(IMAGE),)).facts.groups == ()


def test_channels_multiplied_across_dimensions_are_refused() -> None:
    model = Pair(lambda s, x, y: s.c((s.a(x)[:, :, None] * s.b(y)[:, None]).flatten(1)), a=nn.Linear(5, 4),
                 b=nn.Linear(5, 6), c=nn.Linear(24, 3))  # fmt: skip
    graph = trace_model(model, (torch.randn(2, 5), torch.randn(2, 5)))
    assert graph.facts.groups == ()
    assert [r.operation for r in graph.facts.refused] == ["mul"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = around(nn.ReLU())
    with torch.no_grad():
        model[2].weight[0] = value  # type: ignore[index]
    with pytest.raises(GraphError, match=r"'2\.weight' holds NaN"):
        trace_model(model, (torch.randn(IMAGE),))
