"""Several kinds of decisions in one space, in forward order, those of a layer side by side.

Whatever is open together can be carried out together, at every point, and costs no more at a lower level; what would
break this is no level. The compressor cuts channels first, then leaves out the blocks, then factors what is left of a
layer, then makes zeros and rounds; where there are two factors it does so in each.

* A share of a layer must leave room for rank one with the fewest channels that other axes may leave it. Only svd,
  spatial and cp cost no more with fewer channels; a layer whose channels are open is factored by no other method.
* Factors must be smaller on disk than the layer, with the fewest bits, the most zeros and the fewest channels: two of
  them have longer headers and more scales than one layer.
* Three factors and tensor trains are dense and float, so no zeros or bits may be open beside them. Letting one of the
  two win would not do: a layer at two bits is smaller and has more multiply-accumulates than one at half its rank, so
  no order of the levels would be the order of both costs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from automc.errors import SpaceError
from automc.graph.facts import LayerFacts, ModelFacts
from automc.graph.ranks import Shape, factor_bound, least_share
from automc.graph.ranks import ranks as ranks_of
from automc.policy import FULL_BITS, PAIRS
from automc.space import Axis, Value, in_forward_order

_EXCLUDED = ("sparsity", "weight_bits", "activation_bits")
_STEADY = ("svd", "spatial", "cp")
_ROUNDING_BYTES = 8  # of entries to whole bytes, in two factors

Open = Mapping[tuple[str, str, str], tuple[Value, ...]]
"""The values that are open, by place, kind and field."""


def joined(facts: ModelFacts, axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Axes of several spaces as one; a decision that two of them open alike is opened once."""
    opened = tuple(dict.fromkeys(axes))
    values: Open = {(place, a.kind, a.field): a.values for a in opened for place in a.places}
    for axis in opened:
        if axis.field == "factorization":
            _check_alone(axis, values)
    fewest = _fewest_channels(facts, values)
    legal = [_worthwhile(a, facts, values, fewest) if a.field == "rank" else a for a in opened]
    without = {place for a in legal if a.field == "rank" and len(a.values) < 2 for place in a.places}
    kept = (a for a in legal if a.field not in ("rank", "factorization") or a.place not in without)
    return in_forward_order(kept, facts)


def _check_alone(axis: Axis, values: Open) -> None:
    others = [field for field in _EXCLUDED if (axis.place, "layer", field) in values]
    if others and axis.values[0] not in PAIRS:
        raise SpaceError(
            f"Factors by {axis.values[0]} must be dense and float; {others[0]} of layer {axis.place!r} is open, too: "
            f"factor by {' or '.join(PAIRS)}, or leave one of them out."
        )


def _fewest_channels(facts: ModelFacts, values: Open) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each layer where every group keeps as few channels as it may."""
    left = {x.name: [x.in_channels, x.out_channels] for x in facts.layers}
    for group in facts.groups:
        least = float(values.get((group.name, "group", "keep"), (1.0,))[0])
        lost = group.units - max(1, round(least * group.units))
        for member in group.members:
            if member.kind == "layer":
                left[member.target][member.axis == "out"] -= lost * member.index.shape[1]
    return {name: (inputs, outputs) for name, (inputs, outputs) in left.items()}


def _worthwhile(axis: Axis, facts: ModelFacts, values: Open, fewest: Mapping[str, tuple[int, int]]) -> Axis:
    """A rank axis with those of its shares that can be had and save bytes wherever the other axes stand."""
    shares = [float(s) for s in axis.values if s != 1]
    for place in axis.places:
        layer = facts.layer(place)
        method = str(values.get((place, "layer", "factorization"), ("svd",))[0])
        shape = Shape.of(layer).narrowed(*fewest[place])
        possible = method in _STEADY or fewest[place] == (layer.in_channels, layer.out_channels)
        reachable = [s for s in shares if possible and s >= least_share(shape, method)]
        shares = [s for s in reachable if _saves(layer, shape, method, s, values)]
    return replace(axis, values=(*shares, 1.0))


def _saves(layer: LayerFacts, shape: Shape, method: str, share: float, values: Open) -> bool:
    """Whether factors take no more bytes than the whole layer, for all bits and zeros that are open."""
    zeros = max(float(s) for s in values.get((layer.name, "layer", "sparsity"), (0.0,)))
    shared = "kmeans" in values.get((layer.name, "layer", "codebook"), ())
    fewer = (1 - share) * shape.entries
    for bits in (float(b) for b in values.get((layer.name, "layer", "weight_bits"), (FULL_BITS,))):
        each = bits / 8 if not zeros else min(bits / 8, (1 + (1 - zeros) * bits) / 8)
        scales = max(sum(ranks_of(shape, method, share)), 2 ** min(bits, 8) if shared else 0)
        if fewer * each < 4 * scales + factor_bound(layer.name) + _ROUNDING_BYTES:
            return False
    return True
