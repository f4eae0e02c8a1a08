"""A search as a file of events, one JSON object a line, for programs.

Every event has `type`, `time` (ISO 8601 with its zone) and `study`, the study's name.

| type | when | what else |
|---|---|---|
| `begin` | a search begins, or goes on | `storage`, `automc`, its version, `trials`, how many are recorded already, and what is searched: `task`, `budget`, `limits`, `space`, `searcher`, `seed`, `score`, `metric`, `recipe`, `dense` (score, metric and costs of the dense model) and more |
| `trial` | a trial was recorded | `number`; the evaluation: `policy`, `state` (ok, pruned, infeasible, failed), `score`, `costs`, `share`, `seconds`, `proposer`, `reason`, `metric`, `stages`, `predicted`; `best`: number, score, metric and costs of the best so far, or null |
| `end` | the search has ended | `how` (done, stopped, failed), `reason`, `trials`, `counts` by state, `best`, `seconds` since `begin` |

Events are appended, each written through to the file before the search goes on. A line that a kill has cut short stays,
and the next event begins a new one. While the disk is full events wait in memory, which is logged once.
"""  # noqa: E501

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from automc.callbacks.callback import Ending
from automc.callbacks.figures import best_of, counts, described, place, plain
from automc.errors import StudyError
from automc.evaluation import Evaluation
from automc.study import Study

_log = logging.getLogger("automc")


class Events:
    """Appends events to a file; StudyError where it cannot be written to."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._begun = time.monotonic()
        self._late = False
        """Whether it was said that events wait."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._left = b"\n" if _torn(self.path) else b""
            """What is yet to be written."""
        except OSError as error:
            raise StudyError(
                f"Events must go to a file that can be written; {self.path} cannot ({error.strerror}): give another."
            ) from error

    def begin(self, study: Study) -> None:
        """Says what is searched."""
        from automc import __version__

        self._begun = time.monotonic()
        where = {"storage": place(study), "automc": __version__, "trials": len(study.evaluations)}
        self._append(study, "begin", where | described(study))

    def trial(self, study: Study, evaluation: Evaluation) -> None:
        """Says what became of a trial."""
        found = {"number": evaluation.number} | json.loads(evaluation.to_json())
        self._append(study, "trial", found | {"best": _best(study)})

    def end(self, study: Study, how: Ending, reason: str) -> None:
        """Says how the search ended."""
        ended = {"how": how, "reason": reason, "trials": len(study.evaluations), "counts": counts(study)}
        seconds = round(time.monotonic() - self._begun, 3)
        self._append(study, "end", ended | {"best": _best(study), "seconds": seconds})

    def _append(self, study: Study, kind: str, what: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {"type": kind, "time": now, "study": study.name} | what
        self._left += json.dumps(plain(event), allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                while self._left:
                    self._left = self._left[file.write(self._left) :]
        except OSError as error:
            if not self._late:
                why = error.strerror or error
                _log.warning("%s cannot be written (%s); events wait in memory; the search goes on.", self.path, why)
            self._late = True


def _torn(path: Path) -> bool:
    """Whether a file, made if there is none, ends amid a line."""
    with path.open("ab+") as file:
        if not file.tell():
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _best(study: Study) -> dict[str, Any] | None:
    best = best_of(study)
    if best is None:
        return None
    return {"number": best.number, "score": best.score, "metric": best.metric, "costs": dict(best.costs)}
