"""Several searches of one study: nothing lost, nothing twice, whoever is killed."""

import signal
from pathlib import Path

import numpy as np
import pytest

from automc import loop
from automc.errors import StudyError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.storage import shown
from automc.study import Study
from tests.sharing.processes import driver, each_once, ended, recorded, wait_for
from tests.study import lab


def test_alone_it_does_what_an_unshared_search_does(tmp_path: Path) -> None:
    def run(name: str, *, shared: bool) -> Study:
        study = lab.study(tmp_path / name, shared=shared)
        loop.run(lab.problem(), lab.Draws(study.seed_of(3)), lab.lookup, study, trials=12)
        return study

    whole = run("plain.journal", shared=False)
    assert lab.contents(run("shared.journal", shared=True).evaluations) == lab.contents(whole.evaluations)


def test_a_study_may_be_gone_on_with_alone_and_then_together(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    for trials, shared in ((5, False), (9, True), (14, False)):
        study = lab.study(path, shared=shared)
        loop.run(lab.problem(), lab.Draws(trials), lab.lookup, study, trials=trials)
        assert len(study.evaluations) == trials
    assert Study.open(path).name == "lab"  # whatever lies beside it


def test_several_start_at_once_and_make_exactly_the_trials_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    assert ended([driver(path, 0, 40) for _ in range(4)]) == [0] * 4  # one seed for all: they do not collide
    assert len(recorded(path)) == 40 and each_once(recorded(path))


def test_one_that_is_killed_costs_what_it_had_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    drivers = [driver(path, 0, 40, 0.05) for _ in range(3)]
    before = wait_for(path, 5)
    drivers[0].send_signal(signal.SIGKILL)
    assert ended(drivers) == [-signal.SIGKILL, 0, 0]
    after = recorded(path)
    assert len(after) == 40 and each_once(after)
    assert lab.contents(after[: len(before)]) == lab.contents(before)


def test_who_does_not_share_is_refused_while_others_search_and_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    shared, own = lab.study(path, shared=True), lab.study(path)
    with shared.searching(), pytest.raises(StudyError, match="told to share"), own.searching():
        pass
    with own.searching(), pytest.raises(StudyError, match="told to share"), shared.searching():
        pass
    with shared.searching(), lab.study(path, shared=True).searching():
        pass


def test_every_search_is_told_all_trials(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    mine, theirs = lab.study(path, shared=True), lab.study(path, shared=True)
    searcher = lab.Draws(1)
    told: list[Evaluation] = []

    def evaluate(policy: Policy) -> Evaluation:
        if len(told) == 3:  # meanwhile, elsewhere
            theirs.append(lab.lookup(lab.draw(np.random.default_rng(99))))
        return lab.lookup(policy)

    loop.run(lab.problem(), searcher, evaluate, mine, trials=8, learn=told.append)
    assert searcher.told == 8 and [e.number for e in told] == list(range(8))
    assert lab.draw(np.random.default_rng(99)) in [e.policy for e in told]


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    class Stuck(lab.Draws):
        def ask(self) -> Policy:
            return lab.draw(np.random.default_rng(self.told % 2))

    study = lab.study(tmp_path / "lab.journal", shared=True)
    loop.run(lab.problem(), Stuck(), lab.lookup, study, trials=9)
    assert len(study.evaluations) == 2


def test_files_of_sqlite_are_not_to_be_shared(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="journal file or on a server"):
        lab.study(f"sqlite:///{tmp_path}/lab.db", shared=True)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("runs/a.journal", "runs/a.journal"),
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("://:secret", "://:secret"),
    ],
)
def test_passwords_are_not_printed(where: str, expected: str) -> None:
    assert shown(where) == expected
