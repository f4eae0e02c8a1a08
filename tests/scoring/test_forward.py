"""One forward pass, compiled or by torch: the same outputs, and what has no step is left to torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from automc.compression.lowering import lowered
from automc.compression.prefix import PassMemory, Snapshot, cuts
from automc.compression.quantize import QuantizedLayer
from automc.compression.structure import opened
from automc.kernels.tiles import Program, lanes
from automc.scoring.folding import folded, traced
from automc.scoring.forward import Forward, Prefix, Samples
from automc.tasks.resnet import ResNet

needs_compiler = pytest.mark.skipif(not lanes(), reason="needs a C compiler")


def settled(module: nn.Module) -> nn.Module:
    """In eval mode, with statistics of its own."""
    torch.manual_seed(0)
    for each in module.modules():
        if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d)):
            each.running_mean = torch.randn(each.num_features) * 0.1
            each.running_var = torch.rand(each.num_features) + 0.5
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias)
    return module.eval()


def outputs(module: nn.Module, samples: Samples) -> list[Tensor]:
    return Forward(module, module).outputs(samples)


class Mobile(nn.Module):
    """Inverted residuals: depthwise convolutions, ReLU6, a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.widen = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24))
        self.narrow = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(F.relu6(self.depthwise(self.widen(x))))
        return self.head(F.dropout(x.mean([2, 3]), training=self.training))


class Dense(nn.Module):
    """Concatenations, a norm before the activation, both kinds of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, padding="same")
        self.last = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(10 * 16, 20), nn.ReLU(), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.avg_pool2d(x, 1) if False else x)
        y = self.second(torch.relu(self.norm(x)))
        return self.last(torch.cat([x, y], 1))


class Vectors(nn.Module):
    """Linear layers and norms on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(), nn.Linear(30, 30))
        self.head = nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(torch.flatten(y + F.relu(y), 1))


class Quantized(nn.Module):
    """Weights and activations in few bits, behind a folded norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = QuantizedLayer(nn.Conv2d(3, 8, 3, padding=1), 4, 6)
        self.norm = nn.BatchNorm2d(8)
        self.factors = opened(nn.Conv2d(8, 8, 3, padding=1), (4, 6, "uniform"), ("svd", (3,)))
        for parameter in self.factors.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.head = QuantizedLayer(nn.Linear(8, 5), 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.factors(torch.relu(self.norm(self.conv(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: ResNet(8), (3, 16, 16)),
    "resnet of odd sizes": (lambda: ResNet(8, widths=(5, 7, 9)), (3, 11, 13)),
    "mobile": (Mobile, (3, 9, 9)),
    "dense": (Dense, (3, 8, 8)),
    "vectors": (Vectors, (9,)),
    "quantized": (Quantized, (3, 6, 6)),
}


@needs_compiler
@pytest.mark.parametrize("name", MODELS)
def test_compiled_outputs_are_torchs(name: str) -> None:
    make, shape = MODELS[name]
    module = settled(make())
    x = torch.randn(45, *shape, generator=torch.Generator().manual_seed(1))
    size = (*shape[1:], shape[0]) if len(shape) == 3 else (1, 1, shape[0])
    assert lowered(folded(module), size, Program()) is not None
    samples = Samples([((x[:30],), torch.zeros(30)), ((x[30:],), torch.zeros(15))])
    found = torch.cat(outputs(module, samples))
    with torch.no_grad():
        expected = module(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_folding_changes_nothing_and_nobody(name: str) -> None:
    make, shape = MODELS[name]
    module = settled(make())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(4, *shape)
    with torch.no_grad():
        assert torch.allclose(folded(module)(x), module(x), atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


class Odd(nn.Module):
    """One operation that has no step."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.operation = nn.Conv2d(3, 4, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.conv(x)).flatten(1)


@pytest.mark.parametrize(
    "operation",
    [
        torch.sigmoid,
        lambda x: x * 2,
        lambda x: x + 1.0,
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda x: x[:, 1:],
        lambda x: x[:, :, 1:],
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0),
        lambda x: torch.cat([x, x], 2),
        lambda x: x.mean(1),
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: torch.add(x, x, alpha=2),
        lambda x: x.flatten(2),
    ],
)
def test_what_has_no_step_is_left_to_torch(operation: Callable[[Tensor], Tensor]) -> None:
    module, x = Odd(operation).eval(), torch.randn(20, 3, 8, 8)
    assert lowered(folded(module), (8, 8, 3), Program()) is None
    with torch.no_grad():
        found = torch.cat(outputs(module, Samples([((x,), torch.zeros(20))])))
        assert torch.allclose(found, module(x), atol=1e-5)


def test_inputs_of_several_kinds_are_left_to_torch() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()
    double = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double().eval()
    batches = [((torch.randn(5, 8),), torch.zeros(5)), ((torch.randn(5, 2, 4),), torch.zeros(5))]
    assert len(torch.cat(outputs(module, Samples(batches)))) == 10
    found = outputs(double, Samples([((torch.randn(5, 8, dtype=torch.float64),), torch.zeros(5))]))
    assert found[0].dtype == torch.float64


def test_a_shared_convolution_is_not_folded_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.conv(self.one(self.conv(x))))

    module, x = settled(Shared()), torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        assert torch.allclose(folded(module)(x), module(x), atol=1e-5)


def test_what_cannot_be_traced_runs_as_it_is() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 1e9 else -x

    x = torch.ones(3, 2)
    assert not isinstance(folded(Branching()), fx.GraphModule)
    assert torch.equal(torch.cat(outputs(Branching(), Samples([((x,), torch.zeros(3))]))), -x)


@pytest.fixture(params=["compiled", "torch"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> fx.GraphModule:
    """A traced network, which runs either way."""
    if request.param == "torch":
        monkeypatch.setattr("automc.scoring.forward.lanes", lambda: 0)
    found = traced(settled(ResNet(8)))
    assert isinstance(found, fx.GraphModule)
    return found


def test_a_pass_may_begin_where_another_one_left_its_values(module: fx.GraphModule) -> None:
    x = torch.randn(120, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    samples, memory = Samples([((x,), torch.zeros(120))]), PassMemory(2**28)
    names = [node.name for node in cuts(module.graph)]
    prefix = Prefix({name: f"before {name}" for name in names}, memory)
    plain = torch.cat(outputs(module, samples))
    for _ in range(3):  # nothing is kept the first time, some values the second, and used the third
        assert torch.equal(torch.cat(Forward(module, module, prefix).outputs(samples)), plain)
    assert memory.bytes > 0
    with torch.no_grad():  # what lies before the last kept value is not computed any more
        module.get_parameter("conv1.weight").fill_(float("nan"))
    assert torch.equal(torch.cat(Forward(module, module, prefix).outputs(samples)), plain)
    assert bool(torch.cat(outputs(module, samples)).isnan().any())
    other = Samples([((x[:30],), torch.zeros(30))], "other")
    assert bool(torch.cat(Forward(module, module, prefix).outputs(other)).isnan().any())


def test_what_is_kept_fits_the_memory(module: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 3, 12, 12)
    samples, memory = Samples([((x,), torch.zeros(64))]), PassMemory(4 * 64 * 64 * 9)
    prefix = Prefix({node.name: node.name for node in cuts(module.graph)}, memory)
    kept: list[int] = []
    put = memory.put

    def counted(kind: str, digest: str, found: Snapshot) -> None:
        kept.append(found.bytes)
        put(kind, digest, found)

    monkeypatch.setattr(memory, "put", counted)
    for _ in range(3):
        Forward(module, module, prefix).outputs(samples)
    assert kept and sum(kept) <= memory.limit
