"""Scores a policy: compress, then one forward pass over the validation data.

The score is that of the very module `apply` returns and `load` brings back. Convolution and batch norm are fused for
the pass, as any deployment would, the same way for all three. Searched is the task's metric, or how near the outputs
are to the dense model's (`soft`); the same pass gives both.
"""

import copy
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from automc.compression.compress import Compressor
from automc.errors import AutomcError, TaskError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Costing
from automc.scoring.soft import SOFT
from automc.task import Batch, Task

CHUNK = 100
"""Samples scored at once."""
Split = Literal["validation", "test"]


class Evaluator:
    """Evaluates policies of one task; the dense model's score and outputs are computed once.

    score: "metric" for the task's own, or one of `soft.SOFT`; an unknown one raises TaskError.
    """

    def __init__(self, task: Task, compressor: Compressor, costing: Costing, score: str = "metric") -> None:
        check_score(score)
        self.task, self.compressor, self.costing = task, compressor, costing
        self._soft = SOFT.get(score)
        self._prepared: dict[Split, tuple[Batch, ...]] = {}

    @cached_property
    def dense_score(self) -> float:
        """The dense model's metric on the validation data, or its likeness to itself, where that can be told."""
        if self._soft is None:
            return self.dense_metric
        return float(torch.cat([self._soft(x, x) for x in self._dense_outputs]).mean())

    @cached_property
    def dense_metric(self) -> float:
        """The dense model's metric on the validation data."""
        return self.score(self.task.model)

    def evaluate(self, policy: Policy) -> Evaluation:
        """Scores a policy; what goes wrong with the candidate is a failed evaluation, never an exception."""
        start = time.perf_counter()
        costs = tuple(self.costing.of_policy(policy).items())
        try:
            score, metric = self.measure(self.compressor.compress(policy))
        except (AutomcError, RuntimeError, MemoryError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            return Evaluation(policy, "failed", None, costs, seconds=time.perf_counter() - start, reason=reason)
        return Evaluation(policy, "ok", score, costs, seconds=time.perf_counter() - start, metric=metric)

    def measure(self, module: nn.Module) -> tuple[float, float]:
        """What is searched, and the task's metric, on the validation data."""
        if self._soft is None:
            metric = self.score(module)
            return metric, metric
        soft, hard = [], []
        for outputs, targets, dense in zip(
            self._outputs(module, "validation"), self._targets("validation"), self._dense_outputs, strict=True
        ):
            soft.append(self._soft(outputs, dense))
            if self.task.evaluate is None:
                hard.append(self.task.per_sample(outputs, targets).to(torch.float64))
        metric = float(self.task.evaluate(module)) if self.task.evaluate is not None else float(torch.cat(hard).mean())
        return _finite(float(torch.cat(soft).mean())), _finite(metric)

    def score(self, module: nn.Module, split: Split = "validation") -> float:
        """The task's metric of a module: the mean over samples, or what the task's own `evaluate` says."""
        if self.task.evaluate is not None:
            return _finite(float(self.task.evaluate(module)))
        return _finite(float(self.sample_scores(module, split).mean()))

    def sample_scores(self, module: nn.Module, split: Split = "validation") -> Tensor:
        """Per-sample metrics (N,), float64."""
        both = zip(self._outputs(module, split), self._targets(split), strict=True)
        return torch.cat([self.task.per_sample(outputs, targets).to(torch.float64) for outputs, targets in both])

    @torch.no_grad()
    def _outputs(self, module: nn.Module, split: Split) -> Iterator[Any]:
        """A module's outputs, chunk by chunk."""
        ready = fused(module)
        for inputs, _ in self._chunks(split):
            outputs = ready(*inputs)
            if isinstance(outputs, Tensor) and not bool(torch.isfinite(outputs).all()):
                raise TaskError(
                    "Outputs must be finite; this model gives NaN or infinity: check its weights and inputs."
                )
            yield outputs

    def _targets(self, split: Split) -> Iterator[Tensor]:
        return (targets for _, targets in self._chunks(split))

    @cached_property
    def _dense_outputs(self) -> list[Tensor]:
        found = list(self._outputs(self.task.model, "validation"))
        if not all(isinstance(x, Tensor) for x in found):
            raise TaskError(
                "A model scored by its likeness to the dense one must give one tensor; this one gives a "
                f"{type(found[0]).__name__}: score by the metric."
            )
        return found

    def _chunks(self, split: Split) -> tuple[Batch, ...]:
        """The split's samples in chunks that stay in cache, channels last, prepared once."""
        if split not in self._prepared:
            batches = self.task.validation if split == "validation" else self.task.test
            if not batches:
                raise TaskError(
                    f"Scoring on {split} data needs {split} batches; task {self.task.name!r} has none: add them."
                )
            self._prepared[split] = tuple(chunk for batch in batches for chunk in _split(batch))
        return self._prepared[split]


def check_score(name: str) -> None:
    """Raises TaskError unless `name` says what a search scores by."""
    if name != "metric" and name not in SOFT:
        raise TaskError(f"A search scores by metric, {', '.join(SOFT)}; {name!r} is none of them: use one of these.")


def fused(module: nn.Module) -> nn.Module:
    """A copy with batch norms folded into the convolutions before them where a trace shows that this is exact."""
    small = copy.deepcopy(module).eval()
    try:
        traced: nn.Module = fuse(small)
    except Exception:
        traced = small
    return nn.Module.to(traced, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _split(batch: Batch) -> list[Batch]:
    inputs, targets = batch
    columns = [_channels_last(x).split(CHUNK) for x in inputs]  # type: ignore[no-untyped-call]
    return list(zip(zip(*columns, strict=True), targets.split(CHUNK), strict=True))  # type: ignore[no-untyped-call]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _finite(score: float) -> float:
    if score != score or score in (float("inf"), float("-inf")):
        raise TaskError(f"A score must be finite; the metric gave {score}: check the model and the metric.")
    return score
