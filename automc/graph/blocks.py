"""Residual blocks: branches that an addition adds to a shortcut, and that a model can do without.

A branch is everything that serves one operand of an addition and nothing else. Without it the addition gives its
other operand, so both must have the sum's shape. Of nested branches only the innermost are blocks.
"""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TypeVar

import torch
from torch import fx, nn

from automc.graph.channels import Lane, Lanes
from automc.graph.facts import Block, LayerFacts, NormFacts
from automc.graph.rewrite import Edit

ADDITIONS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_Value = TypeVar("_Value")


def residual_blocks(
    graph: fx.Graph,
    lanes: Mapping[str, Lanes],
    macs: Mapping[str, float],
    model: nn.Module,
    layers: Sequence[LayerFacts],
    norms: Sequence[NormFacts],
) -> tuple[Block, ...]:
    """Every branch with a layer in it, in forward order."""
    found: list[tuple[Block, set[fx.Node]]] = []
    for node in graph.nodes:
        if not _is_addition(node) or len(node.all_input_nodes) != 2:
            continue
        sides = [_branch(node, side, lanes) for side in (0, 1)]
        if any(_shape(lanes, n) != _shape(lanes, node) or _shape(lanes, n) is None for n in node.all_input_nodes):
            continue
        counts = [sum(x.name in _targets(side) for x in layers) for side in sides]
        side = int(counts[1] >= counts[0])
        shortcut = node.args[1 - side]
        if counts[side] and isinstance(shortcut, fx.Node) and shortcut not in sides[side]:
            block = _block(node, side, sides[side], macs, model, layers, norms)
            if block is not None:
                found.append((block, sides[side]))
    ends = {block.at for block, _ in found}
    inner = [block for block, branch in found if not any(n.name in ends for n in branch)]
    return tuple(_named(inner))


def dropped(graph: fx.Graph, blocks: Sequence[Block]) -> dict[str, Edit]:
    """What becomes of the additions, by node name, when these blocks' branches are gone."""
    nodes = {n.name: n for n in graph.nodes}
    return {b.at: Edit((nodes[b.at].args[1 - b.side],), {}, stays) for b in blocks}


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one; None where there are several, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def other_operand(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """The node added to `node` by `user`, if `user` is a plain addition of two different nodes."""
    others = [a for a in user.args if a is not node] if _is_addition(user) else []
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _is_addition(node: fx.Node) -> bool:
    """Whether a node adds two things and does nothing else; a module may have any name."""
    return node.op != "call_module" and node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs


def stays(shortcut: _Value) -> _Value:
    """What is left of an addition without its branch."""
    return shortcut


def _branch(node: fx.Node, side: int, lanes: Mapping[str, Lanes]) -> set[fx.Node]:
    """The nodes that serve this operand of an addition and nothing else; a number nobody reads serves nobody."""
    end = node.args[side]
    if not isinstance(end, fx.Node) or set(end.users) != {node} or end.op == "placeholder":
        return set()
    own = {end}
    earlier = end.prev
    while earlier.op != "root":  # backwards, so every user is decided before what it uses
        read = bool(earlier.users) or lanes.get(earlier.name) is None
        if earlier.op != "placeholder" and read and set(earlier.users) <= own:
            own.add(earlier)
        earlier = earlier.prev
    return own


def _shape(lanes: Mapping[str, Lanes], node: fx.Node) -> tuple[int, ...] | None:
    lane = lanes.get(node.name)
    return lane.shape if isinstance(lane, Lane) else None


def _targets(branch: set[fx.Node]) -> set[str]:
    return {str(n.target) for n in branch if n.op == "call_module"}


def _block(
    node: fx.Node,
    side: int,
    branch: set[fx.Node],
    macs: Mapping[str, float],
    model: nn.Module,
    layers: Sequence[LayerFacts],
    norms: Sequence[NormFacts],
) -> Block | None:
    """The block, or None where a layer or a norm of it lives on elsewhere."""
    others = [n for n in node.graph.nodes if n not in branch]
    used, elsewhere = _held(branch), _held(others)
    inside = tuple(x.name for x in layers if x.name in used)
    batch_norms = tuple(x.name for x in norms if x.name in used)
    tied = any(x.tied for x in layers if x.name in used)
    if tied or not elsewhere.isdisjoint((*inside, *batch_norms)):
        return None
    lost = _parameters(used - {*inside, *batch_norms}, model) - _parameters(elsewhere, model)
    sizes = {name: p.numel() for name, p in model.named_parameters() if name in lost}
    other_macs = sum(macs[n.name] for n in branch if str(n.target) not in inside)
    nodes = frozenset(n.name for n in branch)
    return Block("", node.name, side, inside, batch_norms, sum(sizes.values()), other_macs, nodes, tuple(sizes))


def _held(nodes: Iterable[fx.Node]) -> set[str]:
    """Paths of the modules that some nodes call, and of the parameters and buffers that they read."""
    return {str(n.target) for n in nodes if n.op in ("call_module", "get_attr")}


def _parameters(paths: Iterable[str], model: nn.Module) -> set[str]:
    """Names of the parameters under some paths; of a shared one its first."""
    first = {id(p): name for name, p in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    prefixes = tuple(f"{path}." for path in paths)
    return {first[id(p)] for name, p in every if f"{name}.".startswith(prefixes)}


def _named(blocks: Sequence[Block]) -> list[Block]:
    """The shortest name that no other block has: a path its layers share, from its first to its last layer, or that of
    the addition."""
    choices = [_names(block) for block in blocks]
    taken = Counter(name for names in choices for name in names)
    return [
        replace(block, name=next((name for name in names if taken[name] == 1), block.at))
        for block, names in zip(blocks, choices, strict=True)
    ]


def _names(block: Block) -> list[str]:
    """What a block may be called, the best first; its one layer's name where it has no other."""
    first, last = block.layers[0], block.layers[-1]
    if len(block.layers) == 1:
        return [name for name in (first.rpartition(".")[0], first) if name]
    shared = _shared_path(block.layers)
    inside = len(shared) + 1 if shared else 0
    return [name for name in (shared, f"{first}..{last[inside:]}") if name]


def _shared_path(names: Sequence[str]) -> str:
    parts = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return ".".join(level[0] for level in shared)
