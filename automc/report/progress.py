"""The bar of a running search: best score, its costs, trials a second, time left; plain lines where no terminal is."""

import contextlib
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from automc.errors import StudyError
from automc.evaluation import Evaluation
from automc.report import text
from automc.study import Study

_LINE_EVERY_S = 30.0


class Bar(contextlib.AbstractContextManager["Bar"]):
    """Called with each recorded evaluation."""

    def __init__(self, study: Study, trials: int, seconds: float | None, console: Console | None = None) -> None:
        self.study, self.trials, self.seconds = study, trials, seconds
        self.console = console or Console(stderr=True)
        columns = (TextColumn("search"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[news]}"))
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._begun = len(study.evaluations)
        self._start = self._spoken = time.monotonic()
        self._task = self._progress.add_task("search", total=trials, completed=self._begun, news=self.news())

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, evaluation: Evaluation) -> None:
        """Moves the bar on."""
        done = len(self.study.evaluations)
        self._progress.update(self._task, completed=done, news=self.news())
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._spoken >= _LINE_EVERY_S or done == self.trials):
            self._spoken = now
            self.console.print(f"{done}/{self.trials} {self.news()}", soft_wrap=True)

    def news(self) -> str:
        """The best evaluation so far, the pace, and the time left."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        done = len(self.study.evaluations)
        pace = (done - self._begun) / elapsed
        left = [(self.trials - done) / pace] if pace else []
        left += [] if self.seconds is None else [self.seconds - elapsed]
        remaining = f"{_clock(min(left))} left" if left else "starting"
        try:
            best = self.study.best
        except StudyError:
            return f"no feasible trial yet, {pace:.2f} trials/s, {remaining}"
        costs = text.costs_line(best, self.study.meta["dense"]["costs"], self.study.costs)
        stopped = sum(e.state == "pruned" for e in self.study.evaluations)
        early = f"{stopped} of {done} stopped early, " if stopped else ""
        return f"best {text.score(best.score)} at {costs}, {early}{pace:.2f} trials/s, {remaining}"


def _clock(seconds: float) -> str:
    whole = max(int(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
