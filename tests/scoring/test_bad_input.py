"""Metrics, models and data that misbehave: a failed trial with its reason, and the search goes on."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import automc
from automc.errors import AutomcError, TaskError
from automc.evaluation import Evaluation
from automc.report.summary import report
from automc.scoring.race import Race
from automc.study import Study
from tests.scoring import tiny

Metric = Callable[[Any, Tensor], Any]


def search(path: Path, task: automc.Task, **options: Any) -> Study:
    given: dict[str, Any] = {
        "budget": "macs<=60%",
        "space": "channels",
        "searcher": "random",
        "trials": 8,
        "study": "b",
    }
    return automc.search(task, storage=path / "b.journal", **given | options)


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(dim=1) == targets).float()


class Moody:
    """A metric that is right until it is told not to be."""

    def __init__(self, odd: Metric) -> None:
        self.odd, self.bad = odd, False

    def __call__(self, outputs: Any, targets: Tensor) -> Any:
        return self.odd(outputs, targets) if self.bad else right(outputs, targets)


def raising(error: BaseException) -> Metric:
    def odd(outputs: Any, targets: Tensor) -> Any:
        raise error

    return odd


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


ODD: dict[str, tuple[Metric, str]] = {
    "nan": (lambda x, y: right(x, y) * float("nan"), "A score must be finite; the metric gave nan: check the model"),
    "one nan": (
        lambda x, y: right(x, y).index_fill(0, torch.tensor([3]), float("nan")),
        "A score must be finite; the metric gave nan",
    ),
    "infinity": (lambda x, y: right(x, y) / 0, "A score must be finite; the metric gave"),
    "scalar": (lambda x, y: right(x, y).mean(), r"a tensor of shape (40,); it gave shape ():"),
    "column": (lambda x, y: right(x, y)[:, None], r"a tensor of shape (40,); it gave shape (40, 1):"),
    "too few": (lambda x, y: right(x, y)[1:], r"a tensor of shape (40,); it gave shape (39,):"),
    "a float": (lambda x, y: 0.5, "it gave a float: return scores by sample, or pass evaluate=callable(model)"),
    "nothing": (lambda x, y: None, "it gave a NoneType"),
    "KeyError": (raising(KeyError("labels")), "KeyError: 'labels'"),
    "IndexError": (raising(IndexError(3)), "IndexError: 3"),
    "TypeError": (raising(TypeError("a str is no tensor")), "TypeError: a str is no tensor"),
    "AssertionError": (raising(AssertionError()), "AssertionError"),
    "StopIteration": (raising(StopIteration()), "StopIteration"),
    "ZeroDivisionError": (raising(ZeroDivisionError("float division by zero")), "ZeroDivisionError: float division"),
    "MemoryError": (raising(MemoryError()), "MemoryError"),
    "not enough memory": (
        raising(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")),
        "RuntimeError: DefaultCPUAllocator: not enough memory",
    ),
    "without words": (raising(MuteError()), "MuteError"),
    "many lines": (raising(OSError("first\n  second\n\nthird")), "OSError: first second third"),
}


@pytest.mark.parametrize("stages", [(), (40,)], ids=["whole", "staged"])
@pytest.mark.parametrize("name", list(ODD))
def test_a_metric_that_fails_fails_its_candidate_in_one_line(name: str, stages: tuple[int, ...]) -> None:
    odd, said = ODD[name]
    moody = Moody(odd)
    setting = tiny.setting(tiny.task(samples=120, batch=40, metric=moody), stages)
    assert setting.evaluator.dense_metric == 1.0
    race = Race(setting.evaluator, ("macs",), risk=1e-6)
    for number, policy in enumerate(tiny.policies(setting, 6)):
        moody.bad = number % 3 == 2
        found = race.evaluate(policy)
        race.learn(replace(found, number=number))
        assert found.state == ("failed" if moody.bad else "ok")
        if moody.bad:
            assert said in found.reason
            assert "\n" not in found.reason and len(found.reason) < 400
            assert found.score is None and found.metric is None and found.costs


@pytest.mark.parametrize("stages", [(), (40,)], ids=["whole", "staged"])
def test_failed_trials_are_recorded_and_the_search_goes_on(stages: tuple[int, ...], tmp_path: Path) -> None:
    moody = Moody(raising(KeyError("labels")))

    def turn(evaluation: Evaluation) -> None:
        moody.bad = evaluation.number % 3 == 1

    task = tiny.task(samples=120, batch=40, metric=moody)
    study = search(tmp_path, task, trials=9, progress=turn, stages=stages)
    assert [e.state == "failed" for e in study.evaluations] == [False, False, True] * 3
    assert all(e.reason == "KeyError: 'labels'" for e in study.evaluations[2::3])
    assert study.best.ok
    again = Study.open(tmp_path / "b.journal")
    assert [e.reason for e in again.evaluations] == [e.reason for e in study.evaluations]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("stages", [(), (40,)])
def test_stopping_the_program_is_no_failed_trial(error: type[BaseException], stages: tuple[int, ...]) -> None:
    task = tiny.task(samples=120, batch=40)
    setting = tiny.setting(task, stages)
    policy = tiny.policies(setting, 1)[0]
    object.__setattr__(task, "metric", raising(error()))
    race = Race(setting.evaluator, ("macs",))
    for evaluate in (setting.evaluator.evaluate, race.evaluate):
        with pytest.raises(error):
            evaluate(policy)


class Narrow(nn.Module):
    """Refuses to run once it has been made smaller than it can bear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.out_channels >= 6, "the first layer must have six channels"
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def test_a_candidate_whose_forward_raises_fails_with_what_it_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(160, 3, 8, 8)
    model = Narrow().eval()
    with torch.no_grad():
        task = automc.Task(model, calibration=[x[:64]], validation=[(x[64:], model(x[64:]).argmax(1))], name="narrow")
    study = search(tmp_path, task, trials=20)
    failed = [e for e in study.evaluations if e.state == "failed"]
    assert 0 < len(failed) < 20 and study.best.ok
    assert all("AssertionError: the first layer must have six channels" in e.reason for e in failed)


