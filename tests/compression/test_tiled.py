"""Fitting on compiled tiles does what fitting in torch does, whatever the decisions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automc.budget import Budget
from automc.compression import quantize
from automc.compression.compress import Compressor
from automc.compression.quantize import Observed
from automc.compression.tiled import TiledRun, _observed
from automc.graph.trace import trace_model
from automc.kernels.tiles import lanes, to_tiles
from automc.policy import GroupDecision, LayerDecision, Policy, Recipe
from automc.setting import prepare
from automc.task import Task
from automc.tasks.resnet import ResNet

pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")


def task(model: nn.Module, shape: tuple[int, ...], samples: int = 300) -> Task:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    batch = (torch.randn(samples, *shape, generator=generator), torch.zeros(samples, dtype=torch.int64))
    return Task(model.eval(), calibration=[batch], validation=[batch])


class Mixed(nn.Module):
    """Conv-groups, a depthwise layer, a concatenation, and a linear layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 8, 1, groups=2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(20 * 16, 30), nn.ReLU(), nn.Linear(30, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        return self.head(nn.functional.max_pool2d(torch.cat([x, y], 1), 2))


CASES = {
    "resnet": (lambda: ResNet(8, widths=(8, 12, 16)), (3, 12, 12)),
    "mixed": (Mixed, (3, 8, 8)),
}
DECISIONS = {
    "channels": LayerDecision(),
    "bits": LayerDecision(weight_bits=4, activation_bits=6),
    "sparse": LayerDecision(sparsity=0.6, criterion="obs"),
    "ranks": LayerDecision(rank=0.5),
    "rounded factors": LayerDecision(rank=0.5, weight_bits=8, activation_bits=5),
}


@pytest.mark.parametrize("reconstruct", ["sequential", "layerwise", "none"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", DECISIONS)
def test_tiles_and_chunks_give_the_same_model(
    kind: str, name: str, reconstruct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = CASES[name]
    torch.manual_seed(0)
    found = task(make(), shape)
    graph = trace_model(found.model, found.example_inputs)
    plain = [x.name for x in graph.facts.layers if x.groups == 1 and x.name not in ("conv1", "linear")]
    policy = Policy(
        graph.facts.fingerprint,
        groups=tuple((g.name, GroupDecision(0.6)) for g in graph.facts.groups),
        layers=tuple((layer, DECISIONS[kind]) for layer in plain) if kind != "channels" else (),
        recipe=Recipe(images=300, rows=2048, reconstruct=reconstruct),  # type: ignore[arg-type]
    )
    runs = []
    of = TiledRun.of

    def watched(*args: object) -> TiledRun | None:
        runs.append(of(*args))  # type: ignore[arg-type]
        return runs[-1]

    monkeypatch.setattr(TiledRun, "of", watched)
    tiled = Compressor(graph, found.model, found).compress(policy)
    assert all(run is not None for run in runs)
    monkeypatch.setattr(TiledRun, "of", lambda *_: None)
    chunked = Compressor(graph, found.model, found).compress(policy)
    x = found.calibration[0][0][0]
    with torch.no_grad():
        one, two = tiled(x), chunked(x)
        dense = found.model(x)
    if kind == "sparse":  # where two sums differ in their last digit another weight leaves, and after it others
        assert float((one - dense).square().mean()) == pytest.approx(float((two - dense).square().mean()), rel=0.15)
    else:
        allowed = 0.05 if kind in ("bits", "rounded factors") else 2e-3  # a weight may be rounded the other way
        assert float((one - two).square().mean() / two.square().mean()) < allowed**2


def test_samples_behind_the_last_whole_group_are_left_out_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = task(ResNet(8, widths=(8, 12, 16)), (3, 12, 12), samples=258)  # the last chunk has no sampled row
    graph = trace_model(found.model, found.example_inputs)
    groups = tuple((g.name, GroupDecision(0.6)) for g in graph.facts.groups)
    policy = Policy(graph.facts.fingerprint, groups=groups, recipe=Recipe(images=258))
    tiled = Compressor(graph, found.model, found).compress(policy)
    monkeypatch.setattr(TiledRun, "of", lambda *_: None)
    chunked = Compressor(graph, found.model, found).compress(policy)
    x = found.calibration[0][0][0]
    with torch.no_grad():
        assert torch.allclose(tiled(x), chunked(x), atol=5e-3 * float(chunked(x).abs().max()))


def test_who_cannot_go_on_tiles_goes_in_chunks() -> None:
    inputs = torch.randn(300, 3, 12, 12)
    module = torch.fx.symbolic_trace(ResNet(8, widths=(4, 4, 4)).eval())
    assert TiledRun.of(module, (inputs,)) is not None
    assert TiledRun.of(module, (inputs[:100],)) is None  # too few samples to draw rows in groups
    assert TiledRun.of(module, (inputs.double(),)) is None
    assert TiledRun.of(module, (inputs, inputs)) is None
    assert TiledRun.of(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())), (inputs,)) is None


def test_a_search_scores_what_apply_gives_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = task(ResNet(8, widths=(8, 12, 16)), (3, 12, 12))
    setting = prepare(found, Budget.parse("macs<=60%"), "channels-bits")
    space, projector = setting.problem_parts
    rng = np.random.default_rng(0)
    for _ in range(3):
        policy = space.decode(projector.project(space.sample(rng)))
        policy = replace(policy, recipe=Recipe(images=300))
        scored = setting.evaluator.evaluate(policy)
        again = setting.evaluator.evaluate(policy)
        small = setting.evaluator.compressor.compress(policy)
        assert scored.score == again.score == setting.evaluator.measure(small)[0]


@pytest.mark.parametrize("samples", [32, 100])
@pytest.mark.parametrize("shape", [(6, 9, 7), (50,)])
def test_activations_are_observed_alike_on_tiles_and_in_chunks(shape: tuple[int, ...], samples: int) -> None:
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    tiles = to_tiles(x)
    tiles[samples // lanes() :, ..., samples % lanes() :] = 1e9  # lanes that no sample fills hold anything
    one, two = _observed(tiles, samples), Observed.of(x.split(64))
    assert (one.low, one.high) == (two.low, two.high) == (float(x.min()), float(x.max()))
    assert torch.equal(one.sample, two.sample)


def test_a_sample_is_evenly_spaced_over_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "SAMPLE", 100)
    x = torch.arange(2345.0)
    for size in (7, 64, 1000, 5000):
        assert torch.equal(Observed.of(x.split(size)).sample, x[::23])
