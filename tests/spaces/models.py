"""Tiny models of every kind the spaces have something to decide in, and a task for each."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.compress import Compressor
from automc.graph.facts import ModelFacts
from automc.graph.model_graph import ModelGraph
from automc.graph.trace import trace_model
from automc.task import Task
from automc.tasks.resnet import ResNet


class Strided(nn.Module):
    """A residual block whose shortcut is a convolution (option B)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Inverted(nn.Module):
    """An expansion, a depthwise convolution and a projection, beside a shortcut."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        inner = channels * factor
        self.expand, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.deep = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2, self.project = nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn2(self.deep(F.relu6(self.bn1(self.expand(x))))))
        return x + self.bn3(self.project(y))


class Attention(nn.Module):
    """Query, key and value as layers of their own, a gated perceptron behind them; as in the Llama family."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.out_proj(F.scaled_dot_product_attention(self.q_proj(h), self.k_proj(h), self.v_proj(h)))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def option_a() -> nn.Module:
    return ResNet(8, widths=(8, 16, 32), classes=5)


def option_b() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5))
    return nn.Sequential(*stem, Strided(8, 16), Strided(16, 48), *head)


def depthwise() -> nn.Module:
    stem = (nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    return nn.Sequential(
        *stem, Inverted(16, 4), Inverted(16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 64)
        self.blocks = nn.Sequential(Attention(64, 256), Attention(64, 256))
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3).transpose(1, 2).flatten(2)  # (B, 16, 12)
        return self.head(self.blocks(self.embed(patches)).mean(dim=1))


class Renamed(nn.Module):
    """A model whose layers have long names, which a file's header repeats."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.add_module("x" * 150, inner)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self, "x" * 150)(x)
        return found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "option_a": option_a,
    "option_b": option_b,
    "depthwise": depthwise,
    "transformer": Transformer,
    "long_names": lambda: Renamed(Transformer()),
}


@cache
def task_of(name: str) -> Task:
    """The model in eval mode, on random images that it labels itself."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    x = torch.randn(96, 3, 8, 8, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    return Task(model, [(x[:64], y[:64])], [(x[64:], y[64:])], name=name, factory=MODELS[name])


@cache
def graph_of(name: str) -> ModelGraph:
    return trace_model(task_of(name).model, task_of(name).example_inputs)


@cache
def compressor_of(name: str) -> Compressor:
    return Compressor(graph_of(name), task_of(name).model, task_of(name))


def facts_of(name: str) -> ModelFacts:
    return graph_of(name).facts


@cache
def wide() -> ModelFacts:
    """Of a network with layers so large that factors are worth their names; never run."""
    model = ResNet(8, widths=(64, 128, 256), classes=5).eval()
    return trace_model(model, (torch.zeros(2, 3, 8, 8),), verify=False).facts
