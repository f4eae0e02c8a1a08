"""Multiply-accumulates of whole models: attention included, fused paths or not, and what leaves with a block."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import automc
from automc.graph.counting import forward_macs
from automc.graph.shrink import shrink
from automc.graph.trace import trace_model
from automc.policy import BlockDecision, Policy
from automc.projection import Costing
from automc.space import SearchSpace

TOKENS, WIDTH, INNER = 5, 8, 12
ATTENTION = 2 * TOKENS * TOKENS * WIDTH
PROJECTIONS = 4 * TOKENS * WIDTH * WIDTH
PERCEPTRON = 2 * TOKENS * WIDTH * INNER


class Heads(nn.Module):
    """Multi-head attention by torch's function, key and value heads shared by several queries."""

    def __init__(self, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        narrow = WIDTH * shared // heads
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, narrow), nn.Linear(WIDTH, narrow)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (p(x).unflatten(-1, (self.shared, -1)).transpose(1, 2) for p in (self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """Two residual branches behind each other: attention, then a perceptron."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        attended = (
            self.attention(h, h, h)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(h)
        )
        x = x + attended
        return x + self.mlp(self.norm2(x))


def torch_heads() -> nn.Module:
    return nn.MultiheadAttention(WIDTH, 2, batch_first=True)


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, INNER, batch_first=True)


@pytest.mark.parametrize(
    ("make", "macs"),
    [
        (Heads, ATTENTION + 3 * PROJECTIONS // 4),
        (lambda: Residual(Heads), ATTENTION + 3 * PROJECTIONS // 4 + PERCEPTRON),
        (lambda: Residual(torch_heads), ATTENTION + PROJECTIONS + PERCEPTRON),
        (encoder, ATTENTION + PROJECTIONS + PERCEPTRON),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_attention_in_closed_form(make: Callable[[], nn.Module], macs: int, batch: int) -> None:
    model, x = make().eval(), torch.randn(batch, TOKENS, WIDTH)
    assert forward_macs(model, (x,)) == macs
    assert automc.cost(model, x)["macs"] == macs
    facts = trace_model(model, (x,)).facts
    assert facts.macs == macs
    assert Costing(SearchSpace(facts, ())).of_policy(Policy(facts.fingerprint))["macs"] == macs


@pytest.mark.parametrize("make", [Heads, torch_heads])
def test_products_leave_with_their_block(make: Callable[[], nn.Module]) -> None:
    model, x = Residual(make).eval(), torch.randn(2, TOKENS, WIDTH)
    graph = trace_model(model, (x,))
    facts = graph.facts
    assert len(facts.blocks) == 1 + (make is Heads)
    for block in facts.blocks:
        policy = Policy(facts.fingerprint, blocks=((block.name, BlockDecision(0.0)),))
        small = shrink(graph, model, {}, [block.name])
        assert Costing(SearchSpace(facts, ())).of_policy(policy)["macs"] == automc.cost(small, x)["macs"]


def test_bit_operations_of_what_no_decision_reaches_are_those_of_float() -> None:
    model, x = Heads().eval(), torch.randn(1, TOKENS, WIDTH)
    facts = trace_model(model, (x,)).facts
    costs = Costing(SearchSpace(facts, ())).of_policy(Policy(facts.fingerprint))
    assert costs["bops"] == 1024 * costs["macs"]


def test_counting_leaves_the_mode_and_the_fused_path_as_they_were() -> None:
    model = encoder().train()
    forward_macs(model, (torch.randn(1, TOKENS, WIDTH),))
    assert model.training and torch.backends.mha.get_fastpath_enabled()
