"""A policy is claimed by one search at a time, and by none that is gone."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automc import claims, journal
from automc.claims import Claims, Owner
from automc.evaluation import Evaluation
from tests.study import lab


def make(path: Path) -> Claims:
    return Claims(journal.open_storage(path, writing=True), "lab", str(path))


def nothing() -> Sequence[Evaluation]:
    return ()


def as_if_elsewhere(found: Claims, host: str = "elsewhere") -> Claims:
    found.owner = replace(found.owner, host=host)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.journal"


def test_the_first_claim_wins_and_holds_until_it_is_settled(path: Path) -> None:
    first, second = make(path), make(path)
    assert first.take("a", 10, nothing) == "won"
    assert second.take("a", 10, nothing) == "taken" == first.take("a", 10, nothing)
    assert second.take("b", 10, nothing) == "won"
    with second.alive():
        pass
    assert first.take("b", 10, nothing) == "won"  # it was given up, not recorded


def test_what_is_recorded_is_taken_for_good(path: Path) -> None:
    first, second = make(path), make(path)
    done = lab.lookup(lab.draw(np.random.default_rng(0)))
    digest = done.policy.digest
    assert first.take(digest, 10, nothing) == "won"
    first.done(digest)
    assert second.take(digest, 10, lambda: (done,)) == "taken"


def test_claims_and_trials_together_are_no_more_than_wanted(path: Path) -> None:
    first, second = make(path), make(path)
    done = lab.lookup(lab.draw(np.random.default_rng(0)))
    verdicts = [first.take("a", 3, lambda: (done,)), second.take("b", 3, lambda: (done,))]
    assert verdicts == ["won", "won"] and second.take("c", 3, lambda: (done,)) == "enough"
    first.done("a")
    assert second.take("c", 3, lambda: (done, done)) == "enough"  # `a` is recorded, and counts once
    assert second.take("c", 4, lambda: (done, done)) == "won"


def test_of_many_at_once_each_policy_has_one_winner(path: Path) -> None:
    won: Counter[str] = Counter()

    def drive(own: Claims) -> None:
        for n in range(25):
            if own.take(f"policy {n}", 20, nothing) == "won":
                won[f"policy {n}"] += 1

    threads = [threading.Thread(target=drive, args=(make(path),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(won.values()) == {1} and len(won) == 20


def test_a_claim_of_a_process_that_is_gone_counts_for_nothing(path: Path) -> None:
    make(path)
    code = (
        "import os, sys; from pathlib import Path; from tests.sharing.test_claims import make, nothing\n"
        "print(make(Path(sys.argv[1])).take('a', 10, nothing), flush=True); os._exit(9)"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.stdout == "won\n"
    mine = make(path)
    assert not mine.others()
    assert mine.take("a", 1, nothing) == "won"


def test_a_number_that_another_process_has_now_is_not_the_owner() -> None:
    here = Owner.here()
    assert not here.gone
    assert replace(here, started="12345").gone
    assert not replace(here, host="elsewhere", started="12345").gone


def test_one_on_another_host_counts_until_it_is_silent_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("automc.claims.time.monotonic", lambda: now[0])
    far, near = as_if_elsewhere(make(path)), make(path)
    assert far.take("a", 10, nothing) == "won"
    assert near.others()
    now[0] += claims.SILENCE - 1
    assert near.take("a", 10, nothing) == "taken"
    far._storage.set_study_user_attr(far._study, far.owner.token, 7)  # a sign of life
    assert near.others()
    now[0] += claims.SILENCE - 1
    assert near.others()
    now[0] += 2
    assert not near.others() and near.take("a", 10, nothing) == "won"


def test_signs_of_life_are_given_while_it_is_alive_and_not_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    own, heard = make(path), threading.Event()
    plain = own._storage.set_study_user_attr

    def listen(study: int, key: str, value: object) -> None:
        plain(study, key, value)
        if key == own.owner.token and value == 3:
            heard.set()

    monkeypatch.setattr(own._storage, "set_study_user_attr", listen)
    with own.alive():
        assert heard.wait(30)
    assert threading.active_count() == 1 or all("beat" not in t.name for t in threading.enumerate())


def test_each_search_has_a_place_in_the_order_they_came(path: Path) -> None:
    assert [make(path).joined() for _ in range(3)] == [0, 1, 2]
