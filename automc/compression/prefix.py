"""Passes that begin where two candidates' decisions part.

The fit of a layer depends on all decisions before it and on none behind it. At a cut of the graph, where one value is
all that the rest needs, a pass leaves that value for every calibration sample and the tensors fitted so far; a later
candidate with the same decisions up to there takes both and goes on behind the cut, bit for bit as if it had begun at
the start. Most candidates of a search share nothing with each other, so a pass leaves something only where a second one
comes by; of candidates that are known together (`sharing_order`), where the next ones part.
"""

import contextlib
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from automc.compression.bounded import Bounded
from automc.compression.structure import Structure
from automc.graph.facts import ModelFacts
from automc.graph.propagate import ONE_TENSOR
from automc.policy import LayerDecision, Policy

T = TypeVar("T")
CUTS = 8
"""Cuts of one pass that are remembered where it is not known who comes next."""
LEAST_WORK = 0.05
"""Share of the MACs that must lie before a cut: nearly all candidates share a stem, and it takes no time."""
Chain = tuple[str, ...]
"""Digests of what a candidate decides before each cut, in order."""


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """A pass at a cut."""

    values: tuple[Tensor, ...]
    """The value there, as a pass stores it."""
    state: Mapping[str, Tensor]
    """Tensors of the modules before it."""
    settled: frozenset[str]
    """Layers fitted and norms that took their intercept."""

    @classmethod
    def of(cls, values: Sequence[Tensor], module: nn.Module, before: set[str], settled: set[str]) -> "Snapshot":
        """Values as a pass stores them, and copies of what was fitted."""
        state = {k: x.detach().clone() for k, x in module.state_dict().items() if _owner(k, before)}
        return cls(tuple(values), state, frozenset(settled))

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in (*self.values, *self.state.values()))


class PassMemory:
    """Snapshots of passes, bounded in bytes, by a digest and the kind of pass, which tells how values are stored."""

    def __init__(self, memory_bytes: int) -> None:
        self._held: Bounded[Snapshot] = Bounded(memory_bytes)
        self._seen: set[str] = set()
        self._plan: Sequence[Chain] | None = None

    def deepest(self, kind: str, digests: Mapping[T, str]) -> tuple[T, Snapshot] | None:
        """The last of some places, given in order, where something is held."""
        for place in reversed(list(digests)):
            found = self._held.get(_key(kind, digests[place]))
            if found is not None:
                return place, found
        return None

    def wanted(self, kind: str, digests: Mapping[T, str]) -> list[T]:
        """Where a pass that comes by these places, given in order, should leave something: behind what is held."""
        keys = {place: _key(kind, digest) for place, digest in digests.items()}
        if self._plan is None:
            chosen = {place for place in spread(list(keys)) if self._again(keys[place])}
        else:
            ends = [[place for place in keys if digests[place] in chain][-1:] for chain in self._plan]
            chosen = {place for end in ends for place in end}
            for place in chosen:
                self._held.get(keys[place])  # counts as a use: others leave first
        ahead = list(itertools.takewhile(lambda place: keys[place] not in self._held, reversed(keys)))
        return [place for place in reversed(ahead) if place in chosen]

    @contextlib.contextmanager
    def planned(self, chains: Sequence[Chain]) -> Iterator[None]:
        """Within, a pass leaves something at the end of each of these chains, or as near before it as it can."""
        before, self._plan = self._plan, chains
        try:
            yield
        finally:
            self._plan = before

    @property
    def limit(self) -> int:
        """Bytes it may hold."""
        return self._held.limit

    @property
    def bytes(self) -> int:
        """Bytes of everything held."""
        return self._held.bytes

    def make_room(self, size: int) -> None:
        """Lets go of snapshots before others of so many bytes are made."""
        self._held.make_room(size)

    def put(self, kind: str, digest: str, snapshot: Snapshot) -> None:
        """Holds a snapshot."""
        self._held.put(_key(kind, digest), snapshot, snapshot.bytes)

    def _again(self, key: str) -> bool:
        """Whether a pass has come by with this key before; from now on one has."""
        again = key in self._seen
        self._seen.add(key)
        return again


