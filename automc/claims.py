"""Who is scoring which policy, where several searches share one study.

A claim is a running trial of a study beside the shared one. A storage numbers trials one after the other and shows each
to whoever adds a later one, so that of two claims of one policy the lower number wins, on one host or on several. A
claim of a search that is no longer there counts for nothing: on this host its process is gone, on another its sign of
life has not changed for a minute. The shared study itself holds finished trials alone.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from automc.evaluation import Evaluation
from automc.journal import BROKEN
from automc.storage import CLAIMS, patiently, readable_errors

T = TypeVar("T")
Verdict = Literal["won", "taken", "enough"]
BEAT, SILENCE = 15.0, 60.0
"""Seconds between signs of life, and after how many without one a search on another host counts as gone."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One search of those that share a study."""

    host: str
    process: int
    started: str
    """When the process started, as the system counts: numbers of processes are used again."""
    token: str

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex[:12])

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; of another host that cannot be told."""
        return self.host == socket.gethostname() and _started(self.process) != self.started


class Claims:
    """The claims on policies of one study, and this search's own."""

    def __init__(self, storage: BaseStorage, study: str, where: str) -> None:
        """where: the storage's path or URL."""
        self._storage, self._where = storage, where
        self._study = _found_or_made(storage, study + CLAIMS)
        self.owner = Owner.here()
        self._mine: dict[str, int] = {}
        """By digest of a policy, the claim's trial."""
        self._beats: dict[str, tuple[int, float]] = {}
        """By token of an owner elsewhere, the last sign of life and when it was first seen."""

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """While this search gives signs of life; what it has claimed and not recorded is free afterwards."""
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            for digest in list(self._mine):
                self._settle(digest, TrialState.FAIL)

    def joined(self) -> int:
        """Takes note that this search takes part, and says how many have done so before."""
        template = create_trial(state=TrialState.FAIL, user_attrs={"joined": self.owner.token})
        trial = self._done(lambda: self._storage.create_new_trial(self._study, template))
        before = self._done(lambda: self._storage.get_all_trials(self._study, False, (TrialState.FAIL,)))
        number = self._done(lambda: self._storage.get_trial_number_from_id(trial))
        return sum("joined" in t.user_attrs and t.number < number for t in before)

    def take(self, digest: str, trials: int, recorded: Callable[[], Sequence[Evaluation]]) -> Verdict:
        """Claims a policy: won, or taken by another or recorded already, or enough, where all `trials` are recorded or
        claimed. `recorded` reads anew what the study holds.
        """
        template = create_trial(
            state=TrialState.RUNNING, user_attrs={"policy": digest, "owner": json.dumps(asdict(self.owner))}
        )
        trial = self._done(lambda: self._storage.create_new_trial(self._study, template))
        self._mine[digest] = trial
        number = self._done(lambda: self._storage.get_trial_number_from_id(trial))
        held = self._held(number)
        evaluations = recorded()  # read last: whoever scored a policy records it before the claim ends
        done = {e.policy.digest for e in evaluations}
        if digest in done | held:
            verdict: Verdict = "taken"
        else:
            verdict = "enough" if len(evaluations) + len(held - done) >= trials else "won"
        if verdict != "won":
            self._settle(digest, TrialState.FAIL)
        return verdict

    def done(self, digest: str) -> None:
        """Takes note that a claimed policy is recorded."""
        if digest in self._mine:
            self._settle(digest, TrialState.COMPLETE)

    def others(self) -> bool:
        """Whether another search that is there is scoring a policy."""
        return bool(self._held(None) - self._mine.keys())

    def _held(self, before: int | None) -> set[str]:
        """Policies claimed under a lower number, or any, by searches that are there."""
        states = (TrialState.RUNNING,)
        running = self._done(lambda: self._storage.get_all_trials(self._study, False, states))
        beats = self._done(lambda: self._storage.get_study_user_attrs(self._study))
        found = [t for t in running if before is None or t.number < before]
        return {policy for t in found if (policy := self._claimed(t, beats)) is not None}

    def _claimed(self, trial: FrozenTrial, beats: dict[str, int]) -> str | None:
        """The policy of a claim that counts; what is no claim, whoever wrote it, counts for nothing."""
        try:
            owner = Owner(**json.loads(trial.user_attrs["owner"]))
            return str(trial.user_attrs["policy"]) if self._there(owner, beats) else None
        except BROKEN:
            return None

    def _there(self, owner: Owner, beats: dict[str, int]) -> bool:
        if owner.host == self.owner.host:
            return not owner.gone
        now, beat = time.monotonic(), beats.get(owner.token, 0)
        before, since = self._beats.get(owner.token, (-1, now))
        if beat != before:
            since = now
        self._beats[owner.token] = beat, since
        return now - since < SILENCE

    def _settle(self, digest: str, state: TrialState) -> None:
        values = [0.0] if state == TrialState.COMPLETE else None
        trial = self._mine.pop(digest)

        def settle() -> None:
            with contextlib.suppress(UpdateFinishedTrialError):  # it was settled, and only the answer was lost
                self._storage.set_trial_state_values(trial, state, values)

        self._done(settle)

    def _done(self, action: Callable[[], T]) -> T:
        with readable_errors(self._where):
            return patiently(self._where, action)

    def _beat(self, ended: threading.Event) -> None:
        count = 0
        while not ended.wait(BEAT if count else 0.0):
            count += 1
            with contextlib.suppress(Exception):  # a storage that is away for a while is the loop's to wait for
                self._storage.set_study_user_attr(self._study, self.owner.token, count)


def _found_or_made(storage: BaseStorage, name: str) -> int:
    try:
        return storage.create_new_study([StudyDirection.MINIMIZE], name)
    except DuplicatedStudyError:
        return storage.get_study_id_from_name(name)


def _started(process: int) -> str:
    """When a process started; empty where there is none."""
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else numbers[18]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass  # it is somebody else's
    return "unknown" if not Path("/proc/self/stat").exists() else ""
