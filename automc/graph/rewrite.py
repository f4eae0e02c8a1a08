"""Constants in a traced forward that are wrong once channels are gone: pads, slices, split and view sizes.

Only literals are rewritten, and only where the shrunk model would go wrong with the old ones; sizes the model works
out itself at run time are left alone, and the check at build time says whether they come out right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from automc.graph.channels import Lane, Lanes, leaves
from automc.graph.operations import operation_name

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Edit:
    """New arguments of one node, and its new function where that changes too."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """One node whose constants may need rewriting."""

    node: fx.Node
    args: tuple[Any, ...]
    """As seen in the dense run: numbers for nodes that held numbers, lanes for tensors."""
    kwargs: dict[str, Any]
    out: Lanes
    removed: BoolArray
    """Per channel class."""

    @property
    def source(self) -> Lane | None:
        """The first argument's lane."""
        return self.args[0] if self.args and isinstance(self.args[0], Lane) else None

    def alive(self, lane: Lane) -> BoolArray:
        """Which positions along the lane's dimension stay."""
        return np.asarray(~self.removed[lane.ids])

    def touched(self) -> bool:
        """Whether anything is removed from what goes in or comes out; padding can lose only what it adds."""
        lanes = (self.source, *leaves(self.out))
        return any(lane is not None and bool(self.removed[lane.ids].any()) for lane in lanes)

    def size(self, lane: Lane, dim: int) -> int:
        """Size of one dimension after shrinking."""
        return int(self.alive(lane).sum()) if lane.dim == dim else lane.shape[dim]


def edits(
    graph: fx.Graph,
    lanes: Mapping[str, Lanes],
    concrete: Mapping[str, tuple[tuple[Any, ...], dict[str, Any]]],
    removed: BoolArray,
) -> dict[str, Edit]:
    """The nodes to rewrite, by name, once the channel classes marked in `removed` are gone."""
    found: dict[str, Edit] = {}
    for node in graph.nodes:
        writer = _WRITERS.get(operation_name(node) or "") if node.name in concrete else None
        if writer is None:
            continue
        args, kwargs = concrete[node.name]
        site = Site(node, args, kwargs, lanes[node.name], removed)
        if site.source is not None and site.source.dim is not None and site.touched():
            edit = writer(site)
            if edit is not None:
                found[node.name] = edit
    return found


def _view(site: Site) -> Edit | None:
    """view, reshape, expand: literal sizes that are neither -1 nor right any more."""
    if not isinstance(site.out, Lane):
        return None
    packed = len(site.node.args) > 1 and isinstance(site.node.args[1], (tuple, list))
    sizes = list(site.node.args[1]) if packed else list(site.node.args[1:])  # type: ignore[arg-type]
    if not sizes and "shape" in site.node.kwargs:
        sizes = list(site.node.kwargs["shape"])  # type: ignore[arg-type]
    new = _sizes(site, site.out, sizes, 0)
    if new == sizes:
        return None
    return Edit((site.node.args[0], tuple(new)), {})


def _unflatten(site: Site) -> Edit | None:
    dim, sizes = site.args[1], list(site.node.args[2])  # type: ignore[arg-type]
    if not isinstance(site.out, Lane) or not isinstance(site.source, Lane):
        return None
    new = _sizes(site, site.out, sizes, dim % len(site.source.shape))
    return None if new == sizes else Edit((*site.node.args[:2], tuple(new)), {})


def _sizes(site: Site, out: Lane, sizes: list[Any], start: int) -> list[Any]:
    literal = [isinstance(size, int) and size >= 0 for size in sizes]
    return [site.size(out, start + i) if literal[i] else size for i, size in enumerate(sizes)]


def _getitem(site: Site) -> Edit | None:
    """Indices along the channels: a slice where the positions stay together, a list where they do not."""
    source = site.source
    assert source is not None and source.dim is not None
    packed = isinstance(site.args[1], tuple)
    given: tuple[Any, ...] = site.args[1] if packed else (site.args[1],)
    raw: tuple[Any, ...] = site.node.args[1] if packed else (site.node.args[1],)  # type: ignore[assignment]
    place = _index_place(given, source.dim, len(source.shape))
    if place is None or given[place] == slice(None):
        return None
    alive = site.alive(source)
    picked = np.arange(len(alive))[given[place]]
    rank = np.cumsum(alive) - 1
    if isinstance(given[place], int):
        new: Any = int(rank[picked])
    else:
        new = _as_index(rank[picked[alive[picked]]])
    if _literal(raw[place]) and _selects_alike(raw[place], new, int(alive.sum())):
        return None
    index = (*raw[:place], new, *raw[place + 1 :])
    return Edit((site.node.args[0], index if packed else index[0]), {})


