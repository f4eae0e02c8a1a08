"""What a model is scored by does not depend on what was scored before it, whatever its forward does."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automc.budget import Budget
from automc.policy import Recipe
from automc.scoring.forward import Forward, Samples
from automc.scoring.soft import mse
from automc.setting import prepare
from automc.task import Task

X = torch.randn(130, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Leaky(nn.Module):
    """Activations in place that are not idempotent: to apply one twice is another function."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *[8] * 5]
        parts = [[nn.Conv2d(a, 8, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)] for a in widths[:-1]]
        self.features, self.fc = nn.Sequential(*(m for part in parts for m in part)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Shuffle(nn.Module):
    """A cut of the graph whose value is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, two = F.silu(self.a(x)).chunk(2, 1)
        return self.fc(torch.cat([one, F.silu(self.b(two))], 1).mean((2, 3)))


class Normalising(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return self.b(F.silu(self.a(x)).mean((2, 3)))


class Viewing(nn.Module):
    """Cannot run on images that lie channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.silu(self.a(x)).view(x.shape[0], -1))


@pytest.mark.parametrize("kind", [Leaky, Shuffle, Normalising, Viewing])
def test_a_score_is_that_of_the_compressed_module_whatever_came_before(
    kind: Callable[[], nn.Module], capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        y = model(X.clone()).argmax(1)
    before = X.clone()
    batches = [(X[:65], y[:65]), (X[65:], y[65:])]
    setting = prepare(
        Task(model, batches, batches), Budget.parse("macs<=70%"), "channels", Recipe(images=130, rows=2048), score="mse"
    )
    space, projector = setting.problem_parts
    points = [space.smallest, projector.project(space.largest, fill=True)]
    points += [projector.project(space.smallest + (space.sizes - 1) // n, fill=False) for n in (2, 3, 4)]
    likenesses = set()
    for point in [*points, *points]:
        found = setting.evaluator.evaluate(space.decode(point))
        assert found.ok, found.reason
        small = setting.evaluator.compressor.compress(space.decode(point))
        with torch.no_grad():
            likeness = float(mse(small(X.clone()), model(X.clone())).mean())
        assert found.score == pytest.approx(likeness, rel=1e-5)
        likenesses.add(round(likeness, 9))
    assert len(likenesses) > 2
    assert torch.equal(X, before)
    assert "Traceback" not in capfd.readouterr().err


def test_hooks_take_part_in_a_score() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: 2.0 * output)
    samples = Samples([((X,), torch.zeros(len(X)))])
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(Forward(model, model).outputs(samples)), model(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d((2,)), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 5)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(1, 4), nn.Flatten()),
    ],
)
def test_sizes_of_one_number_and_layers_over_the_last_dimension(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    samples = Samples([((X,), torch.zeros(len(X)))])
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(Forward(model, model).outputs(samples)), model(X), rtol=1e-4, atol=1e-5)


def test_inputs_without_a_target_are_no_samples_to_compile_for() -> None:
    assert Samples([((X[:20],), torch.zeros(30))]).shape is None
