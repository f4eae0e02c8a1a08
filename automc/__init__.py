"""automc: search, layer by layer, how to compress a PyTorch model within a budget.

Importing this package loads nothing heavy: every public name is resolved on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automc.api import apply, distill, inspect, policy_for, search
    from automc.artifact import save
    from automc.budget import Budget
    from automc.deployment.deploy import deploy
    from automc.errors import AutomcError
    from automc.evaluation import Evaluation
    from automc.leaving.export import export
    from automc.policy import Policy
    from automc.report.bench import bench
    from automc.saved import cost, load
    from automc.study import Study
    from automc.task import Task
    from automc.tuning.searcher import tune_searcher
    from automc.tuning.trainable import trainable
    from automc.workers import Workers

__version__ = "0.1.0"

_EXPORTS = {
    "AutomcError": "automc.errors",
    "Budget": "automc.budget",
    "Evaluation": "automc.evaluation",
    "Policy": "automc.policy",
    "Study": "automc.study",
    "Task": "automc.task",
    "Workers": "automc.workers",
    "apply": "automc.api",
    "bench": "automc.report.bench",
    "cost": "automc.saved",
    "deploy": "automc.deployment.deploy",
    "distill": "automc.api",
    "export": "automc.leaving.export",
    "inspect": "automc.api",
    "load": "automc.saved",
    "policy_for": "automc.api",
    "profile": "automc.profiling",
    "save": "automc.artifact",
    "search": "automc.api",
    "trainable": "automc.tuning.trainable",
    "tune_searcher": "automc.tuning.searcher",
}

__all__ = [
    "AutomcError",
    "Budget",
    "Evaluation",
    "Policy",
    "Study",
    "Task",
    "Workers",
    "apply",
    "bench",
    "cost",
    "deploy",
    "distill",
    "export",
    "inspect",
    "load",
    "policy_for",
    "profile",
    "save",
    "search",
    "trainable",
    "tune_searcher",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'automc' has no attribute {name!r}")
    # search is also a submodule; the function is what `automc.search` means to a user.
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