def _selects_alike(old: Any, new: Any, count: int) -> bool:
    try:
        return np.array_equal(np.arange(count)[old], np.arange(count)[new])
    except IndexError:
        return False


def _index_place(index: tuple[Any, ...], dim: int, count: int) -> int | None:
    """Which entry of an index addresses a dimension; None when it is not mentioned."""
    consumed = sum(entry is not None and entry is not Ellipsis for entry in index)
    at = 0
    for place, entry in enumerate(index):
        if entry is None:
            continue
        width = count - consumed if entry is Ellipsis else 1
        if at <= dim < at + width:
            return None if entry is Ellipsis else place
        at += width
    return None


def _as_index(positions: NDArray[np.int64]) -> slice | list[int]:
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    together = np.array_equal(positions, np.arange(first, last + 1))
    return slice(first, last + 1) if together else [int(p) for p in positions]


def _literal(entry: Any) -> bool:
    parts = (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,)
    return not any(isinstance(part, fx.Node) for part in parts)


def _split(site: Site) -> Edit | None:
    """chunk and split: sizes of the pieces, unless the old call still cuts at the right places."""
    source = site.source
    assert source is not None and source.dim is not None and isinstance(site.out, tuple)
    pieces = [piece for piece in site.out if isinstance(piece, Lane)]
    dim = int(site.kwargs.get("dim", site.args[2] if len(site.args) > 2 else 0)) % len(source.shape)
    sizes = [site.size(piece, dim) for piece in pieces]
    name = operation_name(site.node) or ""
    amount = site.node.args[1] if len(site.node.args) > 1 else next(iter(site.node.kwargs.values()))
    if _literal_sizes(amount) and _would_cut(name, amount, int(sum(sizes)), sizes):
        return None
    return Edit((site.node.args[0], sizes, dim), {}, torch.split)


def _literal_sizes(amount: Any) -> bool:
    return not any(isinstance(a, fx.Node) for a in (amount if isinstance(amount, (tuple, list)) else (amount,)))


def _would_cut(name: str, amount: Any, total: int, sizes: list[int]) -> bool:
    try:
        cut = getattr(torch.empty(total), name)(amount)
    except RuntimeError:
        return False
    return [len(part) for part in cut] == sizes


def _pad(site: Site) -> Edit | None:
    """F.pad: as many new channels on each side as stay."""
    source, out = site.source, site.out
    assert source is not None and source.dim is not None
    if not isinstance(out, Lane) or out.dim is None:
        return None
    amounts = list(site.kwargs.get("pad", site.args[1] if len(site.args) > 1 else ()))
    place = 2 * (len(out.shape) - 1 - out.dim)
    if place >= len(amounts):
        return None
    alive = site.alive(out)
    new = [int(alive[: amounts[place]].sum()), int(alive[len(alive) - amounts[place + 1] :].sum())]
    if new == amounts[place : place + 2]:
        return None
    raw = list(site.node.kwargs.get("pad", site.node.args[1] if len(site.node.args) > 1 else ()))  # type: ignore[arg-type]
    raw[place : place + 2] = new
    kwargs = {key: value for key, value in site.node.kwargs.items() if key not in ("pad", "input")}
    return Edit((site.node.args[0], raw, *site.node.args[2:]), kwargs)


def _squeeze(site: Site) -> Edit | None:
    """squeeze() without a dimension would also take the channels once a single one is left."""
    source = site.source
    assert source is not None and source.dim is not None
    if len(site.node.args) > 1 or site.node.kwargs or site.size(source, source.dim) != 1:
        return None
    return Edit((site.node.args[0], tuple(d for d, size in enumerate(source.shape) if size == 1)), {})


_WRITERS: dict[str, Callable[[Site], Edit | None]] = {
    "view": _view,
    "reshape": _view,
    "expand": _view,
    "unflatten": _unflatten,
    "getitem": _getitem,
    "chunk": _split,
    "split": _split,
    "pad": _pad,
    "squeeze": _squeeze,
}
