"""The networks are those of the checkpoints: names, sizes, shortcut."""

import pytest
import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from automc.errors import TaskError
from automc.tasks.resnet import BasicBlock, ResNet


def macs(model: torch.nn.Module, inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("depth", "millions"), [(20, 40.55), (56, 125.49)])
def test_the_published_macs_are_counted(depth, millions):
    assert round(macs(ResNet(depth).eval(), torch.zeros(1, 3, 32, 32)) / 1e6, 2) == millions


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_the_published_parameters_are_counted(depth, parameters):
    assert sum(p.numel() for p in ResNet(depth).parameters()) == parameters


def test_the_shortcut_pads_a_quarter_of_the_new_channels_on_each_side():
    block = BasicBlock(16, 32, 2).eval()
    for norm in (block.bn2,):
        torch.nn.init.zeros_(norm.weight)  # the branch adds nothing: only the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_the_network_traces_and_computes_the_same():
    model = ResNet(14, channels_in=1).eval()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_a_wrong_depth_names_the_right_ones():
    with pytest.raises(TaskError, match="must be 6k \\+ 2; it is 18: take 20"):
        ResNet(18)
