"""CIFAR ResNets with option-A shortcuts (slice and zero-pad) and option B, in the style of akamaster's."""

import copy
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional as F

from automc.graph.model_graph import ModelGraph
from automc.graph.shrink import shrink, shrunk_graph_module
from automc.graph.trace import trace_model


class Lambda(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Block(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 and option == "A":
            side = width // 4
            self.shortcut = Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side), "constant", 0))
        elif stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self, blocks: int, option: str = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks, option)
        self.layer2 = self._stage(16, 32, 2, blocks, option)
        self.layer3 = self._stage(32, 64, 2, blocks, option)
        self.linear = nn.Linear(64, 10)

    def _stage(self, fan_in: int, width: int, stride: int, blocks: int, option: str) -> nn.Sequential:
        first = Block(fan_in, width, stride, option)
        return nn.Sequential(first, *(Block(width, width, 1, option) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


def randomise_(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in ((m.weight, 0.5), (m.bias, -0.5), (m.running_mean, -0.5), (m.running_var, 0.5)):
                assert t is not None
                t.data = torch.rand(t.shape, generator=generator) + low
    return model.eval()


@pytest.fixture(scope="module")
def resnet20() -> tuple[nn.Module, ModelGraph]:
    torch.manual_seed(0)
    model = randomise_(ResNet(3))
    return model, trace_model(model, (torch.randn(1, 3, 32, 32),))


def test_option_a_streams_follow_the_slice_and_the_padding(resnet20: tuple[nn.Module, ModelGraph]) -> None:
    _, graph = resnet20
    streams = {g.name: g.units for g in graph.facts.groups if g.coupled}
    assert streams == {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}
    stream = {(m.target, m.axis): m.index for m in graph.facts.group("conv1").members}
    assert stream["layer2.0.conv2", "out"][:, 0].tolist() == list(range(8, 24))
    assert stream["linear", "in"][:, 0].tolist() == list(range(24, 40))
    assert graph.facts.refused == ()


# Which batch norms make a stream's channels, by hand: stage -> position of unit u in that stage, or None.
STREAMS: dict[str, Any] = {
    "conv1": lambda u: {1: u, 2: u + 8, 3: u + 24},
    "layer2.0.conv2": lambda u: {2: (v := np.where(u < 8, u, u + 16)), 3: v + 16},
    "layer3.0.conv2": lambda u: {3: np.where(u < 16, u, u + 32)},
}


@pytest.mark.parametrize("name", STREAMS)
def test_option_a_stream_removed_equals_its_batch_norms_silenced(
    resnet20: tuple[nn.Module, ModelGraph], name: str
) -> None:
    model, graph = resnet20
    group = graph.facts.group(name)
    gone = np.sort(np.random.default_rng(1).permutation(group.units)[: group.units // 2])
    dense: Any = copy.deepcopy(model)
    for stage, channels in STREAMS[name](gone).items():
        norms = [b.bn2 for b in getattr(dense, f"layer{stage}")] + ([dense.bn1] if stage == 1 else [])
        for norm in norms:
            norm.weight.data[channels] = 0
            norm.bias.data[channels] = 0
    small = shrink(graph, model, {name: np.setdiff1d(np.arange(group.units), gone)})
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert ((dense(x) - small(x)).abs().max() / dense(x).abs().max()).item() < 1e-4


def test_inner_groups_keep_the_users_class_and_streams_do_not_need_to(resnet20: tuple[nn.Module, ModelGraph]) -> None:
    model, graph = resnet20
    inner = {g.name: np.arange(g.units // 2) for g in graph.facts.groups if not g.coupled}
    assert type(shrink(graph, model, inner)) is ResNet
    traced = shrunk_graph_module(graph, model, {"layer2.0.conv2": np.arange(3)})
    assert graph.graph is not None
    assert [n.name for n in traced.graph.nodes] == [n.name for n in graph.graph.nodes]


def test_every_layer_knows_the_batch_norm_that_reads_it(resnet20: tuple[nn.Module, ModelGraph]) -> None:
    facts = resnet20[1].facts
    assert [x.norm for x in facts.layers] == [n.name for n in facts.norms] + [None]
    assert sum(x.macs for x in facts.layers) == 40_551_040


def test_option_b_agrees_with_torch_pruning() -> None:
    torch.manual_seed(0)
    model = randomise_(ResNet(3, "B"))
    x = torch.randn(2, 3, 32, 32)
    graph = trace_model(model, (x,))
    assert len(graph.facts.groups) == 12
    for group in graph.facts.groups:
        other: Any = copy.deepcopy(model)
        lost = list(range(0, group.units, 3))
        dependencies = torch_pruning.DependencyGraph().build_dependency(other, example_inputs=x)
        root = other.get_submodule(group.name)
        dependencies.get_pruning_group(root, torch_pruning.prune_conv_out_channels, lost).prune()
        small = shrink(graph, model, {group.name: np.setdiff1d(np.arange(group.units), lost)})
        with torch.no_grad():
            assert torch.allclose(small(x), other(x), atol=1e-5)
        assert {k: v.shape for k, v in small.state_dict().items()} == {
            k: v.shape for k, v in other.state_dict().items()
        }


def test_resnet56_is_traced_verified_and_shrunk_in_time() -> None:
    model = randomise_(ResNet(9))
    start = time.process_time()
    graph = trace_model(model, (torch.randn(2, 3, 32, 32),))
    traced_s = time.process_time() - start
    assert sum(not g.coupled for g in graph.facts.groups) == 27
    assert sum(g.coupled for g in graph.facts.groups) == 3
    kept = {g.name: np.arange(0, g.units, 2) for g in graph.facts.groups}
    shrink(graph, model, kept)
    start = time.process_time()
    small = shrink(graph, model, kept)
    assert time.process_time() - start < 1.0  # 0.03 s on an idle core; the bound only catches a change of order
    assert traced_s < 60  # process time of all threads; about 3 s on an idle machine
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
