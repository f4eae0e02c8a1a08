"""Scores a policy: compress, then one forward pass over the validation data.

The score is that of the very module `apply` returns and `load` brings back; all three go through one `forward`.
Searched is the task's metric, or how near the outputs are to the dense model's (`soft`); the same pass gives both.
"""

import contextlib
import copy
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from automc.compression import provenance
from automc.compression.bank import MEMORY_BYTES
from automc.compression.compress import Compressor
from automc.compression.prefix import Chain, PassMemory, keys, sharing_order, worthwhile
from automc.compression.structure import Structure, interpretable
from automc.errors import AutomcError, TaskError, told
from automc.evaluation import Evaluation
from automc.graph.runs import copies
from automc.policy import Policy, Recipe
from automc.projection import Costing
from automc.scoring.forward import Forward, Prefix, Samples
from automc.scoring.groundwork import Groundwork
from automc.scoring.soft import SOFT, energies
from automc.scoring.stages import Stage, check_stages, staged
from automc.task import Task

Split = Literal["validation", "test"]
Costs = tuple[tuple[str, float], ...]


class SampleScores(NamedTuple):
    """Scores by sample (n,), float64."""

    score: Tensor
    """What is searched."""
    metric: Tensor


class Evaluator:
    """Evaluates policies of one task; the dense model's score and outputs are computed once.

    score: "metric" for the task's own, or one of `soft.SOFT`; an unknown one raises TaskError.
    stages: numbers of validation samples, rising, after which a race may stop (see `race`), in a random order from
    `seed`; none for one pass. Whoever scores, samples run in these groups, so that raced and plain scores are equal. A
    task's own `evaluate` gives no scores by sample: there stages are ignored.
    memory_bytes: for the values of candidates' common prefixes.
    groundwork: what another process has computed for the same arguments, but its `compressor`'s part of that.
    """

    def __init__(
        self,
        task: Task,
        compressor: Compressor,
        costing: Costing,
        score: str = "metric",
        *,
        stages: Sequence[int] = (),
        seed: int = 0,
        memory_bytes: int = MEMORY_BYTES // 2,
        groundwork: Groundwork | None = None,
    ) -> None:
        check_score(score)
        self.task, self.compressor, self.costing = task, compressor, costing
        self._soft = SOFT.get(score)
        self._ends, self._seed = check_stages(stages), seed
        self._prepared: dict[Split, tuple[Stage, ...]] = {}
        self._prefixes = PassMemory(memory_bytes)
        if groundwork is not None and groundwork.stages is not None:
            self._prepared["validation"] = groundwork.stages
        if groundwork is not None and groundwork.dense_outputs is not None:
            self._dense_outputs = groundwork.dense_outputs

    def groundwork(self, recipe: Recipe) -> Groundwork:
        """What is known by now, under a recipe, that no candidate decides."""
        dense = None if self._soft is None else self._dense_outputs
        return Groundwork(self.compressor.gathered(recipe), self._prepared.get("validation"), dense)

    def share_samples(self, other: "Evaluator") -> None:
        """Takes the samples that another evaluator with the same arguments has prepared."""
        self._prepared = other._prepared

    @cached_property
    def dense_score(self) -> float:
        """The dense model's metric on the validation data, or its likeness to itself, where that can be told."""
        if self._soft is None:
            return self.dense_metric
        with _scoring_the_dense_model():
            likeness = [self._likeness(stage, self._dense_outputs[i]) for i, stage in enumerate(self.stages)]
            return float(torch.cat(likeness).mean())

    @cached_property
    def dense_metric(self) -> float:
        """The dense model's metric on the validation data."""
        with _scoring_the_dense_model():
            return self.score(self.task.model)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The validation samples, in the groups they are scored in; TaskError where there are none."""
        return self._stages("validation")

    @property
    def staged(self) -> bool:
        """Whether there is a stage before the last one."""
        return bool(self.looks)

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of samples after which a race may stop: of those asked for, the ones that leave some unseen."""
        if self.task.evaluate is not None:
            return ()
        return tuple(accumulate(len(stage.rows) for stage in self.stages))[:-1]

    def costs(self, policy: Policy) -> Costs:
        """Every cost of a policy."""
        return tuple(self.costing.of_policy(policy).items())

    def evaluate(self, policy: Policy) -> Evaluation:
        """Scores a policy; what goes wrong with the candidate is a failed evaluation, never an exception."""

        def whole(forward: Forward, costs: Costs) -> Evaluation:
            score, metric = self._measure(forward)
            return Evaluation(policy, "ok", score, costs, metric=metric)

        return self.attempt(policy, whole)

    def evaluate_all(self, policies: Sequence[Policy]) -> list[Evaluation]:
        """As `evaluate` says of each, faster where policies share decisions: those that do follow each other."""
        found: dict[int, Evaluation] = {}
        for index, shared in sharing_order([self._chain(policy) for policy in policies]):
            with self.compressor.passes.planned(shared), self._prefixes.planned(shared):
                found[index] = self.evaluate(policies[index])
        return [found[index] for index in range(len(policies))]

    def attempt(
        self, policy: Policy, judge: Callable[[Forward, Costs], Evaluation], forward: Forward | None = None
    ) -> Evaluation:
        """What `judge` makes of the compressed model, `forward` where that is there already; a failed evaluation where
        it or the compression raises.
        """
        start = time.perf_counter()
        costs = self.costs(policy)
        try:
            found = judge(self._candidate(policy) if forward is None else forward, costs)
        except Exception as error:  # a candidate or a metric may raise anything; Ctrl-C is no Exception
            found = Evaluation(policy, "failed", None, costs, reason=told(error))
        return replace(found, seconds=time.perf_counter() - start)

    def measure(self, module: nn.Module) -> tuple[float, float]:
        """What is searched, and the task's metric, on the validation data."""
        return self._measure(self._forward(module))

    def _measure(self, forward: Forward) -> tuple[float, float]:
        if self._soft is None and self.task.evaluate is not None:
            metric = self.score(forward.module)
            return metric, metric
        found = [self.stage_scores(forward, stage) for stage in self.stages]
        score, metric = (float(self.joined(x).mean()) for x in zip(*found, strict=True))
        return score, metric if self.task.evaluate is None else self.score(forward.module)

    def score(self, module: nn.Module, split: Split = "validation") -> float:
        """The task's metric of a module: the mean over samples, or what the task's own `evaluate` says of a copy."""
        if self.task.evaluate is not None:
            # Theirs to do anything with: statistics that a pass in training mode moves would make it another model.
            return _number(self.task.evaluate(copy.deepcopy(module).eval()))
        return float(self.sample_scores(module, split).mean())

    def sample_scores(self, module: nn.Module, split: Split = "validation") -> Tensor:
        """Per-sample metrics (N,), float64."""
        stages, forward = self._stages(split), self._forward(module)
        return self.joined([self._metric(stage, _outputs(forward, stage.samples)) for stage in stages])

    def searched_scores(self, policy: Policy) -> Tensor:
        """What is searched, by validation sample (N,), of a policy; raises what compression or scoring raises."""
        forward = self._candidate(policy)
        return self.joined([self.stage_scores(forward, stage).score for stage in self.stages])

    def stage_scores(self, forward: Forward, stage: Stage) -> SampleScores:
        """Scores of the samples of one of `stages`; not of a task with an `evaluate` of its own."""
        outputs = _outputs(forward, stage.samples)
        soft = None if self._soft is None else self._likeness(stage, outputs)
        if self.task.evaluate is not None and soft is not None:
            return SampleScores(soft, soft)  # the metric has no value by sample
        metric = self._metric(stage, outputs)
        return SampleScores(metric if soft is None else soft, metric)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Values by stage as one (N,), in the order of the samples."""
        if len(parts) == 1:
            return parts[0]
        whole = torch.empty(sum(len(part) for part in parts), dtype=parts[0].dtype)
        for stage, part in zip(self.stages, parts, strict=True):
            whole[stage.rows] = part
        return whole

    def _metric(self, stage: Stage, outputs: list[Any]) -> Tensor:
        """The task's metric, by sample."""
        both = zip(outputs, stage.samples.targets, strict=True)
        return _finite(torch.cat([_by_sample(self.task.per_sample(x, y), len(y)) for x, y in both]))

    def _likeness(self, stage: Stage, outputs: list[Any]) -> Tensor:
        """How near outputs are to the dense model's, by sample."""
        assert self._soft is not None
        dense = self._dense_outputs[self.stages.index(stage)]
        each = zip(outputs, dense, stage.samples.targets, strict=True)
        return _finite(torch.cat([self._soft(x, d, self._dense_energy, y).cpu() for x, d, y in each]))

    def _candidate(self, policy: Policy) -> Forward:
        """A policy's model, just compressed: what it shares with others just compressed need not run again."""
        small = self.compressor.compress(policy)
        forward, graph, made = self._forward(small), self.compressor.graph, provenance.of(small)
        if graph.graph is None:
            return forward
        with torch.no_grad():
            small(*copies(self.task.example_inputs))  # the graph would not notice that the model's own forward raises
        return replace(forward, prefix=Prefix(self._digests(policy, made.structure), self._prefixes))

    def _chain(self, policy: Policy) -> Chain:
        """What a policy shares with others; nothing where that cannot be told."""
        try:
            return tuple(self._digests(policy, self.compressor.structure(policy)).values())
        except Exception:  # whatever it is, `evaluate` will say so
            return ()

    def _digests(self, policy: Policy, structure: Structure) -> dict[str, str]:
        """By name of a cut, a digest of what a policy decides before it; none of a model without a graph."""
        graph = self.compressor.graph
        if graph.graph is None:
            return {}
        found = keys(graph.graph, self._cuts, graph.facts, policy, structure)
        return {node.name: digest for node, digest in found.items()}

    @cached_property
    def _cuts(self) -> list[fx.Node]:
        """Of the traced model, in order."""
        graph = self.compressor.graph
        return [] if graph.graph is None else worthwhile(graph.graph, graph.facts)

    def _forward(self, module: nn.Module) -> Forward:
        """A module, with the dense model's graph where automc made it from that."""
        graph, made, last = self.compressor.graph, provenance.known(module), self.compressor.runs_channels_last
        if graph.graph is None:
            return Forward(module, module, opaque=True, last=last)
        ours = made is not None and made.policy.fingerprint == graph.facts.fingerprint
        known = ours or module is self.task.model
        return Forward(module, interpretable(graph, module) if known else module, last=last)

    @cached_property
    def _dense_outputs(self) -> tuple[list[Tensor], ...]:
        """By stage and chunk."""
        forward = self._forward(self.task.model)
        found = tuple(_outputs(forward, stage.samples) for stage in self.stages)
        odd = [x for outputs in found for x in outputs if not isinstance(x, Tensor)]
        if odd:
            raise TaskError(
                "A model scored by its likeness to the dense one must give one tensor; this one gives a "
                f"{type(odd[0]).__name__}: score by the metric."
            )
        return found

    @cached_property
    def _dense_energy(self) -> float:
        """The dense outputs' mean squared norm over all samples, however they are grouped."""
        return float(
            self.joined([torch.cat([energies(x).cpu() for x in outputs]) for outputs in self._dense_outputs]).mean()
        )

    def _stages(self, split: Split) -> tuple[Stage, ...]:
        """The split's samples, prepared once."""
        if split not in self._prepared:
            batches = self.task.validation if split == "validation" else self.task.test
            if not batches:
                raise TaskError(
                    f"Scoring on {split} data needs {split} batches; task {self.task.name!r} has none: add them."
                )
            races = split == "validation" and self.task.evaluate is None
            self._prepared[split] = staged(batches, self._ends if races else (), self._seed, split)
        return self._prepared[split]


