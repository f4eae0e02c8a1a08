"""The latency table of a model on this machine: its layers timed as a search may leave them, by the kernels they get.

Layers that are equal are measured once. Each is timed alone, its variants in turn, several rounds, and the medians
count. Then a few whole models of the search space are made and timed in their fastest form, and the numbers that say
what layers take among others are fitted to these.
"""

import itertools
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automc.compression.compress import Compressor
from automc.costs.latency import EIGHT, Curve, Kind, Latency, LatencyTable, fetched
from automc.deployment.layers import seen
from automc.deployment.probes import BY_SIZE, PLAIN, Plain, decided, narrowed, narrowed_input
from automc.deployment.stopwatch import Measure, Stopwatch
from automc.errors import PolicyError, TaskError
from automc.graph.facts import LayerFacts, ModelFacts
from automc.pattern import member
from automc.policy import FULL_BITS, LayerDecision, Policy
from automc.projection import Costing
from automc.space import FloatArray, IntArray, SearchSpace
from automc.task import Inputs

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of a layer's channels, that it is timed with."""
FINE, BLOCK = 64, 4
"""Outputs up to which a layer is timed at the edges of each block of so many; above, a block hardly shows."""
MODELS = 13
"""Whole models that are timed."""
REWEIGHTED, CLOSE = 20, 0.01
"""How often errors are weighed anew, and below which relative error all count alike."""


