"""A search in a process of its own, for killing: `python -m tests.study.worker JOURNAL TRIALS SIDELOG [PAUSE]`.

The side log has a line before and after each record, flushed at once.
"""

import os
import sys
import time
from pathlib import Path

from automc import loop
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.study import Study
from tests.study import lab


class Watched(Study):
    """A study that says in the side log what it is about to record and what it has recorded."""

    log: int

    def record(self, evaluation: Evaluation) -> Evaluation:
        os.write(self.log, f"before {evaluation.policy.digest}\n".encode())
        recorded = super().record(evaluation)
        os.write(self.log, f"after {evaluation.policy.digest} {recorded.number}\n".encode())
        return recorded


def main() -> None:
    path, trials, side = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0

    def evaluate(policy: Policy) -> Evaluation:
        time.sleep(pause)
        return lab.lookup(policy)

    study = Watched.create(path, "lab", lab.meta(), lab.AXES)
    assert isinstance(study, Watched)
    study.log = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    print("ready", flush=True)
    loop.run(lab.problem(), lab.Draws(), evaluate, study, trials=trials)
    print("done", flush=True)


if __name__ == "__main__":
    main()