def sharing_order(chains: Sequence[Chain]) -> list[tuple[int, tuple[Chain, ...]]]:
    """Candidates in an order in which those that share most follow each other, and what each shares with later ones.

    Of candidates that part at a cut the larger party comes last, so that what is held at once is at most one snapshot
    for each halving of their number.
    """
    sequence = _parted(chains, list(range(len(chains))), 0)
    found = []
    for at, index in enumerate(sequence):
        depths: list[int] = []
        depth = len(chains[index])
        for other in sequence[at + 1 :]:
            depth = min(depth, _common(chains[index], chains[other]))
            if depth == 0:
                break
            if depth not in depths:
                depths.append(depth)
        found.append((index, tuple(chains[index][:depth] for depth in depths)))
    return found


def _parted(chains: Sequence[Chain], indices: list[int], depth: int) -> list[int]:
    """Candidates that share so many digests, the smaller parties first."""
    while len(indices) > 1:
        parties: dict[str, list[int]] = defaultdict(list)
        for index in indices:
            parties[chains[index][depth] if depth < len(chains[index]) else ""].append(index)
        if len(parties) > 1:
            ranked = sorted(parties.values(), key=lambda party: (len(party), party[0]))
            return [index for party in ranked for index in _parted(chains, party, depth + 1)]
        if "" in parties:
            break
        depth += 1
    return indices


def _common(one: Chain, other: Chain) -> int:
    """Digests two chains begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _key(kind: str, digest: str) -> str:
    return f"{kind} {digest}"


def cuts(graph: fx.Graph) -> list[fx.Node]:
    """Nodes behind which nothing but their own value is needed, in order."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found, live = [], 0  # live: the last use of anything before
    for node, i in order.items():
        last = max((order[user] for user in node.users), default=i)
        if live <= i and node.op in ("call_module", "call_function", "call_method") and last > i:
            found.append(node)
        live = max(live, last)
    return found


def worthwhile(graph: fx.Graph, facts: ModelFacts) -> list[fx.Node]:
    """Those cuts that save enough work to hold a value for, none of them before a batch norm: a layer's fit settles
    the norm behind it, too."""
    norms = {norm.name for norm in facts.norms}
    macs = {layer.name: layer.macs for layer in facts.layers}
    before = dict(zip(graph.nodes, itertools.accumulate(macs.get(str(n.target), 0) for n in graph.nodes), strict=True))
    least = LEAST_WORK * sum(macs.values())
    found = (n for n in cuts(graph) if before[n] >= least and n.meta.get(ONE_TENSOR, True))
    return [n for n in found if not any(str(u.target) in norms for u in n.users)]


def spread(found: Sequence[T]) -> list[T]:
    """A few cuts of many, evenly."""
    return list(found[:: -(-len(found) // CUTS)]) if found else []


def keys(
    graph: fx.Graph, at: Sequence[fx.Node], facts: ModelFacts, policy: Policy, structure: Structure
) -> dict[fx.Node, str]:
    """A digest of everything decided before each cut."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    called: dict[str, int] = {}
    for node, i in order.items():
        if node.op == "call_module":
            called.setdefault(str(node.target), i)
    decided = [(called.get(name, -1), f"{name} {d.effective}".encode()) for name, d in policy.layers if _decides(d)]
    for name, units in structure.kept.items():
        first = min(called.get(member.target, -1) for member in facts.group(name).members)
        decided.append((first, name.encode() + b" " + units.tobytes()))
    waiting = sorted(decided)
    digest = hashlib.sha256(f"{policy.recipe} {policy.dropped}".encode())
    found = {}
    for node in at:
        while waiting and waiting[0][0] <= order[node]:
            digest.update(waiting.pop(0)[1] + b"\0")
        found[node] = hashlib.sha256(digest.digest() + node.name.encode()).hexdigest()
    return found


def restore(snapshot: Snapshot, module: nn.Module) -> None:
    """Gives the modules before the cut their fitted values."""
    with torch.no_grad():
        module.load_state_dict(dict(snapshot.state), strict=False)


def modules_before(graph: fx.Graph, node: fx.Node) -> set[str]:
    """Modules called up to a node, itself included."""
    found: set[str] = set()
    for earlier in graph.nodes:
        if earlier.op == "call_module":
            found.add(str(earlier.target))
        if earlier is node:
            break
    return found


def _decides(decision: LayerDecision) -> bool:
    return decision.effective != LayerDecision()


def _owner(key: str, modules: set[str]) -> bool:
    """Whether a tensor belongs to one of the modules or to a part of one."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in modules for n in range(len(parts), 0, -1))
