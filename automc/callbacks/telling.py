"""Tells callbacks of a search, whatever becomes of them or of it; the log is told as well."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from automc.callbacks.callback import Callback, Ending
from automc.callbacks.figures import best_of, counts, place
from automc.errors import told
from automc.evaluation import Evaluation
from automc.study import Study

_log = logging.getLogger("automc")


@contextlib.contextmanager
def telling(callbacks: Sequence[Callback], study: Study) -> Iterator[Callable[[Evaluation], None]]:
    """While a search runs: what this gives is to be called with each recorded evaluation."""
    left = list(callbacks)

    def tell(what: Callable[[Callback], None]) -> None:
        for callback in tuple(left):
            try:
                what(callback)
            except Exception as error:  # whatever a stranger's code may raise
                left.remove(callback)
                name = type(callback).__name__
                _log.warning("%s is told no more; it stopped with %s; the search goes on.", name, told(error))

    def trial(evaluation: Evaluation) -> None:
        _log.info("Study %s, %s", study.name, _line(evaluation))
        tell(lambda callback: callback.trial(study, evaluation))

    def end(how: Ending, reason: str = "") -> None:
        _log.info("Study %s: %s%s; %s", study.name, how, f", {reason}" if reason else "", _sum(study))
        tell(lambda callback: callback.end(study, how, reason))

    try:
        _log.info("Study %s in %s begins: %s", study.name, place(study), _sum(study))
        tell(lambda callback: callback.begin(study))
        yield trial
    except Exception as error:
        end("failed", told(error))
        raise
    except BaseException:  # Ctrl-C, or SIGTERM
        end("stopped")
        raise
    end("done")


def _line(evaluation: Evaluation) -> str:
    """One trial in one line."""
    score = "none" if evaluation.score is None else f"{evaluation.score:.6g}"
    costs = ", ".join(f"{name} {value:g}" for name, value in evaluation.costs)
    why = f": {evaluation.reason}" if evaluation.reason else ""
    return f"trial {evaluation.number} by {evaluation.proposer}: {evaluation.state}, score {score}, {costs}{why}"


def _sum(study: Study) -> str:
    """What a study holds, in a few words."""
    best = best_of(study)
    found = ", ".join(f"{count} {state}" for state, count in counts(study).items() if count)
    return f"{found or 'no trials yet'}" + ("" if best is None else f", best is trial {best.number}")
