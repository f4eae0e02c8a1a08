"""What Ray Tune trains: one policy a trial, scored one stage of the validation samples an iteration.

An actor makes its evaluator once, from what lies in the object store, and keeps it from trial to trial where Tune
reuses actors. Checkpoints, which schedulers that pause trials need, are scores by sample in a JSON file; none is
pickled.
"""

import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import tune

from automc.errors import PolicyError, told
from automc.executors.parcel import opened_in, packed
from automc.files import write_atomic
from automc.policy import Policy
from automc.scoring.evaluator import Evaluator, SampleScores
from automc.scoring.stages import Stage
from automc.scoring.stepwise import Stepwise
from automc.tuning.ledger import BROKEN, POLICY
from automc.tuning.searcher import TuneSearcher
from automc.workers import lean, travelling

CHECKPOINT = "scores.json"
LARGEST = 2**28
"""Bytes of a checkpoint."""
UNKNOWN: dict[str, Any] = {
    "score": math.nan, "metric": math.nan, "costs": {}, "samples": 0, "share": 0.0, "seconds": 0.0, "done": True,
}  # fmt: skip
"""What a trial reports before anything is known."""


def trainable(search: TuneSearcher, *, threads: int = 1, gpus: float = 0.0) -> type[tune.Trainable]:
    """A `ray.tune.Trainable` that scores what `search` suggests: `tune.Tuner(automc.trainable(search), ...)`.

    A trial reports `score`, `metric` and `costs`, `samples` seen and their `share` of all, `state` and `reason`. Its
    iterations are the search's stages, the last one all samples; schedulers take `training_iteration` or `samples` for
    time. An actor owns a CPU for each of its `threads` of torch, and a share of a GPU, without which it sees none. Give
    TuneConfig `reuse_actors=True`: to set an actor up takes longer than most trials.
    """
    scoring = lean(search.ledger.setting.scoring)
    scoring = replace(scoring, cache=None if scoring.cache is None else scoring.cache.absolute())  # actors go elsewhere
    with travelling():
        parcel = packed(scoring.evaluator)
        path = tuple(sys.path)
    parts = Parts(np.frombuffer(parcel.read(), dtype=np.uint8), parcel.tensors, path, threads)
    parcel.close()
    given = tune.with_parameters(PolicyTrainable, parts=parts)
    made_so: type[tune.Trainable] = tune.with_resources(given, {"cpu": threads, "gpu": gpus})
    return made_so


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """What an actor makes its evaluator from."""

    parcel: NDArray[np.uint8]
    tensors: int
    """How many of the parcel's bytes are tensors."""
    path: tuple[str, ...]
    """Where modules are found."""
    threads: int

    def evaluator(self) -> Evaluator:
        """The evaluator, in a process that is set up for it."""
        sys.path += [folder for folder in self.path if folder not in sys.path]
        torch.set_num_threads(self.threads)
        warnings.simplefilter("ignore")  # the driver has said it already
        memory = bytearray(self.parcel)  # what lies in the object store cannot be written to, and a model may do so
        made: Evaluator = opened_in(memory, self.tensors)()
        return made


class PolicyTrainable(tune.Trainable):
    """Scores the policy in its config; `automc.trainable` gives it what it needs."""

    def setup(self, config: dict[str, Any], parts: Parts | None = None) -> None:
        """Makes the evaluator, once an actor."""
        assert parts is not None  # `trainable` sees to it
        self._evaluator: Evaluator | None = None
        try:
            self._evaluator = parts.evaluator()
        except Exception as error:  # a model's own code may run here
            self._said = told(error)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins with another policy."""
        self._steps: Stepwise | None = None
        if self._evaluator is None:
            return True
        try:
            policy = Policy.from_json(str(new_config.get(POLICY)))
            self._evaluator.costs(policy)
        except PolicyError as error:
            self._said = str(error)
        else:
            self._steps, self._said = Stepwise(self._evaluator, policy), ""
        return True

    def step(self) -> dict[str, Any]:
        """Scores one stage."""
        if self._steps is None:
            return UNKNOWN | {"state": BROKEN if self._evaluator is None else "failed", "reason": self._said}
        found = self._steps.step()
        scores = {"score": found.score, "metric": found.metric}
        return UNKNOWN | {
            **{name: value for name, value in scores.items() if value is not None},
            "costs": dict(found.costs),
            "samples": self._steps.all if found.ok else self._steps.seen,
            "share": found.share,
            "state": found.state,
            "reason": found.reason,
            "seconds": found.seconds,
            "done": found.state != "pruned",
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the scores so far."""
        steps = self._steps
        document = {} if steps is None else {"policy": steps.policy.digest, "scores": _written(steps.found)}
        write_atomic(Path(checkpoint_dir, CHECKPOINT), json.dumps(document).encode())

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from scores so far; those of another policy, as a scheduler may hand over, count for nothing."""
        if self._steps is not None:
            self._steps = Stepwise(self._steps.evaluator, self._steps.policy, _read(checkpoint, self._steps))


def _written(found: Sequence[SampleScores]) -> list[list[list[float]]]:
    """Scores as JSON has them, to the last bit."""
    return [[part.score.tolist(), part.metric.tolist()] for part in found]


def _read(folder: str, steps: Stepwise) -> list[SampleScores]:
    """The scores in a checkpoint, but for the last stage; none where it is broken, or of another policy or samples."""
    path = Path(folder, CHECKPOINT)
    try:
        document = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(document, dict) or document.get("policy") != steps.policy.digest:
        return []
    entries, stages = document.get("scores"), steps.evaluator.stages[:-1]
    if not isinstance(entries, list) or not all(map(_fits, entries, stages)):
        return []
    columns = [[torch.tensor(column, dtype=torch.float64) for column in entry] for entry in entries[: len(stages)]]
    return [SampleScores(*both) for both in columns]


def _fits(entry: Any, stage: Stage) -> bool:
    """Whether an entry of a checkpoint is two finite numbers for each sample of a stage."""
    if not isinstance(entry, list) or [len(c) if isinstance(c, list) else -1 for c in entry] != [len(stage.rows)] * 2:
        return False
    return all(type(x) in (int, float) and math.isfinite(x) for column in entry for x in column)
