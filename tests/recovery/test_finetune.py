"""Fine-tuning raises accuracy, keeps zeros and codebooks, and prunes along the published curve."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import automc
from automc.compression.compress import Compressor
from automc.compression.quantize import QuantizedLayer
from automc.errors import TaskError
from automc.graph.trace import trace_model
from automc.policy import LayerDecision, Policy, Recipe
from automc.recovery import finetune as module
from automc.recovery.finetune import finetune, prune_gradually
from automc.recovery.optimize import Schedule
from automc.task import Task

Split = tuple[tuple[Tensor], Tensor]


def blobs() -> list[Split]:
    """Four classes of noisy points on a circle."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (512,), generator=generator)
    angle = labels * torch.pi / 2
    points = torch.stack((angle.cos(), angle.sin()), dim=1) + 0.4 * torch.randn(512, 2, generator=generator)
    x = points @ torch.randn(2, 12, generator=generator)
    return [((x[i : i + 128],), labels[i : i + 128]) for i in range(0, 512, 128)]


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return float(torch.stack([F.cross_entropy(model(*x), y) for x, y in blobs()]).mean())


def compressed(decision: LayerDecision) -> tuple[Task, nn.Module]:
    model = net()
    finetune(model, blobs(), Schedule(epochs=20, batch=32, rate=1e-2))
    task = Task(model, blobs(), blobs(), name="blobs")
    graph = trace_model(model, task.example_inputs)
    policy = Policy(graph.facts.fingerprint, (), (("0", decision),), Recipe(reconstruct="none"))
    return task, Compressor(graph, model, task).compress(policy)


def test_zeros_stay_and_the_loss_falls() -> None:
    _, small = compressed(LayerDecision(sparsity=0.9))
    zeros, before = small.get_parameter("0.weight") == 0, loss_of(small)
    finetune(small, blobs(), Schedule(epochs=5, batch=32, rate=5e-3))
    assert loss_of(small) < before
    assert torch.equal(small.get_parameter("0.weight") == 0, zeros)


def test_a_codebook_is_trained_and_stays_one(tmp_path) -> None:
    _, small = compressed(LayerDecision(weight_bits=2, codebook="kmeans", sparsity=0.5))
    holder = small.get_submodule("0")
    assert isinstance(holder, QuantizedLayer)
    codes, before, loss = holder.codes, copy.deepcopy(holder.centroids), loss_of(small)
    finetune(small, blobs(), Schedule(epochs=5, batch=32, rate=5e-3))
    assert loss_of(small) < loss
    assert holder.centroids is not None and before is not None and codes is not None
    assert not torch.equal(holder.centroids, before) and float(holder.centroids[0]) == 0
    assert torch.equal(holder.codes, codes) or len(holder.centroids.unique()) < len(before.unique())  # type: ignore[arg-type]
    weight = holder.layer.weight
    assert isinstance(weight, nn.Parameter) and torch.equal(weight.detach(), holder.centroids[codes])
    assert not any("parametrizations" in name for name in small.state_dict())
    automc.save(small, tmp_path)
    again = automc.load(tmp_path, net)
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in small.state_dict().items())


def test_a_teacher_draws_the_student_to_itself() -> None:
    task, small = compressed(LayerDecision(sparsity=0.8))
    alone, taught = copy.deepcopy(small), copy.deepcopy(small)
    schedule = Schedule(epochs=6, batch=32, rate=5e-3)
    finetune(alone, blobs(), schedule)
    finetune(taught, blobs(), schedule, teacher=task.model, weight=1.0)
    x = blobs()[0][0][0]
    with torch.no_grad():
        goal = task.model(x).softmax(dim=1)
        gaps = [float((m(x).softmax(dim=1) - goal).square().mean()) for m in (taught, alone)]
    assert gaps[0] < gaps[1]


def test_a_teacher_asked_once_teaches_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    task, small = compressed(LayerDecision(sparsity=0.8))
    found = []
    for answers in (module._answers, lambda *_: None):
        monkeypatch.setattr(module, "_answers", answers)
        taught = copy.deepcopy(small)
        finetune(taught, blobs(), Schedule(epochs=3, batch=32, rate=5e-3), teacher=task.model)
        found.append(taught.get_parameter("0.weight").detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    wide = nn.Linear(12, 13)  # more outputs than inputs: asked batch by batch
    assert module._answers(wide, (torch.zeros(4, 12),)) is None


def test_gradual_pruning_follows_the_cubic_curve_and_never_brings_weights_back() -> None:
    model = net()
    finetune(model, blobs(), Schedule(epochs=10, batch=32, rate=1e-2))
    told, zeros, gone = [], [], []

    def see(step: int, share: float) -> None:
        weight = model.get_parameter("0.weight").detach()
        told.append(share)
        zeros.append(float((weight == 0).float().mean()))
        gone.append(weight == 0)

    prune_gradually(model, blobs(), {"0": 0.9}, Schedule(epochs=1, batch=64), steps=5, progress=see)
    for step, (share, zero) in enumerate(zip(told, zeros, strict=True), 1):
        assert share == pytest.approx(1 - (1 - step / 5) ** 3)
        assert zero == pytest.approx(0.9 * share, abs=1 / 300)
    assert all(bool((later | ~earlier).all()) for earlier, later in itertools.pairwise(gone))
    assert not bool((model.get_parameter("2.weight") == 0).any())


def test_no_batches_are_refused() -> None:
    with pytest.raises(TaskError, match="labelled"):
        finetune(net(), [])
