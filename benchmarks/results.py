"""How every benchmark writes its figures: value, spread, seeds, processor, threads, versions, command."""

import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from automc.deployment.profile import processor

FOLDER = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any], *, seeds: Sequence[int]) -> Path:
    """Writes `benchmarks/results/NAME.json` and returns its path."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    circumstances = {
        "seeds": list(seeds),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "optuna", "numpy")},
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }
    path.write_text(json.dumps(figures | circumstances, indent=1) + "\n")
    print(f"written to benchmarks/results/{path.name}")
    return path
