"""Tracing: from a model and example inputs to its facts and groups, each group checked before it is offered.

What automc cannot follow is refused by name; a forward that torch.fx cannot trace still gives all facts about layers.
"""

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from automc.errors import GraphError
from automc.graph import describe
from automc.graph.blocks import residual_blocks
from automc.graph.channels import Classes, Lane, Lanes
from automc.graph.example import ExampleTracer, answers, both
from automc.graph.facts import Group, ModelFacts, Refusal
from automc.graph.groups import form_groups
from automc.graph.holders import as_layer, as_norm
from automc.graph.inplace import ChangeTracer, follow_changes_
from automc.graph.model_graph import ModelGraph
from automc.graph.propagate import Follower, Propagation
from automc.graph.reach import needed
from automc.graph.runs import of_size
from automc.graph.verify import TOLERANCE, build_bench, verify_group

__all__ = ["ModelGraph", "trace_model"]


def trace_model(
    model: nn.Module, example_inputs: tuple[Tensor, ...], *, verify: bool = True, seed: int = 0
) -> ModelGraph:
    """The model's facts and groups; the model itself is left as it is.

    `example_inputs` are one batch of the forward's positional arguments. With `verify`, a random half of each group's
    units is removed and zeroed once; a group where the two differ is refused. Raises GraphError for weights that are
    not finite and for a model that does not run on the example.
    """
    describe.check_finite(model)
    describe.check_names(model)
    work = _working_copy(model)
    with _called(model) as called:
        inputs, run = _first_run(work, batch_of(2, example_inputs), example_inputs)
    _check_own(called)
    blank = _blank_facts(model, run)
    try:
        recorded = _recorded(work, inputs)
        _restore_argument_names_(recorded, work)
    except Exception as error:  # torch.fx and user code raise whatever they like
        return _ungrouped(model, blank, inputs, "torch.fx cannot trace it", error)
    try:
        follow_changes_(recorded, work)
        traced = fx.GraphModule(work, recorded)
        found = Follower(traced, work).follow(inputs)
        _check_same(found.outputs, run.outputs)
        if answers(recorded):
            _check_same(*both(traced, work, batch_of(3, inputs)))
    except Exception as error:  # an operation called in a way no rule foresees must cost the groups, not the run
        return _ungrouped(model, blank, inputs, "its channels cannot be followed", error)
    graph = _assemble(model, run.seen, blank, traced.graph, found, inputs)
    return _verified(graph, model, seed) if verify and graph.facts.groups else graph


