"""The study: every evaluation of one search, kept as an Optuna study, so `optuna-dashboard` opens it.

Each finished trial is appended whole, by one write: an Optuna journal file by default, SQLite or PostgreSQL by URL.
Objectives are the score (maximised) and each limited cost (minimised). A trial's parameters are the decisions as
people read them; its user attributes are the evaluation's JSON form, from which a study is read back.
"""

import contextlib
import copy
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automc import description, pareto
from automc.claims import Claims
from automc.distributions import distributions
from automc.errors import AutomcError, StudyError
from automc.evaluation import Evaluation
from automc.space import Axis, Value
from automc.storage import behind, find_name, making, open_storage, owned, patiently, quiet, readable_errors
from automc.visible import brief, visible

_SETTLED = ("fingerprint", "limits", "axes", "recipe", "score", "metric", "latency")
"""What may not change when a search goes on: scores or costs would no longer compare.

Limits, not the budget's words: 1MiB and 1048576 bytes are one. Stages of a race may change: fronts and the best compare
full scores alone, and what a full score is does not depend on them. So may `keep` and `screen`, which only say who is
scored in full.
"""
_SAME_SCORE = 1e-4
"""How far apart, relatively, scores of the dense model by the same metric and data may lie.

Another processor or number of threads moves outputs by a few parts in ten million, and the mean of scores hardly more;
of other samples or labels one among thousands is seen.
"""
_RESERVED = "automc"


