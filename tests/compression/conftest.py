"""Small models and tasks the compression tests share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from automc.compression.compress import Compressor
from automc.graph.trace import trace_model
from automc.projection import Costing
from automc.scoring.evaluator import Evaluator
from automc.search_spaces.bits import activation_bits, shared_bits
from automc.search_spaces.channels import all_channels
from automc.search_spaces.depth import depth
from automc.search_spaces.weights import weights
from automc.space import SearchSpace
from automc.task import Task
from automc.tasks.resnet import ResNet


class Branches(nn.Module):
    """Two branches joined by concatenation, a grouped and a depthwise layer, flatten with positions left."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Conv2d(14, 14, 3, padding=1, groups=14)
        self.grouped = nn.Conv2d(14, 8, 1, groups=2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.left(x).relu(), self.right(x)), dim=1)
        return self.head(torch.nn.functional.avg_pool2d(self.grouped(self.deep(both).relu()), 2).flatten(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(8, widths=(8, 16, 32), classes=5),
    "branches": Branches,
    "mlp": mlp,
}


def randomised(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model with plausible weights and batch-norm statistics, reproducible."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
        model.train()
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(32, 3, 8, 8))
    return model.eval()


def make_task(name: str) -> Task:
    generator = torch.Generator().manual_seed(1)
    model = randomised(FACTORIES[name])
    x = torch.randn(320, 3, 8, 8, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 320, 64)]
    return Task(model, batches[:3], batches[3:4], test=batches[4:], name=name, factory=FACTORIES[name])


class Setup:
    """A task with everything around it, and a space that opens every decision there is."""

    def __init__(self, name: str) -> None:
        self.task = make_task(name)
        self.graph = trace_model(self.task.model, self.task.example_inputs)
        facts = self.graph.facts
        axes = (*depth(facts), *all_channels(facts), *shared_bits(facts), *activation_bits(facts), *weights(facts))
        self.space = SearchSpace(facts, axes)
        self.costing = Costing(self.space)
        self.compressor = Compressor(self.graph, self.task.model, self.task)
        self.evaluator = Evaluator(self.task, self.compressor, self.costing)


@pytest.fixture(scope="module", params=list(FACTORIES))
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)