def check_score(name: str) -> None:
    """Raises TaskError unless `name` says what a search scores by."""
    if name != "metric" and name not in SOFT:
        raise TaskError(f"A search scores by metric, {', '.join(SOFT)}; {name!r} is none of them: use one of these.")


def _outputs(forward: Forward, samples: Samples) -> list[Any]:
    """A module's outputs, chunk by chunk."""
    outputs = forward.outputs(samples)
    if not all(bool(torch.isfinite(x).all()) for x in outputs if isinstance(x, Tensor)):
        raise TaskError("Outputs must be finite; this model gives NaN or infinity: check its weights and inputs.")
    return outputs


def _by_sample(found: Any, count: int) -> Tensor:
    """What a metric gave for `count` samples, float64."""
    if not isinstance(found, Tensor) or found.shape != (count,):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TaskError(
            f"A metric must give one score a sample, a tensor of shape ({count},); it gave {what}: return scores by "
            "sample, or pass evaluate=callable(model) -> float to the task."
        )
    return found.detach().cpu().to(torch.float64)


def _finite(scores: Tensor) -> Tensor:
    odd = scores[~torch.isfinite(scores)]
    if len(odd):
        raise TaskError(f"A score must be finite; the metric gave {float(odd[0])}: check the model and the metric.")
    return scores


def _number(value: Any) -> float:
    """What a task's own `evaluate` gave."""
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(plain, numbers.Real):
        raise TaskError(f"A task's evaluate must give a number; it gave a {type(plain).__name__}: return a float.")
    return float(_finite(torch.tensor([float(plain)], dtype=torch.float64)))


@contextlib.contextmanager
def _scoring_the_dense_model() -> Iterator[None]:
    """What the user's model or metric raises here would fail every candidate: one sentence instead."""
    try:
        yield
    except (AutomcError, OSError, MemoryError):  # these say what is wrong
        raise
    except Exception as error:
        raise TaskError(
            f"The dense model must be scored before a search begins; that stopped with {told(error)}: check the "
            "model, the metric and the validation batches."
        ) from error
