"""The report beside a compressed model: scores on data the search never saw, costs, bytes, measured latency."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from automc import artifact
from automc.report import latency, text
from automc.saved import cost
from automc.scoring.evaluator import Split
from automc.setting import evaluator_of
from automc.task import Task


def report(task: Task, small: nn.Module, origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything about `small` against the task's dense model; made once, after the search."""
    split = split_of(task)
    evaluator = evaluator_of(task)
    modules = {"dense": task.model, "compressed": small}
    example = task.example_inputs
    return {
        "task": task.name,
        "split": split if task.evaluate is None else "evaluate",
        **(origin or {}),
        **{name: {"score": evaluator.score(m, split), **_costs(m, task)} for name, m in modules.items()},
        "latency": latency.compare(modules, example),
    }


def split_of(task: Task) -> Split:
    """The split a report is made on: test, or validation where the task has no test data."""
    return "test" if task.test else "validation"


def score_of(found: Mapping[str, Any]) -> float | None:
    """The compressed model's score in a report, whoever wrote it; None where there is none."""
    compressed = found.get("compressed")
    score = compressed.get("score") if isinstance(compressed, Mapping) else None
    return float(score) if isinstance(score, (int, float)) and abs(score) < 1e300 else None


def _costs(module: nn.Module, task: Task) -> dict[str, Any]:
    counted = cost(module, task.example_inputs)
    return {"macs": counted["macs"], "params": counted["params"], "bytes": len(artifact.serialized(module))}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The report in a few lines for the terminal."""
    dense, small = found["dense"], found["compressed"]
    result = [f"score on {found['split']}: {text.score(small['score'])} (dense {text.score(dense['score'])})"]
    for name, metric in (("macs", "macs"), ("params", "params"), ("bytes", "size")):
        of_dense = text.share(small[name], dense[name])
        result.append(f"{name}: {text.amount(metric, small[name])} of {text.amount(metric, dense[name])} ({of_dense})")
    for key, timed in found["latency"].items():
        if key.startswith("batch_"):
            fast, slow = timed["compressed"], timed["dense"]
            result.append(
                f"latency, {key.replace('_', ' ')}: {1e3 * fast['median']:.2f} ms, dense {1e3 * slow['median']:.2f} ms "
                f"({slow['median'] / fast['median']:.2f}x on {found['latency']['threads']} threads; "
                f"{fast['form']} against {slow['form']})"
            )
    return result