@pytest.mark.parametrize("score", ["metric", "kl", "mse"])
@pytest.mark.parametrize("stages", [(), (60,)])
def test_outputs_that_are_not_numbers_fail_the_candidate(score: str, stages: tuple[int, ...]) -> None:
    setting = tiny.setting(tiny.task(samples=120), stages, score)
    assert setting.evaluator.dense_score == pytest.approx(1.0)
    policy = tiny.policies(setting, 1)[0]
    compress = setting.evaluator.compressor.compress

    def broken(chosen: Any) -> nn.Module:
        module = compress(chosen)
        with torch.no_grad():
            next(iter(module.parameters())).fill_(float("nan"))
        return module

    setting.evaluator.compressor.compress = broken  # type: ignore[assignment]
    found = Race(setting.evaluator, ("macs",)).evaluate(policy)
    assert found.state == "failed" and "Outputs must be finite" in found.reason


class Shuffling:
    """A loader in another order each time, and once with one batch less."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.passes)).tolist()
        return iter([self.batches[i] for i in order[: len(order) - self.passes + 1]])


@pytest.mark.parametrize("score", ["metric", "mse"])
def test_a_loader_that_shuffles_is_read_once_and_scores_stay_the_same(score: str) -> None:
    plain = tiny.task(samples=300, batch=50)
    loader = Shuffling([(x, y) for (x,), y in plain.validation])
    task = automc.Task(plain.model, plain.calibration, loader, name="shuffled")  # type: ignore[arg-type]
    setting = tiny.setting(task, (60, 150), score)
    policies = tiny.policies(setting, 3)
    race = Race(setting.evaluator, ("macs",))
    first = [setting.evaluator.evaluate(p) for p in policies]
    second = [race.evaluate(p) for p in policies]
    assert loader.passes == 1
    assert [e.score for e in first] == [e.score for e in second]
    assert all(len(setting.evaluator.searched_scores(p)) == 300 for p in policies)


class Sometimes:
    """An `evaluate` of the user's that answers well at first, then each in turn."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.calls = answers, 0

    def __call__(self, module: nn.Module) -> Any:
        self.calls += 1
        answer = 0.5 if self.calls <= 2 else self.answers[self.calls % len(self.answers)]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (float("nan"), "A score must be finite; the metric gave nan"),
        (float("-inf"), "A score must be finite; the metric gave -inf"),
        (None, "A task's evaluate must give a number; it gave a NoneType: return a float."),
        ("0.5", "it gave a str"),
        (torch.zeros(3), "it gave a Tensor"),
        (KeyError("labels"), "KeyError: 'labels'"),
    ],
)
def test_an_own_evaluate_that_gives_no_number_fails_its_trial(answer: Any, said: str, tmp_path: Path) -> None:
    task = tiny.task(samples=60, evaluate=Sometimes([answer, 0.25, torch.tensor(0.125)]))
    study = search(tmp_path, task, trials=9, stages=(30,))
    failed = [e for e in study.evaluations if e.state == "failed"]
    assert len(failed) == 3 and all(said in e.reason for e in failed)
    assert {e.score for e in study.evaluations if e.ok} == {0.25, 0.125}


