"""Distillation brings a compressed model closer to the dense one and leaves what was decided as it is."""

import copy

import pytest
import torch
from torch import Tensor, nn

import automc
from automc.compression.compress import Compressor
from automc.errors import ArtifactError, TaskError
from automc.graph.model_graph import ModelGraph
from automc.graph.trace import trace_model
from automc.policy import GroupDecision, LayerDecision, Policy, Recipe
from automc.recovery.distill import Distillation, distill
from automc.recovery.optimize import Schedule, trainable
from automc.task import Task
from automc.tasks.augment import flips_and_shifts, shifts
from automc.tasks.resnet import ResNet

QUICK = Distillation(Schedule(epochs=3, batch=16, rate=1e-3))


def made() -> tuple[Task, ModelGraph, nn.Module]:
    """A small ResNet with channels pruned, weights pruned and weights quantized."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet(8, widths=(8, 16, 32), classes=5)
        x = torch.randn(96, 3, 8, 8)
        model.train()
        with torch.no_grad():
            for _ in range(10):
                model(x)
    model.eval()
    task = Task(model, [x], [(x, torch.zeros(96, dtype=torch.long))])
    graph = trace_model(model, task.example_inputs)
    facts = graph.facts
    layers = [layer.name for layer in facts.layers]
    policy = Policy(
        facts.fingerprint,
        tuple((g.name, GroupDecision(0.5)) for g in facts.groups if not g.coupled),
        ((layers[1], LayerDecision(sparsity=0.6)), (layers[3], LayerDecision(weight_bits=4))),
        Recipe(reconstruct="none"),
    )
    return task, graph, Compressor(graph, model, task).compress(policy)


def once(seed: int) -> Distillation:
    return Distillation(Schedule(epochs=1, batch=32, seed=seed))


def gap(task: Task, small: nn.Module) -> float:
    x = task.calibration[0][0][0]
    with torch.no_grad():
        got, goal = small(x), task.model(x)
    return float((got - goal).square().mean() / goal.square().mean())


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def test_the_outputs_come_closer_and_every_decision_stays() -> None:
    task, graph, small = made()
    before, dense, far = state(small), state(task.model), gap(task, small)
    small.requires_grad_(False)
    distill(small, task.model, graph, task.calibration[0][0], QUICK)
    assert gap(task, small) < 0.7 * far
    after = small.state_dict()
    facts = graph.facts
    sparse, quantized = facts.layers[1].name, facts.layers[3].name
    assert torch.equal(after[f"{sparse}.weight"] == 0, before[f"{sparse}.weight"] == 0)
    assert not torch.equal(after[f"{sparse}.weight"], before[f"{sparse}.weight"])
    assert torch.equal(after[f"{quantized}.layer.weight"], before[f"{quantized}.layer.weight"])
    assert all(torch.equal(after[n], before[n]) for n in after if "running" in n or "num_batches" in n)
    assert all(torch.equal(x, dense[n]) for n, x in task.model.state_dict().items())
    assert not small.training
    assert not any(p.requires_grad or p.grad is not None for p in small.parameters())


def test_same_seed_same_weights_and_another_seed_others() -> None:
    task, graph, small = made()
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        again = copy.deepcopy(small)
        torch.manual_seed(seed + len(states))  # the global generator must not matter
        distill(again, task.model, graph, task.calibration[0][0], once(seed), augment=flips_and_shifts)
        states.append(state(again))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])


def test_a_distilled_model_is_saved_and_loaded_as_it_is(tmp_path) -> None:
    task, _, small = made()
    told: list[int] = []
    automc.distill(small, task, settings=QUICK, samples=64, progress=lambda epoch, loss: told.append(epoch))
    automc.save(small, tmp_path)
    again = automc.load(tmp_path, lambda: ResNet(8, widths=(8, 16, 32), classes=5))
    assert told == [0, 1, 2]
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in small.state_dict().items())


def test_a_rate_that_is_too_high_is_said_so() -> None:
    task, graph, small = made()
    with pytest.raises(TaskError, match="lower the rate"):
        distill(
            small, task.model, graph, task.calibration[0][0], Distillation(Schedule(epochs=30, batch=16, rate=1e12))
        )


def test_only_what_apply_returned_can_be_distilled() -> None:
    task, _, _ = made()
    with pytest.raises(ArtifactError, match="apply"):
        automc.distill(copy.deepcopy(task.model), task)


def test_quantized_weights_are_not_trained() -> None:
    _, graph, small = made()
    names = {id(p): n for n, p in small.named_parameters()}
    trained = {names[id(p)] for p in trainable(small)}
    assert set(names.values()) - trained == {f"{graph.facts.layers[3].name}.layer.weight"}


def test_augmented_images_are_shifted_copies() -> None:
    x = torch.arange(2 * 64, dtype=torch.float32).reshape(2, 1, 8, 8) + 1
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    windows = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    for seed in range(20):
        y = shifts(x, torch.Generator().manual_seed(seed))
        assert all(any(torch.equal(y[i], w[i]) for w in windows) for i in range(2))
