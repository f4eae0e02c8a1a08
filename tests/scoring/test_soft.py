"""Likeness to the dense model as a score: against scipy and closed forms, in a search, and on what it cannot score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import automc
from automc.budget import Budget
from automc.errors import AutomcError, StudyError, TaskError
from automc.policy import Policy
from automc.scoring.soft import SOFT, kl, mse
from automc.setting import prepare
from automc.task import Task


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_task(metric: object = "accuracy", head: nn.Module | None = None, **others: object) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 4), *([head] if head else []),
        ).eval()  # fmt: skip
    x = rand(96, 3, 8, 8, seed=1)
    y = model(x).argmax(dim=1) if head is None else torch.zeros(96)
    return Task(model, [x[:48]], [(x[48:], y[48:])], metric=metric, name="soft", **others)  # type: ignore[arg-type]


def test_kl_is_scipys() -> None:
    outputs, dense = rand(6, 5), rand(6, 5, seed=1)
    p, q = dense.softmax(1).numpy(), outputs.softmax(1).numpy()
    expected = [np.exp(-scipy.stats.entropy(a, b)) for a, b in zip(p, q, strict=True)]
    assert kl(outputs, dense).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("targets", [None, rand(3, 4), rand(3)])
def test_kl_of_tokens_is_the_mean_over_them(targets: Tensor | None) -> None:
    outputs, dense = rand(3, 4, 5), rand(3, 4, 5, seed=1)
    each = torch.stack([-kl(outputs[:, i], dense[:, i]).log() for i in range(4)])
    assert kl(outputs, dense, targets=targets).tolist() == pytest.approx((-each.mean(dim=0)).exp().tolist())


@pytest.mark.parametrize(("shape", "told"), [((3, 5, 4), True), ((3, 5, 4, 2), True), ((3, 5, 4, 2), False)])
def test_kl_of_pixels_is_the_mean_over_them(shape: tuple[int, ...], told: bool) -> None:
    outputs, dense = rand(*shape), rand(*shape, seed=1)
    targets = rand(shape[0], *shape[2:]) if told else None
    flat, against = outputs.flatten(2), dense.flatten(2)
    each = torch.stack([-kl(flat[..., i], against[..., i]).log() for i in range(flat.shape[2])])
    assert kl(outputs, dense, targets=targets).tolist() == pytest.approx((-each.mean(dim=0)).exp().tolist())


def test_a_model_of_tokens_is_scored_over_its_classes(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    x = rand(96, 6, 8)
    task = Task(model, [x[:48]], [(x[48:], model(x[48:]).argmax(dim=2))], name="tokens")
    found = automc.search(task, budget="macs<=70%", trials=2, score="kl", storage=tmp_path / "s.journal")
    assert found.best is not None and found.meta["dense"]["metric"] == 1.0
    with torch.no_grad():
        outputs, dense = automc.apply(task, found.best.policy)(x[48:]), model(x[48:])
    divergence = F.kl_div(outputs.log_softmax(2), dense.log_softmax(2), log_target=True, reduction="none")
    expected = (-divergence.sum(dim=2).mean(dim=1)).exp().mean()
    assert found.best.score == pytest.approx(float(expected), abs=1e-4)


def test_mse_is_relative_to_the_batch() -> None:
    dense = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    assert mse(dense + torch.tensor([[1.0, 2.0], [0.0, 0.0]]), dense).tolist() == pytest.approx([np.exp(-5 / 25), 1.0])


@given(st.integers(0, 1000), st.sampled_from(list(SOFT)), st.floats(0.01, 100))
def test_scores_lie_between_nought_and_one_and_are_one_where_equal(seed: int, name: str, scale: float) -> None:
    dense, other = scale * rand(7, 4, seed=seed), scale * rand(7, 4, seed=seed + 1)
    assert SOFT[name](dense, dense).tolist() == pytest.approx([1.0] * 7)
    found = SOFT[name](other, dense)
    assert found.shape == (7,) and bool(((found >= 0) & (found <= 1)).all())
    nearer = SOFT[name](dense + 0.1 * (other - dense), dense)
    assert float(nearer.mean()) > float(found.mean())


@pytest.mark.parametrize("name", list(SOFT))
def test_a_search_by_likeness_records_the_metric_too(name: str, tmp_path: Path) -> None:
    task = small_task()
    found = automc.search(task, budget="macs<=60%", trials=4, score=name, storage=tmp_path / "s.journal")
    assert name in found.name and found.meta["dense"] | {"costs": 0} == {
        "score": pytest.approx(1.0),
        "metric": 1.0,
        "costs": 0,
    }
    for evaluation in found.evaluations:
        module = automc.apply(task, evaluation.policy)
        inputs, targets = task.validation[0]
        with torch.no_grad():
            outputs, dense = module(*inputs), task.model(*inputs)
        assert evaluation.score == pytest.approx(float(SOFT[name](outputs, dense).mean()), abs=1e-4)
        assert evaluation.metric == pytest.approx(float((outputs.argmax(1) == targets).float().mean()))
    assert found.meta["uniform"]["metric"] is not None
    with pytest.raises(StudyError, match="score it began with"):
        automc.search(task, budget="macs<=60%", trials=4, storage=tmp_path / "s.journal", study=found.name)


def test_the_metric_is_the_score_where_it_is_searched(tmp_path: Path) -> None:
    found = automc.search(small_task(), budget="macs<=60%", trials=2, storage=tmp_path / "s.journal")
    assert all(e.metric == e.score for e in found.evaluations)


def test_the_dense_policy_is_fully_like_the_dense_model() -> None:
    for name in SOFT:
        setting = prepare(small_task(), Budget.parse("macs<=100%"), "channels", score=name)
        found = setting.evaluator.evaluate(Policy(setting.graph.facts.fingerprint))
        assert found.score == pytest.approx(1.0, abs=1e-6) and found.metric == 1.0


def test_an_own_evaluate_is_the_metric_beside_likeness() -> None:
    task = replace(small_task(), evaluate=lambda model: 42.0)
    setting = prepare(task, Budget.parse("macs<=100%"), "channels", score="mse")
    found = setting.evaluator.evaluate(Policy(setting.graph.facts.fingerprint))
    assert found.metric == 42.0 and found.score == pytest.approx(1.0)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.parametrize(("head", "name", "said"), [(First(), "kl", "score by mse"), (Pair(), "mse", "score by the")])
def test_outputs_that_cannot_be_compared_are_refused(head: nn.Module, name: str, said: str, tmp_path: Path) -> None:
    def anything(outputs: object, targets: Tensor) -> Tensor:
        return torch.ones(len(targets))

    with pytest.raises(TaskError, match=said):
        automc.search(small_task(anything, head), budget="macs<=90%", score=name, storage=tmp_path / "s.journal")


def test_an_unknown_score_is_refused_before_anything_is_done() -> None:
    with pytest.raises(TaskError, match="metric, kl, mse"):
        automc.search(small_task(), budget="macs<=60%", score="likeness")
    assert issubclass(TaskError, AutomcError)