class Study:
    """All evaluations of one search, in the order recorded; made by `create` or `open`."""

    def __init__(self, study: optuna.Study, storage: str, axes: Sequence[Axis], *, shared: bool = False) -> None:
        self.optuna = study
        """The Optuna study underneath, for its plots and importances."""
        self.name = study.study_name
        self.storage = storage
        """Path of the journal file, or URL."""
        self.axes = tuple(axes)
        self.shared = shared
        """Whether other searches may write to it at the same time."""
        with readable_errors(storage), quiet():
            self.claims = Claims(study._storage, self.name, storage) if shared else None
        """Which policies are being scored, by whom."""
        self._owning = False
        self._ranges = distributions(self.axes)
        self.refresh()

    @classmethod
    def create(
        cls,
        storage: str | Path | None,
        name: str,
        meta: Mapping[str, Any],
        axes: Sequence[Axis],
        *,
        shared: bool = False,
    ) -> "Study":
        """The study of that name, made if it is new; `meta` says what is searched and must fit what is there.

        `meta` holds at least fingerprint, budget, recipe, and limits (absolute, by cost); a study of another model,
        budget, space, recipe or metric, or with another score of the dense model, raises StudyError. With `shared`
        other searches that say so, too, may work on it at the same time.
        """
        where = str(storage) if storage is not None else str(default_path(name))
        meta = json.loads(json.dumps({**meta, "axes": [description.written(a) for a in axes]}))
        with readable_errors(where), quiet(), making(where, shared=shared):
            found = _found_or_made(open_storage(where, create=True), name, len(meta["limits"]))
            if _RESERVED in found.user_attrs:
                _check_same(found.user_attrs, meta, name, where)
            else:
                _describe(found, meta)
        return cls(found, where, axes, shared=shared)

    @classmethod
    def open(cls, storage: str | Path, name: str | None = None, *, usual: str | None = None) -> "Study":
        """An existing study; `name` may be left out where the storage holds one, or one that is called `usual`."""
        where = str(storage)
        with readable_errors(where), quiet():
            backend = open_storage(where, create=False)
            found = optuna.load_study(study_name=find_name(backend, where, name, usual), storage=backend)
            if _RESERVED not in found.user_attrs:
                raise StudyError(f"A study must be automc's; {found.study_name!r} in {where} is not: name another.")
            axes = description.axes(found.user_attrs.get("axes"), found.study_name, where)
        return cls(found, where, axes)

    def refresh(self) -> None:
        """Reads anew what the storage holds."""
        with readable_errors(self.storage):
            trials = self.optuna.get_trials(deepcopy=False)
            self._meta = description.described(self.optuna.user_attrs, self.name, self.storage)
            evaluations = self._read(trials)
        self._count, self._evaluations = len(trials), evaluations

    def news(self) -> tuple[Evaluation, ...]:
        """What was recorded since this study was last read, by whomever, in order."""
        with readable_errors(self.storage):
            trials = patiently(self.storage, lambda: self.optuna.get_trials(deepcopy=False))[self._count :]
        found = self._read(trials)
        self._count += len(trials)
        self._evaluations += found
        return tuple(found)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Every recorded evaluation, in order."""
        return tuple(self._evaluations)

    @property
    def meta(self) -> dict[str, Any]:
        """What is searched: model fingerprint, task, budget, limits, dense score and costs, seed, versions."""
        return copy.copy(self._meta)

    @property
    def costs(self) -> tuple[str, ...]:
        """The limited costs: the objectives besides the score."""
        return tuple(self._meta["limits"])

    @property
    def best(self) -> Evaluation:
        """The feasible evaluation with the best score, of equal ones the cheapest, then the earliest."""
        feasible = [e for e in self._evaluations if e.ok and e.score is not None]
        if not feasible:
            failed = [e.reason for e in self._evaluations if e.reason and not e.scored]
            why = f"the last one failed with: {failed[-1]}" if failed else "search some trials first."
            count = len(self._evaluations)
            raise StudyError(f"A best trial must be feasible; none of {count} in {self.name!r} is: {why}")
        return min(feasible, key=lambda e: (-(e.score or 0.0), *(e.cost(c) for c in self.costs), e.number))

    def cheapest(self, drop: float, metric: str | None = None) -> Evaluation:
        """The feasible evaluation of least cost whose score is at most `drop` below the dense model's.

        `drop` is in the score's own unit, `metric` the first limited cost unless named; of equally cheap ones the best,
        then the earliest. StudyError where none is so near, with the smallest drop there is.
        """
        if not drop >= 0:
            raise StudyError(f"A drop must be a number from 0 up; {drop} is not: give how much score may be lost.")
        metric = metric or self.costs[0]
        dense = float(self._meta["dense"]["score"])
        least = dense - drop - 1e-9 * max(1.0, abs(dense))  # 0.93 - 0.06 is above 0.87 in binary
        near = [e for e in self._evaluations if e.ok and e.score is not None and e.score >= least]
        if not near:
            smallest = dense - (self.best.score or 0.0)
            raise StudyError(
                f"A trial must be within a drop of {drop:g} of the dense score {dense:g}; the smallest drop in "
                f"{self.name!r} is {smallest:.4g}: allow more, search on, or raise the budget."
            )
        return min(near, key=lambda e: (e.cost(metric), -(e.score or 0.0), e.number))

    def trial(self, which: str | int = "best") -> Evaluation:
        """The evaluation with that number, or the best one."""
        if which == "best":
            return self.best
        for evaluation in self._evaluations:
            if str(evaluation.number) == str(which):
                return evaluation
        if not self._evaluations:
            raise StudyError(f"A study must hold trials to show one; {self.name!r} has none: search first.")
        last = max(e.number for e in self._evaluations)
        raise StudyError(
            f"A trial must be 'best' or a number from 0 to {last}; {which!r} is neither: see `automc pareto`."
        )

    def pareto(self, costs: Sequence[str] | None = None) -> list[Evaluation]:
        """The feasible evaluations no other beats in score and costs (by default the limited ones), cheapest first."""
        return pareto.front(self._evaluations, self.costs if costs is None else tuple(costs))

    def record(self, evaluation: Evaluation) -> Evaluation:
        """Appends a finished evaluation, durably, and returns it with its number; each one can be recorded once.

        During a search the disk takes it while that goes on (see `searching`).
        """
        if evaluation.number >= 0:
            raise StudyError(f"An evaluation is recorded once; this one is trial {evaluation.number} already: drop it.")
        self.append(evaluation)
        recorded = replace(evaluation, number=self._count)
        self._count += 1
        self._evaluations.append(recorded)
        return recorded

    def seed_of(self, seed: int) -> int:
        """The seed as given, or, of searches that share a study, another one for each but the first."""
        index = 0 if self.claims is None else self.claims.joined()
        return seed if not index else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])

    def append(self, evaluation: Evaluation) -> None:
        """Appends a finished evaluation, durably, to a study that others write to as well: `news` gives its number."""
        trial, token = self._frozen(evaluation), uuid.uuid4().hex
        trial.set_user_attr("token", token)
        tried: list[bool] = []

        def add() -> None:
            if tried and any(t.user_attrs.get("token") == token for t in self.optuna.get_trials(deepcopy=False)):
                return  # it was added, and only the answer was lost
            tried.append(True)
            self.optuna.add_trial(trial)

        with readable_errors(self.storage), self._owned():
            patiently(self.storage, add)

    def note(self, key: str, value: Any) -> None:
        """Adds a fact about the whole study, such as the uniform baseline."""
        with readable_errors(self.storage), self._owned():
            self.optuna.set_user_attr(key, value)
        self._meta = description.described({**self._meta, key: value}, self.name, self.storage)

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        """While a search writes, no other search may that does not share the study; what was written is read first.

        What is recorded meanwhile is written at once, and on the disk when the next is, or the search ends.
        """
        with self._owned():
            self.refresh()
            alive = contextlib.nullcontext() if self.claims is None else self.claims.alive()
            with behind(self.storage, self.optuna._storage), alive:  # whose signs are written there, too
                yield

    def _read(self, trials: Sequence[FrozenTrial]) -> list[Evaluation]:
        """Finished trials as evaluations; those that somebody else added are left out."""
        finished = [t for t in trials if t.state.is_finished() and "policy" in t.user_attrs]
        return [self._evaluation(trial) for trial in finished]

    def _evaluation(self, trial: FrozenTrial) -> Evaluation:
        try:
            found = Evaluation.from_dict(trial.user_attrs, trial.number)
            if found.ok:
                for cost in (*self.costs, *self._meta.get("dense", {}).get("costs", {})):
                    found.cost(cost)
        except AutomcError as error:
            raise StudyError(
                f"Trial {trial.number} of {brief(self.name)} in {self.storage} must be as automc wrote it; it is not. "
                f"{error}"
            ) from error
        return found

    @contextlib.contextmanager
    def _owned(self) -> Iterator[None]:
        """Owns the storage's file, unless this study does so already."""
        if self._owning:
            yield
            return
        with owned(self.storage, shared=self.shared):
            self._owning = True
            try:
                yield
            finally:
                self._owning = False

    def _frozen(self, evaluation: Evaluation) -> FrozenTrial:
        params = _parameters(evaluation, self.axes)
        costs, limits = dict(evaluation.costs), self._meta["limits"]
        over = {c: costs[c] / bound - 1.0 for c, bound in limits.items() if math.isfinite(costs.get(c, math.nan))}
        failed = evaluation.state == "failed" or len(over) < len(limits)
        pruned = evaluation.state == "pruned"
        score = float("-inf") if evaluation.score is None else evaluation.score
        now = datetime.now()
        trial = FrozenTrial(  # `create_trial` would check all distributions once more: a millisecond for 80 decisions
            number=-1,
            trial_id=-1,
            state=TrialState.FAIL if failed else TrialState.PRUNED if pruned else TrialState.COMPLETE,
            value=None,
            values=None if failed or pruned else [score, *(costs[c] for c in limits)],
            datetime_start=now - timedelta(seconds=evaluation.seconds),
            datetime_complete=now,
            params=params,
            distributions={**self._ranges},
            user_attrs=json.loads(evaluation.to_json()),
            system_attrs={"constraints": list(over.values())},  # where optuna-dashboard 0.21 looks for them
            intermediate_values=dict(evaluation.stages),
        )
        for name, amount in over.items():
            trial.set_constraint(name, amount)
        return trial