@torch.no_grad()
def profile(
    compressor: Compressor,
    space: SearchSpace,
    inputs: Inputs,
    *,
    measure: Measure | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> LatencyTable:
    """Times what a space may make of a model, for inputs of this batch size and with torch's threads.

    measure: seconds of a module on a device of one's own, which `device` names; by default this machine. progress: is
    told what is being timed. TaskError for inputs without a sample.
    """
    if not inputs or not len(inputs[0]):
        raise TaskError("Inputs to time must hold at least one sample; there is none: pass an example batch.")
    tell = progress or (lambda _: None)
    facts, model = space.facts, compressor.model
    tell("the dense model")
    watch = Stopwatch.of(model, inputs, measure)
    kinds = []
    for layers, layer, x in _distinct(facts, model, inputs):
        tell(layers[0].name)
        kinds.append(_kind(layers, layer, x, space, watch))
    if not kinds:
        raise TaskError("A model must have plain linear layers or convolutions to be profiled; this one has none.")
    table = LatencyTable(
        fingerprint=facts.fingerprint,
        device=device or processor(),
        threads=torch.get_num_threads(),
        batch=len(inputs[0]),
        dense=watch.dense,
        kinds=tuple(kinds),
        form=watch.form,
        versions={"python": platform.python_version()} | {n: version(n) for n in ("torch", "numpy")},
    )
    return _fitted(table, compressor, space, inputs, watch, seed, tell)


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _distinct(facts: ModelFacts, model: nn.Module, inputs: Inputs) -> Iterable[tuple[list[LayerFacts], Plain, Tensor]]:
    """Layers that take equally long, one of them as a module, and what it reads."""
    names = {x.name: x for x in facts.layers if type(model.get_submodule(x.name)) in PLAIN and not x.transposed}
    found: dict[Any, tuple[list[LayerFacts], Plain, Tensor]] = {}
    for name, x in seen(model, inputs, names).items():
        layer: Any = model.get_submodule(name)
        shape = tuple(getattr(layer, key, None) for key in ("kernel_size", "stride", "padding", "dilation", "groups"))
        key = (type(layer), layer.weight.shape, shape, x.shape, names[name].calls)
        found.setdefault(key, ([], layer, x))[0].append(names[name])
    return found.values()


def _kind(layers: list[LayerFacts], layer: Plain, x: Tensor, space: SearchSpace, watch: Stopwatch) -> Kind:
    inputs, outputs = _channels(layers[0])
    grid = [narrowed(layer, i, o) for i in inputs for o in outputs]
    took = watch.layers([(small, narrowed_input(small, x)) for small in grid])
    rows = np.array(took).reshape(len(inputs), len(outputs)) * layers[0].calls
    return Kind(
        layers=tuple(facts.name for facts in layers),
        inputs=inputs,
        outputs=outputs,
        seconds=tuple(map(tuple, rows.tolist())),
        **_curves(layers, layer, x, space, watch),
    )


def _curves(
    layers: list[LayerFacts], layer: Plain, x: Tensor, space: SearchSpace, watch: Stopwatch
) -> dict[str, dict[str, Curve]]:
    """Which share of the whole layer's seconds is left of each variant that fits; at most all of it, since whatever is
    slower than the whole layer runs as that."""
    variants = [(v, module) for v in _variants(layers, space) if (module := _made(layer, layers[0], v, x)) is not None]
    found: dict[str, dict[str, Curve]] = {}
    if not variants:
        return found
    whole, *took = watch.layers([(layer, x), *((module, x) for _, module in variants)])
    for (variant, _), seconds in sorted(zip(variants, took, strict=True), key=lambda pair: pair[0][0].at):
        curves = found.setdefault(variant.curve, {})
        curves[variant.name] = (*curves.get(variant.name, ()), (variant.at, min(1.0, seconds / whole)))
    return found


def _channels(facts: LayerFacts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of channels of either side that a layer is timed with; a depthwise layer's sides go together."""
    whole = facts.out_channels // facts.in_channels if facts.depthwise else facts.groups
    outputs = {whole * n for n in (*_shares(facts.out_channels // whole), *_edges(facts.out_channels // whole))}
    inputs = [whole * n for n in _shares(facts.in_channels // whole)]
    return (facts.in_channels,) if facts.depthwise else tuple(inputs), tuple(sorted(outputs))


def _shares(count: int) -> list[int]:
    return sorted({max(1, round(s * count)) for s in SHARES})


def _edges(count: int) -> list[int]:
    """Where seconds jump: kernels make outputs in blocks, of which the last may be half empty."""
    return [] if count > FINE else [n for n in range(1, count + 1) if n % BLOCK in (0, 1) or count <= 4 * BLOCK]


@dataclass(frozen=True, slots=True)
class _Variant:
    """A decision about a layer, and where it lies on which curve of its kind."""

    curve: str
    name: str
    at: float
    decision: LayerDecision


def _variants(layers: Sequence[LayerFacts], space: SearchSpace) -> list[_Variant]:
    """What a space may make of some layers besides fewer channels."""
    own = {x.name for x in layers}
    axes = [a for a in space.axes if a.kind == "layer" and own & set(a.places)]

    def values(field: str) -> list[Any]:
        return sorted({v for a in axes if a.field == field for v in a.values})

    zeros = [s for s in values("sparsity") if s > 0]
    patterns = values("pattern") or ["element"]
    both = [(p, s, member(p, s)) for p in patterns for s in zeros]
    found = [_Variant("zeros", p, s, LayerDecision(sparsity=s, pattern=pattern)) for p, s, pattern in both]
    if _integers(values("weight_bits")) and _integers(values("activation_bits")):
        found += [_Variant("eight_bits", p, 0.0, LayerDecision(EIGHT, EIGHT)) for p in patterns]
        found += [
            _Variant("eight_bits", p, s, LayerDecision(EIGHT, EIGHT, s, pattern=pattern)) for p, s, pattern in both
        ]
    for method in values("factorization"):
        shares = [s for s in values("rank") if s < 1]
        found += [_Variant("factors", method, s, LayerDecision(rank=s, factorization=method)) for s in shares]
    return found


def _integers(bits: Sequence[int]) -> bool:
    return any(b < FULL_BITS and b <= EIGHT for b in bits)


def _made(layer: Plain, facts: LayerFacts, variant: _Variant, x: Tensor) -> nn.Module | None:
    """A layer with a decision carried out; None where it does not fit this one."""
    try:
        return decided(layer, facts, variant.decision, x)
    except PolicyError:
        return None


def _fitted(
    table: LatencyTable,
    compressor: Compressor,
    space: SearchSpace,
    inputs: Inputs,
    watch: Stopwatch,
    seed: int,
    tell: Callable[[str], None],
) -> LatencyTable:
    """The table with the numbers that suit whole models best; the dense one is among these."""
    costing = Costing(replace(space, recipe=BY_SIZE), table)
    points, took = _points(space, np.random.default_rng(seed)), []
    for number, point in enumerate(points):
        tell(f"whole model {number + 1} of {len(points)}")
        module = compressor.compress(by_magnitude(costing.space.decode(point)))
        took.append(watch.model(module, inputs))
    parts, measured = _parts(costing, points), np.array(took)
    scale, factored, fetch, rest = _coefficients(parts, measured)
    return table.model_copy(
        update={
            "dense": min(table.dense, took[0]),
            "scale": scale,
            "factored": factored,
            "fetch": fetch,
            "rest": rest,
            "models": tuple(zip((parts @ [scale, factored, fetch, rest]).tolist(), took, strict=True)),
            "noise": float(np.median(watch.noises)) if watch.noises else None,
        }
    )


def by_magnitude(policy: Policy) -> Policy:
    """The same sizes, whatever is left: other criteria take minutes where a model is large."""
    return replace(
        policy,
        groups=tuple((name, replace(d, criterion="l1")) for name, d in policy.groups),
        layers=tuple((name, replace(d, criterion="l1")) for name, d in policy.layers),
    )


def _parts(costing: Costing, points: IntArray) -> FloatArray:
    """Of points, by a table that is not fitted: seconds of whole layers, of layers in factors, weights, and one."""
    shapes = costing.table.shapes(costing.candidates(points))
    alone = costing.costs[Latency.name].layers(costing.table, shapes)
    factored = shapes.candidates.rank < 1
    sums = [(alone * ~factored).sum(axis=1), (alone * factored).sum(axis=1), fetched(shapes).sum(axis=1)]
    return np.stack([*sums, np.ones(len(points))], axis=1)


def _coefficients(parts: FloatArray, took: FloatArray) -> tuple[float, float, float, float]:
    """scale, factored, fetch and rest with the least sum of relative errors: none negative, and no layer is free.

    Squares reweighted, so that a model that was timed in a bad moment hardly counts.
    """
    from scipy.optimize import nnls  # slow to import, and nobody else asks for it

    relative = parts / took[:, None]
    units = np.maximum(relative.max(axis=0), 1e-30)  # nnls tells by size what is nothing
    weights = np.ones(len(took))
    for _ in range(REWEIGHTED):
        found = nnls(weights[:, None] * relative / units, weights)[0] / units
        weights = 1 / np.sqrt(np.maximum(np.abs(relative @ found - 1), CLOSE))
    scale, factored, fetch, rest = found.tolist()
    usual = scale or factored or float(np.median(took / parts[:, :2].sum(axis=1)))
    return scale or usual, factored or usual, fetch, rest


def _points(space: SearchSpace, rng: np.random.Generator) -> IntArray:
    """The dense model and random ones from nearly it to nearly the smallest (MODELS, A).

    In turn everything is decided, and each kind of decision alone: together they would not say what either takes.
    """
    points, kinds = [space.largest], sorted({a.kind for a in space.axes})
    decided = [kinds, *([kind] for kind in kinds if len(kinds) > 1)]
    for tightness, own in zip(np.linspace(0.1, 0.9, MODELS - 1), itertools.cycle(decided), strict=False):
        drawn = np.where(space.ordered, rng.binomial(space.sizes - 1, 1 - tightness), space.sample(rng))
        moved = np.array([a.kind in own or not a.ordered for a in space.axes])
        points.append(np.where(moved, drawn, space.largest))
    return np.array(points)
