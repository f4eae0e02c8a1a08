"""Scores a policy: compress, then one forward pass over the validation data.

The score is that of the very module `apply` returns and `load` brings back. Convolution and batch norm are fused for
the pass, as any deployment would, the same way for all three.
"""

import copy
import time
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from automc.compression.compress import Compressor
from automc.errors import AutomcError, TaskError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Costing
from automc.task import Batch, Task

CHUNK = 100
"""Samples scored at once."""
Split = Literal["validation", "test"]


class Evaluator:
    """Evaluates policies of one task; the dense score is computed once."""

    def __init__(self, task: Task, compressor: Compressor, costing: Costing) -> None:
        self.task, self.compressor, self.costing = task, compressor, costing
        self._prepared: dict[Split, tuple[Batch, ...]] = {}

    @cached_property
    def dense_score(self) -> float:
        """The dense model's score on the validation data."""
        return self.score(self.task.model)

    def evaluate(self, policy: Policy) -> Evaluation:
        """Scores a policy; what goes wrong with the candidate is a failed evaluation, never an exception."""
        start = time.perf_counter()
        costs = tuple(self.costing.of_policy(policy).items())
        try:
            score = self.score(self.compressor.compress(policy))
        except (AutomcError, RuntimeError, MemoryError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            return Evaluation(policy, "failed", None, costs, seconds=time.perf_counter() - start, reason=reason)
        return Evaluation(policy, "ok", score, costs, seconds=time.perf_counter() - start)

    def score(self, module: nn.Module, split: Split = "validation") -> float:
        """The task's metric of a module: the mean over samples, or what the task's own `evaluate` says."""
        if self.task.evaluate is not None:
            return _finite(float(self.task.evaluate(module)))
        return _finite(float(self.sample_scores(module, split).mean()))

    @torch.no_grad()
    def sample_scores(self, module: nn.Module, split: Split = "validation") -> Tensor:
        """Per-sample scores (N,), float64."""
        ready = fused(module)
        scores = []
        for inputs, targets in self._chunks(split):
            outputs = ready(*inputs)
            if isinstance(outputs, Tensor) and not bool(torch.isfinite(outputs).all()):
                raise TaskError(
                    "Outputs must be finite; this model gives NaN or infinity: check its weights and inputs."
                )
            scores.append(self.task.per_sample(outputs, targets).to(torch.float64))
        return torch.cat(scores)

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