def default_path(name: str) -> Path:
    """Where a study is kept unless a storage is named: `runs/<name>.journal` under the current directory.

    StudyError for a name that would lead out of there, or could not be seen.
    """
    if visible(name) != name or {"", ".", ".."} & set(name.replace("\\", "/").split("/")):
        raise StudyError(
            f"A study that is kept in runs/ must have a name that stays there; {brief(name)} does not: give another "
            "--study name, or say where by --storage."
        )
    return Path("runs") / f"{name}.journal"


def _parameters(evaluation: Evaluation, axes: Sequence[Axis]) -> dict[str, Value]:
    """The decisions by axis, as people read them."""
    policy = evaluation.policy
    decided = {"group": dict(policy.groups), "layer": dict(policy.layers), "block": dict(policy.blocks)}
    defaults = {"group": policy.group(""), "layer": policy.layer(""), "block": policy.block("")}
    params: dict[str, Value] = {}
    for axis in axes:
        decision = decided[axis.kind].get(axis.place, defaults[axis.kind])  # type: ignore[attr-defined]
        params[axis.key] = axis.values[axis.level(getattr(decision, axis.field))]
    return params


def _found_or_made(storage: BaseStorage, name: str, costs: int) -> optuna.Study:
    if name in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=name, storage=storage)
    directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * costs]
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def _describe(study: optuna.Study, meta: Mapping[str, Any]) -> None:
    """Writes what is searched; the version comes last, so that a study without it is known to be half made."""
    from automc import __version__

    study.set_metric_names(["score", *meta["limits"]])
    for key, value in meta.items():
        study.set_user_attr(key, value)
    study.set_user_attr(_RESERVED, __version__)


