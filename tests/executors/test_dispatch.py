"""Which job is whose turn: nothing is lost, nothing comes twice, and results come in the order submitted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from automc.executors.dispatch import ATTEMPTS, Dispatch

Result = tuple[str, int, str, float]


def lost(job: int, reason: str, seconds: float) -> Result:
    return ("lost", job, reason, seconds)


class Turns(RuleBasedStateMachine):
    """Any order of submitting, handing out, dying, giving up and finishing, beside a model in plain lists."""

    @initialize()
    def begin(self) -> None:
        self.dispatch: Dispatch[int, Result] = Dispatch(lost)
        self.waiting: list[int] = []
        self.out: list[int] = []
        self.deaths: dict[int, int] = {}
        self.results: dict[int, Result] = {}
        self.submitted = self.returned = 0

    @rule()
    def submit(self) -> None:
        self.dispatch.submit(self.submitted * 10)
        self.waiting.append(self.submitted)
        self.submitted += 1

    @rule()
    def hand_out(self) -> None:
        found = self.dispatch.hand_out()
        if not self.waiting:
            assert found is None
            return
        number = self.waiting.pop(0)
        assert found == (number, number * 10)
        self.out.append(number)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(("done", "died", "given up")))
    def end(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(self.out))
        self.out.remove(number)
        before = self.deaths.get(number, 0)
        if how == "done":
            self.results[number] = ("done", number * 10, "", 0.0)
            self.dispatch.done(number, self.results[number])
        elif how == "given up":
            self.dispatch.give_up(number, "too late", 2.0)
            self.results[number] = ("lost", number * 10, "too late", before + 2.0)
        else:
            self.dispatch.died(number, "SIGKILL", 1.0)
            self.deaths[number] = before + 1
            if before + 1 < ATTEMPTS:
                self.waiting.insert(0, number)
            else:
                said = f"It took {ATTEMPTS} workers down with it (SIGKILL)."
                self.results[number] = ("lost", number * 10, said, float(ATTEMPTS))

    @precondition(lambda self: self.returned in self.results)
    @rule()
    def take(self) -> None:
        assert self.dispatch.next() == self.results.pop(self.returned)
        self.returned += 1

    @invariant()
    def the_oldest_is_due_once_it_is_there(self) -> None:
        if hasattr(self, "dispatch"):
            assert self.dispatch.due == (self.returned in self.results)


TestTurns = Turns.TestCase


@given(st.lists(st.sampled_from(("SIGKILL", "exit status 9", "SIGSEGV")), min_size=ATTEMPTS, max_size=ATTEMPTS))
def test_a_deadly_job_says_each_reason_once_in_the_order_it_came(reasons: list[str]) -> None:
    dispatch: Dispatch[int, Result] = Dispatch(lost)
    dispatch.submit(7)
    for reason in reasons:
        assert not dispatch.due
        assert dispatch.hand_out() == (0, 7)
        dispatch.died(0, reason, 0.5)
    assert dispatch.hand_out() is None
    said = "; ".join(sorted(set(reasons), key=reasons.index))
    assert dispatch.next() == ("lost", 7, f"It took {ATTEMPTS} workers down with it ({said}).", 0.5 * ATTEMPTS)


def test_what_was_taken_is_forgotten() -> None:
    dispatch: Dispatch[int, Result] = Dispatch(lost)
    for job in range(1000):
        dispatch.submit(job)
        number, _ = dispatch.hand_out() or (-1, None)
        dispatch.done(number, ("done", job, "", 0.0))
        assert dispatch.next()[1] == job
    assert not dispatch._tickets and not dispatch._waiting
    with pytest.raises(KeyError):
        dispatch.next()
