"""Compressed models that leave: a small ResNet under every kind of decision, and others as people have them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import automc
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy
from automc.task import Task
from tests.compression.conftest import make_task

DECISIONS: dict[str, Sequence[LayerDecision]] = {
    "weights": [LayerDecision(weight_bits=8)],
    "few": [LayerDecision(4), LayerDecision(2, sparsity=0.5), LayerDecision(3, codebook="kmeans")],
    "factored": [LayerDecision(weight_bits=8, rank=0.5), LayerDecision(rank=0.6, factorization="spatial")],
    "both": [LayerDecision(weight_bits=8, activation_bits=8)],
    "mixed": [
        LayerDecision(weight_bits=4, activation_bits=4),
        LayerDecision(weight_bits=8, activation_bits=8, codebook="kmeans"),
        LayerDecision(weight_bits=6, activation_bits=8, rank=0.6),
        LayerDecision(activation_bits=6),
    ],
}
"""Taken in turn by the layers."""
ROUNDED = ("both", "mixed")
"""Those that round activations."""


@dataclasses.dataclass
class Named:
    """Outputs by name, one of which there is not."""

    scores: Tensor
    states: Tensor | None = None


torch.utils._pytree.register_dataclass(Named)  # as transformers does with its own


def compressed(task: Task, decisions: Sequence[LayerDecision], keep: float = 1.0, block: bool = False) -> nn.Module:
    """The task's model with decisions in turn, a share of each group's units, and maybe without its first block."""
    facts = automc.inspect(task)
    layers = tuple((x.name, _fitting(decisions[i % len(decisions)], x.name)) for i, x in enumerate(facts.layers))
    groups = tuple((g.name, GroupDecision(keep)) for g in facts.groups)
    blocks = ((facts.blocks[0].name, BlockDecision(0.0)),) if block else ()
    return automc.apply(task, Policy(facts.fingerprint, groups, layers, blocks=blocks))


def _fitting(decision: LayerDecision, name: str) -> LayerDecision:
    """The decision without a factorisation for the last layer, to which not all of them apply."""
    return LayerDecision() if name == "linear" and decision.factorization == "spatial" else decision


@functools.cache
def resnet(kind: str) -> nn.Module:
    """A pruned ResNet under one kind of decision, the first block left out where it is factored."""
    return compressed(make_task("resnet"), DECISIONS[kind], keep=0.6, block=kind == "factored")


def images(count: int, seed: int = 5) -> Tensor:
    """What the ResNet takes."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Single(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class Normed(nn.Module):
    """A convolution before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(6, 10, 3), nn.BatchNorm1d(10)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)).relu().mean(2)


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(8, 12), nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.first(x).relu())[0][:, -1])


class Encoder(nn.Module):
    """A transformer encoder between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.first(x)).mean(1))


class Attention(nn.Module):
    """Three layers that read one tensor: what they round is the same, and a file need have it only once."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return {"out": self.out(weights @ self.value(x)).mean(1), "weights": weights}


class Looping(nn.Module):
    """A forward that goes through a batch one by one, so that its record is of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x[i]) for i in range(x.shape[0])])


class Branching(nn.Module):
    """A forward that looks at its numbers, which no record can."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if float(x.sum()) < 1e9 else self.a(-x)


def of(maker: Callable[[], nn.Module], decision: LayerDecision) -> nn.Module:
    """A model on sequences (B, 6, 8) or vectors, all its layers under one decision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = maker().eval()
    x = sequences(96)
    found = Task(model, [x], [], evaluate=lambda _: 0.0, name=maker.__name__)
    return compressed(found, [decision])


def sequences(count: int) -> Tensor:
    """Six tokens of eight numbers each."""
    return torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(3))