@pytest.mark.parametrize("name", [n for n in ODD if n not in ("MemoryError", "many lines")])
@pytest.mark.parametrize("score", ["metric", "kl"])
def test_what_is_wrong_with_the_dense_model_too_is_one_clear_error(name: str, score: str, tmp_path: Path) -> None:
    odd, said = ODD[name]
    task = tiny.task(samples=80, batch=40, metric=odd)
    with pytest.raises(AutomcError) as caught:
        search(tmp_path, task, score=score)
    text = str(caught.value)
    assert said in text and "\n" not in text
    assert not (tmp_path / "b.journal").exists()


def test_a_dense_model_that_raises_is_one_clear_error(tmp_path: Path) -> None:
    def own(module: nn.Module) -> float:
        raise IndexError("list index out of range")

    with pytest.raises(
        TaskError, match=r"The dense model must be scored .* IndexError: list index out of range: check"
    ):
        search(tmp_path, tiny.task(samples=60, evaluate=own))


def test_a_failed_candidate_stops_nobody_and_is_stopped_by_nobody() -> None:
    setting = tiny.setting(tiny.task(samples=120), (60,))
    policies = tiny.policies(setting, 2)
    race = Race(setting.evaluator, ("macs",))
    race.learn(Evaluation(policies[0], "failed", None, setting.evaluator.costs(policies[0]), number=0))
    assert race.incumbents.held == () and race.evaluate(policies[1]).stages == ()


class Careless(nn.Module):
    """Its statistics change whenever it runs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(x))).mean((2, 3)))


def test_what_an_own_evaluate_does_to_a_model_is_done_to_a_copy_in_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, model, modes = torch.randn(96, 3, 8, 8), Careless(), []

    def own(module: nn.Module) -> float:
        modes.append(module.training)
        with torch.no_grad():
            module.train()
            return float(module(x).std())

    task = automc.Task(model, calibration=[x[:64]], validation=[], evaluate=own, name="careless")
    before = copy.deepcopy(model.state_dict())
    study = search(tmp_path, task, trials=2)
    assert len(search(tmp_path, task, trials=3).evaluations) == 3  # the same fingerprint still
    small = automc.apply(task, study.best.policy)
    left = copy.deepcopy(small.state_dict())
    found = report(task, small)
    assert found["compressed"]["score"] == study.best.score and found["dense"]["score"] == study.meta["dense"]["score"]
    assert model.training and not small.training and not any(modes)
    for now, then in ((model.state_dict(), before), (small.state_dict(), left)):
        assert all(torch.equal(now[name], then[name]) for name in then)
