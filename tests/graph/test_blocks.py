"""Residual blocks: leaving one out is the model with that branch's output zero, with fewer parameters."""

import pytest
import torch
from torch import Tensor, nn

from automc.errors import GraphError
from automc.graph.shrink import shrink
from automc.graph.trace import trace_model
from automc.policy import BlockDecision, GroupDecision, Policy
from automc.projection import Costing
from automc.space import SearchSpace
from automc.tasks.resnet import ResNet


class Attention(nn.Module):
    """One head, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return self.out(scores.softmax(dim=-1) @ self.value(x))


class Encoder(nn.Module):
    """Two pre-norm transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.attention = nn.ModuleList(Attention(8) for _ in range(2))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.head(x)


class Odd(nn.Module):
    """Additions that are no blocks: broadcast, of a constant, of a branch that lives on, with a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.narrow = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.narrow(x)
        x = self.b(x) + 1
        branch = self.c(x)
        x = x + branch
        return self.d(x + self.d(x)) * branch


class Nested(nn.Module):
    """A branch with a residual block inside."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Linear(6, 6)
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(x)
        return x + (y + self.inner(y))


X = {ResNet: (2, 3, 8, 8), Encoder: (2, 5, 8), Odd: (2, 6), Nested: (2, 6)}


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet(14, widths=(4, 8, 16), classes=5) if kind is ResNet else kind()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias)
        return model.eval(), torch.randn(X[kind])


def zeroed(model: nn.Module, last: str) -> None:
    """Makes a branch's last module give zeros."""
    module = model.get_submodule(last)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


@pytest.mark.parametrize(
    ("kind", "lasts"),
    [
        (ResNet, [f"layer{i}.{j}.bn2" for i in (1, 2, 3) for j in (0, 1)]),
        (Encoder, ["attention.0.out", "mlps.0.2", "attention.1.out", "mlps.1.2"]),
    ],
)
def test_leaving_a_block_out_is_zeroing_its_branch(kind: type[nn.Module], lasts: list[str]) -> None:
    model, x = made(kind)
    graph = trace_model(model, (x,))
    blocks = graph.facts.blocks
    assert [b.name for b in blocks] == [last.rpartition(".")[0] for last in lasts]
    for chosen in ([0], [1], [len(blocks) - 1], list(range(len(blocks)))):
        names = [blocks[i].name for i in chosen]
        small = shrink(graph, model, {}, names)
        other, _ = made(kind)
        for i in chosen:
            zeroed(other, lasts[i])
        torch.testing.assert_close(small(x), other(x), rtol=1e-5, atol=1e-5)
        gone = {layer for i in chosen for layer in blocks[i].layers}
        assert not any(key.startswith(f"{layer}.") for layer in gone for key in small.state_dict())
        policy = Policy(graph.facts.fingerprint, blocks=tuple((n, BlockDecision(0.0)) for n in names))
        costs = Costing(SearchSpace(graph.facts, ())).of_policy(policy)
        assert costs["params"] == sum(p.numel() for p in small.parameters())


def test_blocks_and_channels_go_together() -> None:
    model, x = made(ResNet)
    graph = trace_model(model, (x,))
    facts = graph.facts
    kept = {g.name: torch.arange(g.units // 2).numpy() for g in facts.groups}
    names = [facts.blocks[1].name, facts.blocks[2].name]
    small = shrink(graph, model, kept, names)
    policy = Policy(
        facts.fingerprint,
        tuple((g.name, GroupDecision(g.units // 2 / g.units)) for g in facts.groups),
        blocks=tuple((n, BlockDecision(0.0)) for n in names),
    )
    assert small(x).shape == (2, 5)
    assert Costing(SearchSpace(facts, ())).of_policy(policy)["params"] == sum(p.numel() for p in small.parameters())


def test_what_is_no_block_is_none() -> None:
    model, x = made(Odd)
    assert trace_model(model, (x,)).facts.blocks == ()


def test_of_nested_branches_the_inner_one_is_the_block() -> None:
    model, x = made(Nested)
    graph = trace_model(model, (x,))
    assert [b.layers for b in graph.facts.blocks] == [("inner",)]
    small = shrink(graph, model, {}, [graph.facts.blocks[0].name])
    torch.testing.assert_close(small(x), x + model.get_submodule("outer")(x))


class Written(nn.Module):
    """Blocks without a module of their own: of one layer each, of several, and two of one path."""

    def __init__(self) -> None:
        super().__init__()
        self.singles = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.query, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
        self.inner = nn.ModuleDict({name: nn.Linear(6, 6) for name in "abcd"})
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for single in self.singles:
            x = x + single(x).relu()
        x = x + self.out(self.query(x).relu())
        x = x + self.inner["b"](self.inner["a"](x).relu())
        x = x + self.inner["d"](self.inner["c"](x).relu())
        return self.head(x)


def test_blocks_are_named_after_their_layers() -> None:
    names = [b.name for b in trace_model(Written(), (torch.randn(2, 6),)).facts.blocks]
    assert names == ["singles.0", "singles.1", "query..out", "inner.a..b", "inner.c..d"]


def test_a_parameter_that_others_read_stays_and_is_not_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = (nn.Linear(6, 6) for _ in range(3))
            self.scale, self.own = (nn.Parameter(torch.rand(6)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head((x + self.own * self.b(x * self.scale)) * self.scale)

    model, x = Scaled().eval(), torch.randn(2, 6)
    graph = trace_model(model, (x,))
    (block,) = graph.facts.blocks
    assert (block.name, block.parameters, block.others) == ("b", ("own",), 6)
    small = shrink(graph, model, {}, ["b"])
    policy = Policy(graph.facts.fingerprint, blocks=(("b", BlockDecision(0.0)),))
    costs = Costing(SearchSpace(graph.facts, ())).of_policy(policy)
    assert costs["params"] == sum(p.numel() for p in small.parameters())


def test_an_unknown_block_is_refused() -> None:
    model, x = made(ResNet)
    with pytest.raises(GraphError, match="block"):
        shrink(trace_model(model, (x,)), model, {}, ["layer9.0"])
