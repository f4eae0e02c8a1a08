"""The public calls, on a network small enough to search in a second."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import automc
from automc import api
from automc.errors import AutomcError, BudgetError, RegistryError, StudyError, TaskError
from automc.evaluation import Evaluation
from automc.policy import Recipe
from automc.registry import SEARCHERS
from automc.setting import evaluator_of
from automc.space import Axis
from tests.callbacks.searching import Heard
from tests.cli.tiny import TASK


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def task(seed: int = 0) -> automc.Task:
    torch.manual_seed(seed)
    model = net().eval()
    images = torch.randn(64, 3, 8, 8)
    targets = model(images).argmax(dim=1)
    batches = [(images[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]
    return automc.Task(model, calibration=batches[:1], validation=batches[1:3], test=batches[3:], name="tiny")


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stub", "uniform"):
        monkeypatch.setitem(SEARCHERS.table, name, "tests.cli.tiny:Stub")


def search(**changes: Any) -> automc.Study:
    options: dict[str, Any] = {"budget": "macs<=60%", "searcher": "stub", "trials": 4, "study": "t"}
    return automc.search(task(), **options | changes)


def test_every_trial_meets_the_budget_and_the_best_one_is_what_apply_builds() -> None:
    study = search()
    found = task()
    dense = automc.cost(found.model, found.example_inputs)
    assert all(e.cost("macs") <= study.meta["limits"]["macs"] for e in study.evaluations)
    small = automc.apply(found, study.best.policy)
    counted = automc.cost(small, found.example_inputs)
    assert counted["macs"] == study.best.cost("macs") <= 0.6 * dense["macs"]
    assert counted["params"] == study.best.cost("params") < dense["params"]
    assert evaluator_of(found).score(small) == study.best.score


def test_what_is_saved_comes_back_equal_with_a_factory_or_the_task(tmp_path: Path) -> None:
    found, policy = task(), search().best.policy
    small = automc.apply(found, policy)
    size = automc.save(small, tmp_path / "out", report={"note": 1})
    assert (
        size
        == (tmp_path / "out" / "model.safetensors").stat().st_size
        == automc.cost(small, found.example_inputs)["size"]
    )
    x = torch.randn(2, 3, 8, 8)
    for how in (net, found):
        assert torch.equal(automc.load(tmp_path / "out", how)(x), small(x))


def test_the_users_model_is_left_alone() -> None:
    found = task()
    before = copy.deepcopy(found.model.state_dict())
    study = automc.search(found, budget="macs<=60%,size<=90%", searcher="stub", trials=2, study="t")
    automc.apply(found, study.best.policy)
    automc.cost(found.model.train(), found.example_inputs)
    assert found.model.training
    after = found.model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)


def test_cost_counts_one_sample_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    counted = automc.cost(layer, torch.zeros(5, 3, 8, 8))
    assert counted["macs"] == 8 * 8 * 8 * 3 * 9
    assert counted["params"] == 8 * 3 * 9 + 8
    assert counted["size"] > 4 * counted["params"]


def test_a_search_notes_what_it_was() -> None:
    meta = search(seed=5).meta
    assert meta["task"] is None and meta["task_name"] == "tiny" and meta["seed"] == 5
    assert meta["space"] == "channels-ranks" and meta["searcher"] == "stub" and meta["budget"] == "macs<=60%"
    assert meta["dense"]["score"] == 1.0 and meta["dense"]["costs"]["macs"] > meta["uniform"]["costs"]["macs"]
    assert meta["threads"] == torch.get_num_threads() and meta["versions"]["torch"] == torch.__version__


def test_trials_may_be_added_and_seen() -> None:
    seen: list[Evaluation] = []
    search(trials=2)
    study = search(trials=5, progress=seen.append)
    assert [e.number for e in seen] == [2, 3, 4]
    assert len(study.evaluations) == 5


def test_callbacks_are_told_of_a_search_and_of_one_that_goes_on() -> None:
    heard = Heard()
    search(trials=2, callbacks=[heard])
    study = search(trials=5, callbacks=[heard], progress=lambda _: None)
    assert heard.begun == [0, 2] and heard.ended == [("done", "")] * 2
    assert tuple(heard.trials) == study.evaluations


def test_a_space_may_be_a_function() -> None:
    def first_group(facts: Any) -> tuple[Axis, ...]:
        return (Axis(facts.groups[0].name, "group", "keep", (0.25, 0.5, 1.0)),)

    study = search(space=first_group)
    assert study.meta["space"] == "first_group"
    assert all(len(e.policy.groups) == 1 for e in study.evaluations)
    with pytest.raises(TaskError, match="opens nothing"):
        search(space=lambda facts: (), study="u")


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"budget": "macs<=0.1%"}, BudgetError, "smallest reachable"),
        ({"searcher": "stab"}, RegistryError, "did you mean 'stub'"),
        ({"space": "chanels"}, RegistryError, "did you mean 'channels'"),
        ({"recipe": Recipe(ridge=0.5)}, StudyError, "the recipe it began with"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], kind: type[AutomcError], said: str) -> None:
    search(trials=1)
    with pytest.raises(kind, match=said):
        search(**changes)


def test_a_study_of_another_model_is_refused() -> None:
    search(trials=1)
    with pytest.raises(StudyError, match="the model it began with"):
        automc.search(task(seed=1), budget="macs<=60%", searcher="stub", trials=2, study="t")


def test_a_weight_that_is_not_a_number_is_refused() -> None:
    found = task()
    with torch.no_grad():
        found.model.get_submodule("3").weight[0, 0, 0, 0] = float("nan")  # type: ignore[operator]
    with pytest.raises(AutomcError, match="finite"):
        automc.search(found, budget="macs<=60%", searcher="stub", trials=1)


def test_inspect_gives_groups() -> None:
    facts = api.inspect(task())
    assert [g.units for g in facts.groups] == [8, 12] and facts.traceable


def filed(folder: Path) -> str:
    """The reference of a tiny task in a file."""
    (folder / "my_task.py").write_text(TASK)
    return f"{folder / 'my_task.py'}:task"


def test_the_agent_of_a_study_serves_other_budgets(tmp_path: Path) -> None:
    reference = filed(tmp_path)
    study = automc.search(
        reference, budget="macs<=60%", searcher="amc-budgets", trials=14, storage=tmp_path / "s.journal"
    )
    dense = study.meta["dense"]["costs"]["macs"]
    costs = []
    for share in (0.3, 0.5, 0.6):
        policy = automc.policy_for(tmp_path / "s.journal", share)
        assert policy == automc.policy_for(study, share)
        costs.append(automc.cost(automc.apply(reference, policy), task().example_inputs)["macs"] / dense)
        assert share - 0.1 < costs[-1] <= share
    assert len(study.evaluations) == 14


def test_a_study_without_such_an_agent_serves_none(tmp_path: Path) -> None:
    study = automc.search(
        filed(tmp_path), budget="macs<=60%", searcher="random", trials=1, storage=tmp_path / "s.journal"
    )
    with pytest.raises(AutomcError, match="searched by random: search with amc-budgets"):
        automc.policy_for(study, 0.3)
