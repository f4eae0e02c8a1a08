"""A searcher begins with trials of earlier studies, the same ones whenever it is resumed."""

from pathlib import Path
from typing import Any

import pytest

from automc.earlier import recall
from automc.errors import StudyError
from automc.registry import SEARCHERS
from automc.searcher import Problem
from automc.searchers.joint import JointSearcher, joint
from automc.study import Study
from tests.searchers import table


def made(problem: Problem, where: Path, name: str, trials: int = 0, **changes: Any) -> Study:
    meta = {
        "fingerprint": problem.space.facts.fingerprint,
        "budget": "macs<=50%",
        "limits": problem.projector.limits,
        "recipe": {},
        "score": "metric",
        "metric": "accuracy",
    }
    study = Study.create(where / f"{name}.journal", name, meta | changes, problem.space.axes)
    for evaluation in table.search(SEARCHERS.load("random")(problem, trials), table.lookup(problem), trials):
        study.record(evaluation)
    return study


def remembered(searcher: JointSearcher) -> int:
    return searcher.agent.agent.episode


def test_the_agent_is_shown_every_trial_of_every_earlier_study(tmp_path: Path) -> None:
    problem = table.problem()
    earlier = [made(problem, tmp_path, "a", 7), made(problem, tmp_path, "b", 5)]
    searcher, study = joint(problem, 0), made(problem, tmp_path, "new")
    assert recall(searcher, "joint", study, earlier, problem.space) == remembered(searcher) == 12


def test_a_resumed_search_begins_with_the_same_trials_though_the_earlier_study_has_grown(tmp_path: Path) -> None:
    problem = table.problem()
    earlier = made(problem, tmp_path, "a", 7)
    first, study = joint(problem, 0), made(problem, tmp_path, "new")
    recall(first, "joint", study, [earlier], problem.space)
    for evaluation in table.search(first, table.lookup(problem), 12):
        study.record(evaluation)
    for evaluation in table.search(SEARCHERS.load("random")(problem, 9), table.lookup(problem), 4):
        earlier.record(evaluation)
    again = joint(problem, 0)
    resumed = Study.open(tmp_path / "new.journal")
    assert recall(again, "joint", resumed, [Study.open(tmp_path / "a.journal")], problem.space) == 7
    for evaluation in resumed.evaluations:
        again.tell(evaluation)
    assert again.ask() == first.ask()


def test_trials_of_another_space_are_taken_as_far_as_they_have_its_words(tmp_path: Path) -> None:
    problem, other = table.problem("channels"), table.problem("criteria")
    earlier = made(other, tmp_path, "a", 6)
    searcher, study = joint(problem, 0), made(problem, tmp_path, "new")
    assert recall(searcher, "joint", study, [earlier], problem.space) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"score": "mse"}, "same score"), ({"fingerprint": "f" * 64}, "same model"), ({"metric": "f1"}, "same metric")],
)
def test_a_study_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    problem = table.problem()
    earlier = made(problem, tmp_path, "a", 0, **changes)
    with pytest.raises(StudyError, match=said):
        recall(joint(problem, 0), "joint", made(problem, tmp_path, "new"), [earlier], problem.space)


def test_a_searcher_that_learns_nothing_from_others_is_refused(tmp_path: Path) -> None:
    problem = table.problem()
    earlier = made(problem, tmp_path, "a", 3)
    with pytest.raises(StudyError, match="'random' does not: use joint"):
        recall(SEARCHERS.load("random")(problem, 0), "random", made(problem, tmp_path, "new"), [earlier], problem.space)
    assert "earlier" not in Study.open(tmp_path / "new.journal").meta  # the same search without them may go on
    recall(SEARCHERS.load("random")(problem, 0), "random", made(problem, tmp_path, "plain"), [], problem.space)


def test_a_search_that_has_begun_takes_no_other_earlier_studies(tmp_path: Path) -> None:
    problem = table.problem()
    a, b = made(problem, tmp_path, "a", 3), made(problem, tmp_path, "b", 3)
    study = made(problem, tmp_path, "new")
    recall(joint(problem, 0), "joint", study, [a], problem.space)
    with pytest.raises(StudyError, match=r"began with a .*given b"):
        recall(joint(problem, 0), "joint", study, [b], problem.space)
    begun = made(problem, tmp_path, "begun", 2)
    with pytest.raises(StudyError, match="began with none, given a"):
        recall(joint(problem, 0), "joint", begun, [a], problem.space)


def test_an_earlier_study_may_be_spelt_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problem = table.problem()
    made(problem, tmp_path, "a", 4)
    study = made(problem, tmp_path, "new")
    for spelt in ("a.journal", "./a.journal", str(tmp_path / "a.journal")):
        assert recall(joint(problem, 0), "joint", study, [Study.open(spelt)], problem.space) == 4
