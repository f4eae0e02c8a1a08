"""One search of several on a shared study, as a process: storage, seed, trials, seconds a trial, and how it shares."""

import sys
import time
from pathlib import Path

from automc import loop
from automc.evaluation import Evaluation
from automc.policy import Policy
from tests.study import lab


def main(where: str, seed: str, trials: str, seconds: str, how: str) -> None:
    def evaluate(policy: Policy) -> Evaluation:
        time.sleep(float(seconds))
        return lab.lookup(policy)

    study = lab.study(where if "://" in where else Path(where), shared=how == "shared")
    loop.run(lab.problem(), lab.Draws(study.seed_of(int(seed))), evaluate, study, trials=int(trials))


if __name__ == "__main__":
    main(*sys.argv[1:])
