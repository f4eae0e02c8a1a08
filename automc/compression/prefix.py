"""Passes that begin where two candidates' decisions part.

The fit of a layer depends on all decisions before it and on none behind it. At a cut of the graph, where one value is
all that the rest needs, a pass leaves that value for every calibration sample and the tensors fitted so far; a later
candidate with the same decisions up to there takes both and goes on behind the cut, bit for bit as if it had begun at
the start. Most candidates of a search share nothing with each other, so a pass leaves something only where a second one
comes by.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from automc.compression.bounded import Bounded
from automc.compression.structure import Structure
from automc.graph.facts import ModelFacts
from automc.policy import LayerDecision, Policy

T = TypeVar("T")
CUTS = 8
"""Cuts of one pass that are remembered."""


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
    """Snapshots of passes, bounded in bytes."""

    def __init__(self, memory_bytes: int) -> None:
        self._held: Bounded[Snapshot] = Bounded(memory_bytes)
        self._seen: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __getitem__(self, key: str) -> Snapshot:
        found = self._held.get(key)
        if found is None:
            raise KeyError(key)
        return found

    @property
    def limit(self) -> int:
        """Bytes it may hold."""
        return self._held.limit

    @property
    def bytes(self) -> int:
        """Bytes of everything held."""
        return self._held.bytes

    def wants(self, key: str) -> bool:
        """Whether a pass has come by with this key before and left nothing; from now on one has."""
        again = key in self._seen and key not in self._held
        self._seen.add(key)
        return again

    def make_room(self, size: int) -> None:
        """Lets go of snapshots before others of so many bytes are made."""
        self._held.make_room(size)

    def put(self, key: str, snapshot: Snapshot) -> None:
        """Holds a snapshot."""
        self._held.put(key, snapshot, snapshot.bytes)


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


def spread(found: Sequence[T]) -> list[T]:
    """A few cuts of many, evenly."""
    return list(found[:: -(-len(found) // CUTS)]) if found else []


def keys(
    graph: fx.Graph, at: Sequence[fx.Node], facts: ModelFacts, policy: Policy, structure: Structure, kind: str
) -> dict[fx.Node, str]:
    """A digest of everything decided before each cut; `kind` tells passes apart that store values in other ways."""
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
    digest = hashlib.sha256(f"{kind} {policy.recipe} {policy.dropped}".encode())
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
