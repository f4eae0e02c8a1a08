"""Scores a policy: compress, then one forward pass over the validation data.

The score is that of the very module `apply` returns and `load` brings back; all three go through one `forward`.
Searched is the task's metric, or how near the outputs are to the dense model's (`soft`); the same pass gives both.
"""

import time
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from automc.compression import provenance
from automc.compression.bank import MEMORY_BYTES
from automc.compression.compress import Compressor
from automc.compression.prefix import PassMemory, cuts, keys
from automc.compression.structure import interpretable
from automc.errors import AutomcError, TaskError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Costing
from automc.scoring.forward import Prefix, Samples
from automc.scoring.soft import SOFT
from automc.task import Task

Split = Literal["validation", "test"]


class Evaluator:
    """Evaluates policies of one task; the dense model's score and outputs are computed once.

    score: "metric" for the task's own, or one of `soft.SOFT`; an unknown one raises TaskError. memory_bytes: for the
    values of candidates' common prefixes.
    """

    def __init__(
        self,
        task: Task,
        compressor: Compressor,
        costing: Costing,
        score: str = "metric",
        memory_bytes: int = MEMORY_BYTES // 2,
    ) -> None:
        check_score(score)
        self.task, self.compressor, self.costing = task, compressor, costing
        self._soft = SOFT.get(score)
        self._prepared: dict[Split, Samples] = {}
        self._prefixes = PassMemory(memory_bytes)

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
            small = self.compressor.compress(policy)
            score, metric = self.measure(small, self._prefix(small))
        except (AutomcError, RuntimeError, MemoryError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            return Evaluation(policy, "failed", None, costs, seconds=time.perf_counter() - start, reason=reason)
        return Evaluation(policy, "ok", score, costs, seconds=time.perf_counter() - start, metric=metric)

    def measure(self, module: nn.Module, prefix: Prefix | None = None) -> tuple[float, float]:
        """What is searched, and the task's metric, on the validation data."""
        if self._soft is None and self.task.evaluate is not None:
            metric = self.score(module)
            return metric, metric
        outputs = self._outputs(module, "validation", prefix)
        if self._soft is None:
            metric = _finite(float(self._per_sample(outputs).mean()))
            return metric, metric
        soft = torch.cat([self._soft(x, d) for x, d in zip(outputs, self._dense_outputs, strict=True)])
        own = self.task.evaluate
        metric = float(self._per_sample(outputs).mean()) if own is None else float(own(module))
        return _finite(float(soft.mean())), _finite(metric)

    def score(self, module: nn.Module, split: Split = "validation") -> float:
        """The task's metric of a module: the mean over samples, or what the task's own `evaluate` says."""
        if self.task.evaluate is not None:
            return _finite(float(self.task.evaluate(module)))
        return _finite(float(self.sample_scores(module, split).mean()))

    def sample_scores(self, module: nn.Module, split: Split = "validation") -> Tensor:
        """Per-sample metrics (N,), float64."""
        return self._per_sample(self._outputs(module, split), split)

    def _per_sample(self, outputs: list[Any], split: Split = "validation") -> Tensor:
        both = zip(outputs, self._samples(split).targets, strict=True)
        return torch.cat([self.task.per_sample(x, targets).to(torch.float64) for x, targets in both])

    def _outputs(self, module: nn.Module, split: Split, prefix: Prefix | None = None) -> list[Any]:
        """A module's outputs, chunk by chunk."""
        outputs = self._samples(split).outputs(self._graphed(module), prefix)
        if not all(bool(torch.isfinite(x).all()) for x in outputs if isinstance(x, Tensor)):
            raise TaskError("Outputs must be finite; this model gives NaN or infinity: check its weights and inputs.")
        return outputs

    def _graphed(self, module: nn.Module) -> nn.Module:
        """What automc made of the task's model, as its graph; any other module as it is."""
        graph, made = self.compressor.graph, provenance.known(module)
        traced = made is not None and graph.graph is not None and made.policy.fingerprint == graph.facts.fingerprint
        return interpretable(graph, module) if traced else module

    def _prefix(self, small: nn.Module) -> Prefix | None:
        """Where the forward pass of a candidate may begin."""
        graph, made = self.compressor.graph, provenance.of(small)
        if graph.graph is None:
            return None
        at = cuts(graph.graph)
        found = keys(graph.graph, at, graph.facts, made.policy, made.structure, "scored")
        return Prefix({node.name: found[node] for node in at}, self._prefixes)

    @cached_property
    def _dense_outputs(self) -> list[Tensor]:
        found = self._outputs(self.task.model, "validation")
        if not all(isinstance(x, Tensor) for x in found):
            raise TaskError(
                "A model scored by its likeness to the dense one must give one tensor; this one gives a "
                f"{type(found[0]).__name__}: score by the metric."
            )
        return found

    def _samples(self, split: Split) -> Samples:
        """The split's samples, prepared once."""
        if split not in self._prepared:
            batches = self.task.validation if split == "validation" else self.task.test
            if not batches:
                raise TaskError(
                    f"Scoring on {split} data needs {split} batches; task {self.task.name!r} has none: add them."
                )
            self._prepared[split] = Samples(batches, split)
        return self._prepared[split]


def check_score(name: str) -> None:
    """Raises TaskError unless `name` says what a search scores by."""
    if name != "metric" and name not in SOFT:
        raise TaskError(f"A search scores by metric, {', '.join(SOFT)}; {name!r} is none of them: use one of these.")


def _finite(score: float) -> float:
    if score != score or score in (float("inf"), float("-inf")):
        raise TaskError(f"A score must be finite; the metric gave {score}: check the model and the metric.")
    return score
