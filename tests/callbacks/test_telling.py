"""Callbacks hear of every trial once and of the end however it comes, and none of them can hurt a search."""

import logging
import os
import signal

import pytest

from automc import loop
from automc.callbacks.telling import telling
from automc.errors import RegistryError, StudyError
from automc.registry import CALLBACKS
from tests.callbacks.searching import Heard, mixed, search
from tests.study import lab


class Broken(Heard):
    """Raises where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0

    def _maybe(self, what: str) -> None:
        if what == self.where:
            self.calls += 1
            raise ZeroDivisionError(f"in {what}")

    def begin(self, study):
        self._maybe("begin")
        super().begin(study)

    def trial(self, study, evaluation):
        self._maybe("trial")
        super().trial(study, evaluation)

    def end(self, study, how, reason):
        self._maybe("end")
        super().end(study, how, reason)


def test_a_callback_hears_of_the_beginning_of_each_trial_and_of_the_end(tmp_path):
    heard = Heard()
    study = search(lab.study(tmp_path / "lab.journal"), [heard], evaluate=mixed)
    assert heard.begun == [0] and heard.ended == [("done", "")]
    assert tuple(heard.trials) == study.evaluations
    assert {e.state for e in heard.trials} == {"ok", "failed", "infeasible"}


def test_a_search_that_goes_on_tells_of_new_trials_alone(tmp_path):
    search(lab.study(tmp_path / "lab.journal"), [], trials=5)
    heard = Heard()
    search(lab.study(tmp_path / "lab.journal"), [heard], trials=8)
    assert heard.begun == [5] and [e.number for e in heard.trials] == [5, 6, 7]


@pytest.mark.parametrize("where", ["begin", "trial", "end"])
def test_a_broken_callback_is_said_once_and_told_no_more(where, tmp_path, caplog):
    broken, heard = Broken(where), Heard()
    study = search(lab.study(tmp_path / "lab.journal"), [broken, heard])
    assert len(study.evaluations) == len(heard.trials) == 8 and heard.ended == [("done", "")]
    assert broken.calls == 1
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [
        f"Broken is told no more; it stopped with ZeroDivisionError: in {where}; the search goes on.",
    ]


def test_a_search_that_fails_says_why(tmp_path):
    def evaluate(policy):
        raise OSError("disk on fire")

    heard = Heard()
    with pytest.raises(OSError, match="disk on fire"):
        search(lab.study(tmp_path / "lab.journal"), [heard], evaluate=evaluate)
    assert heard.ended == [("failed", "OSError: disk on fire")]


def test_an_error_of_ours_is_given_as_its_sentence(tmp_path):
    heard, study = Heard(), lab.study(tmp_path / "lab.journal")
    with pytest.raises(StudyError), telling([heard], study):
        raise StudyError("A study must\n be this; it is that: do so.")
    assert heard.ended == [("failed", "A study must be this; it is that: do so.")]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_search_says_so_and_has_told_of_all_it_recorded(number, raised, tmp_path):
    def evaluate(policy):
        if len(heard.trials) == 3:
            os.kill(os.getpid(), number)
        return lab.lookup(policy)

    heard, study = Heard(), lab.study(tmp_path / "lab.journal")
    with pytest.raises(raised):
        search(study, [heard], evaluate=evaluate)
    assert heard.ended == [("stopped", "")]
    assert tuple(heard.trials) == study.evaluations


@pytest.mark.parametrize("shared", [False, True])
def test_a_signal_amid_a_trial_being_told_of_waits_until_all_have_heard(shared, tmp_path):
    class Signals(Heard):
        def trial(self, study, evaluation):
            os.kill(os.getpid(), signal.SIGINT)
            super().trial(study, evaluation)

    first, last, study = Signals(), Heard(), lab.study(tmp_path / "lab.journal", shared=shared)
    with pytest.raises(KeyboardInterrupt):
        search(study, [first, last])
    assert len(first.trials) == len(last.trials) == len(study.evaluations) == 1
    assert last.ended == [("stopped", "")]


def test_ctrl_c_in_a_callback_is_not_taken_for_its_failure(tmp_path):
    class Impatient(Heard):
        def begin(self, study):
            raise KeyboardInterrupt

    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        search(lab.study(tmp_path / "lab.journal"), [Impatient(), heard])
    assert heard.begun == [] and heard.ended == [("stopped", "")]


def test_a_shared_search_tells_of_what_others_have_recorded(tmp_path):
    """Also of what it hears of while it claims, or has nothing to do."""
    path, heard = tmp_path / "lab.journal", Heard()
    mine, theirs = lab.study(path, shared=True), lab.study(path, shared=True)
    others = iter(range(100, 103))

    def evaluate(policy):
        seed = next(others, None)
        if seed is not None:
            drawn = lab.Draws(seed).ask()
            theirs.append(lab.lookup(drawn))
        return lab.lookup(policy)

    with telling([heard], mine) as told:
        loop.run(lab.problem(), lab.Draws(), evaluate, mine, trials=8, on_trial=told)
    assert [e.number for e in heard.trials] == list(range(len(mine.evaluations))) and len(heard.trials) >= 8
    assert sum(e.proposer == "" for e in heard.trials) == 3


def test_the_log_names_each_trial_and_the_end(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="automc")
    search(lab.study(tmp_path / "lab.journal"), [], trials=2)
    said = [r.getMessage() for r in caplog.records if r.name == "automc"]
    assert said[0].endswith("lab.journal begins: no trials yet")
    assert [line.split(",")[1] for line in said[1:3]] == [f" trial {n} by draws: ok" for n in range(2)]
    assert said[3].startswith("Study lab: done; 2 ok, best is trial ")


def test_callbacks_are_registered_by_name():
    assert set(CALLBACKS) == {"events", "tensorboard", "mlflow"}
    with pytest.raises(RegistryError, match="did you mean 'mlflow'"):
        CALLBACKS.check("mlfow")