def _check_same(known: Mapping[str, Any], meta: Mapping[str, Any], name: str, where: str) -> None:
    """StudyError unless trials of a search described by `meta` compare with those of the study that is `known`."""
    for key in _SETTLED:
        before, after = known.get(key, meta.get(key)), meta.get(key)  # what an older automc left out is the same
        if _alike(before, after):
            continue
        what = {"axes": "space", "fingerprint": "model", "limits": "budget", "latency": "latency table"}.get(key, key)
        if key == "limits" and known.get("budget") != meta.get("budget"):
            before, after = known.get("budget"), meta.get("budget")
        words = {"axes": ("other decisions", "these"), "latency": ("another", "this one")}
        was, now = words.get(key) or (_short(before), _short(after))
        raise StudyError(
            f"A search must go on with the {what} it began with; study {name!r} in {where} has {was}, given {now}: "
            "repeat the first command, or give another --study name."
        )
    _check_dense(known.get("dense", {}), meta.get("dense", {}), name, where)


def _alike(before: Any, after: Any) -> bool:
    """Whether two descriptions are the same; limits to rounding, and in order, since costs are objectives."""
    if isinstance(before, Mapping) and isinstance(after, Mapping) and list(before) == list(after):
        pairs = zip(before.values(), after.values(), strict=True)
        return all(
            a == b or (isinstance(a, float) and isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=1e-12))
            for a, b in pairs
        )
    return bool(before == after) and not isinstance(before, Mapping)


def _check_dense(known: Mapping[str, Any], now: Mapping[str, Any], name: str, where: str) -> None:
    """StudyError where the dense model scores otherwise than it did; its likeness to itself says nothing of the data,
    so that the metric counts as well.
    """
    for key in ("score", "metric"):
        before, after = known.get(key), now.get(key)
        if before is None or after is None or math.isclose(before, after, rel_tol=_SAME_SCORE, abs_tol=1e-9):
            continue
        raise StudyError(
            f"A search must go on with the metric and validation data it began with; the dense model's {key} was "
            f"{before:.6g} in study {name!r} in {where} and is {after:.6g} now: give the first ones, the same at every "
            "start, or another --study name."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