def batch_of(count: int, example_inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Every input that shares the first one's batch dimension, cut or repeated to so many samples."""
    first = next((x for x in example_inputs if x.dim()), None)
    batch = None if first is None else first.shape[0]
    return tuple(
        of_size((x,), count)[0].detach() if batch and x.dim() and x.shape[0] == batch else x for x in example_inputs
    )


def _recorded(work: nn.Module, inputs: tuple[Tensor, ...]) -> fx.Graph:
    """What torch.fx records; where buffers are sliced by what the input says, with buffers that it follows, too; where
    it cannot go on without knowing sizes, with those of the inputs."""
    absent, followed = _absent_arguments(work, len(inputs)), ChangeTracer(_stays_whole)
    followed.proxy_buffer_attributes = True
    for tracer in (ChangeTracer(_stays_whole), followed):
        with contextlib.suppress(Exception):  # torch.fx and user code raise whatever they like
            return tracer.trace(work, absent)
    return ExampleTracer(_stays_whole, inputs).trace(work)


def _stays_whole(module: nn.Module) -> bool:
    """Whether a module is a layer or a norm, if of a class of the user's own."""
    return as_layer(module) is not None or as_norm(module) is not None


@contextmanager
def _called(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules that are called while it is open."""
    names: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: names.append(name))
        for name, module in model.named_modules()
    ]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _check_own(called: Sequence[str]) -> None:
    """GraphError where a copy of the model called modules of the model itself: they would never be compressed."""
    if called:
        raise GraphError(
            f"A model must run its own modules; a copy of this one runs {called[0]!r} of the original, which a lambda "
            "or a plain list holds: make it a method or a submodule."
        )


def _working_copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise GraphError(
            f"A model must be copyable with copy.deepcopy; this one raised {error!r}: detach what it caches."
        ) from error


def _first_run(
    work: nn.Module, small: tuple[Tensor, ...], given: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], describe.Run]:
    """Inputs the model runs on, two samples if it can, and that run."""
    error: Exception | None = None
    for inputs in (small, given):
        try:
            return inputs, describe.watch(work, inputs)
        except Exception as caught:  # the user's forward
            error = caught
    raise GraphError(
        f"The model must run on its example inputs; it raised {error!r}: pass what forward takes."
    ) from error


def _absent_arguments(model: nn.Module, given: int) -> dict[str, Any] | None:
    """Defaults of forward's arguments that no example is given for: torch.fx would trace them as tensors."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(model.forward).parameters.values() if p.kind in plain]
    absent = {p.name: p.default for p in parameters[given:] if p.default is not inspect.Parameter.empty}
    return absent or None


def _blank_facts(model: nn.Module, run: describe.Run) -> ModelFacts:
    """All facts but groups, as far as they can be had without a graph."""
    layers = describe.layer_facts(model, run.seen, {})
    shut = [path for name in run.seen if (path := describe.opaque(model, name)) is not None]
    return ModelFacts(
        fingerprint=describe.fingerprint(model),
        layers=layers,
        norms=describe.norm_facts(model, run.seen),
        groups=(),
        refused=tuple(
            Refusal(path, type(model.get_submodule(path)).__name__, "layers inside run where nothing can replace them")
            for path in dict.fromkeys(shut)
        ),
        traceable=False,
        params=sum(p.numel() for p in model.parameters()),
        buffer_bytes=describe.buffer_bytes(model),
        item_bytes=max([4, *(p.element_size() for p in model.parameters())]),
        other_tensors=describe.other_tensors(model, layers),
        other_macs=max(0.0, run.macs - sum(x.macs for x in layers)),
    )


def _ungrouped(
    model: nn.Module, blank: ModelFacts, inputs: tuple[Tensor, ...], reason: str, error: Exception
) -> ModelGraph:
    refusal = Refusal("", type(model).__name__, f"{reason} ({_first_line(error)})")
    return ModelGraph(replace(blank, refused=(*blank.refused, refusal)), None, inputs)


def _assemble(
    model: nn.Module,
    seen: Mapping[str, describe.Seen],
    blank: ModelFacts,
    graph: fx.Graph,
    found: Propagation,
    inputs: tuple[Tensor, ...],
) -> ModelGraph:
    grouping = form_groups(found.holders, found.classes)
    read = {node.name for node in needed(graph)}
    groups = tuple(g for g in grouping.groups if not g.producers or read & _nodes(found, g.producers))
    positions = {layer.name: layer.positions for layer in blank.layers}
    unread = (Refusal(g.name, "output", "nothing reads what it makes") for g in grouping.groups if g not in groups)
    layers = describe.layer_facts(model, seen, describe.folded_norms(graph, found.calls))
    parameters = describe.parameter_facts(model, groups)
    facts = replace(
        blank,
        layers=layers,
        groups=tuple(replace(g, gates=_gates(g, positions)) for g in groups),
        parameters=parameters,
        refused=(*blank.refused, *_new(found.refused, blank.refused), *grouping.refused, *unread),
        traceable=True,
        blocks=residual_blocks(graph, found.lanes, found.macs, model, layers, blank.norms),
    )
    settle = _Settled(found.classes)
    return ModelGraph(
        facts=facts,
        graph=_unowned(graph),
        inputs=inputs,
        lanes={name: settle(lanes) for name, lanes in found.lanes.items()},
        concrete={name: _settled_call(call, settle) for name, call in found.concrete.items()},
        unit_classes=grouping.classes,
        class_count=found.classes.count,
    )


def _new(refused: Sequence[Refusal], known: Sequence[Refusal]) -> list[Refusal]:
    """What is not refused already, for whatever reason."""
    said = {r.where for r in known}
    return [r for r in refused if r.where not in said]


def _check_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """GraphError where a trace computes something else than the model: its forward looks at values, or keeps state."""
    if len(found) != len(wanted) or not all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for x, y in zip(found, wanted, strict=True)
    ):
        raise GraphError("its trace computes something else")


def _gates(group: Group, positions: Mapping[str, int]) -> tuple[str, ...]:
    """Producers at one position of channels that others make at many."""
    made = [name for name in group.producers if name not in group.consumers]
    single = tuple(name for name in made if positions[name] == 1)
    return single if len(single) < len(made) else ()


def _nodes(found: Propagation, layers: Sequence[str]) -> set[str]:
    """Names of the nodes that call these layers."""
    return {node for name in layers for node in found.calls.get(name, ())}


class _Settled:
    """Replaces ids by their final classes."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes

    def __call__(self, lanes: Lanes) -> Lanes:
        if isinstance(lanes, tuple):
            return tuple(self(part) for part in lanes)
        return lanes if lanes is None else Lane(lanes.shape, lanes.dim, self._classes.roots(lanes.ids))


def _settled_call(call: Any, settle: _Settled) -> Any:
    return fx.node.map_aggregate(call, lambda x: settle(x) if isinstance(x, Lane) else x)


def _unowned(graph: fx.Graph) -> fx.Graph:
    """A copy that keeps no module, and so no weights, alive."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    return new


def _restore_argument_names_(graph: fx.Graph, model: nn.Module) -> None:
    """torch.fx renames the arguments it is told to take the default of; callers go on using their own names."""
    names = list(inspect.signature(model.forward).parameters)
    for node, name in zip((n for n in graph.nodes if n.op == "placeholder"), names, strict=False):
        if not str(node.target).startswith("*"):
            node.target = name


def _verified(graph: ModelGraph, model: nn.Module, seed: int) -> ModelGraph:
    """The graph without the groups whose removal differs from zeroing."""
    try:
        bench = build_bench(graph, model, seed=seed)
    except GraphError as error:
        refused = tuple(Refusal(g.name, "verification", str(error)) for g in graph.facts.groups)
        return replace(
            graph, facts=replace(graph.facts, groups=(), parameters=(), refused=graph.facts.refused + refused)
        )
    good, bad = [], []
    for group in graph.facts.groups:
        gap = verify_group(graph, model, group, seed=seed, bench=bench)
        if gap < TOLERANCE:
            good.append(group)
        else:
            what = (
                f"differs from zeroing them by {gap:.1e}"
                if math.isfinite(gap)
                else "breaks the forward or saves nothing"
            )
            bad.append(Refusal(group.name, "verification", f"removing its channels {what}"))
    facts = replace(
        graph.facts,
        groups=tuple(good),
        parameters=describe.parameter_facts(model, good),
        refused=(*graph.facts.refused, *bad),
    )
    return replace(graph, facts=facts)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
