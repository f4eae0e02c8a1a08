"""From channel classes to groups.

A unit is one class; a group is all units that touch the same sides of the same layers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from automc.graph.channels import PINNED, Classes
from automc.graph.facts import Group, IntArray, Member, Refusal
from automc.graph.holders import Holder


@dataclass(frozen=True, eq=False, slots=True)
class Grouping:
    """All groups of a model, and the channel class of each of their units."""

    groups: tuple[Group, ...]
    classes: Mapping[str, IntArray]
    """(units,) per group name."""
    refused: tuple[Refusal, ...]


def form_groups(holders: Iterable[Holder], classes: Classes) -> Grouping:
    """Groups in forward order of their first producers."""
    ordered = list(holders)
    units = _positions(ordered, classes)
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for root, found in units.items():
        signature = tuple((h, len(at)) for h, at in found.items())
        if any(ordered[h].produces for h, _ in signature):
            alike.setdefault(signature, []).append(root)
    groups: list[Group] = []
    roots: dict[str, IntArray] = {}
    refused: list[Refusal] = []
    for signature, members in sorted(alike.items(), key=lambda item: _first(item[0], ordered)):
        name = _unused(ordered[_first(signature, ordered)], roots)
        if len(members) < 2:
            if max(k for _, k in signature) > 1:
                refused.append(Refusal(name, "coupling", "all its channels can only leave together"))
            continue
        sides = tuple(_member(ordered[h], [units[root][h] for root in members]) for h, _ in signature)
        groups.append(Group(name, len(members), sides))
        roots[name] = np.array(members, dtype=np.int64)
    return Grouping(tuple(groups), roots, tuple(refused))


def _positions(holders: list[Holder], classes: Classes) -> dict[int, dict[int, list[int]]]:
    """class -> holder number -> positions, classes in the order of their first producing position."""
    found: dict[int, dict[int, list[int]]] = {}
    for number, holder in enumerate(holders):
        for position, root in enumerate(classes.roots(holder.ids).tolist()):
            if root != PINNED:
                found.setdefault(root, {}).setdefault(number, []).append(position)
    first = {root: min((h for h in at if holders[h].produces), default=len(holders)) for root, at in found.items()}
    return dict(sorted(found.items(), key=lambda item: (first[item[0]], item[1].get(first[item[0]], [0]))))


def _first(signature: tuple[tuple[int, int], ...], holders: list[Holder]) -> int:
    return min(h for h, _ in signature if holders[h].produces)


def _member(holder: Holder, positions: list[list[int]]) -> Member:
    kind = cast(Literal["layer", "norm", "parameter"], holder.kind)
    axis = cast(Literal["out", "in"] | int, holder.axis)
    return Member(holder.target, kind, axis, np.array(positions, dtype=np.int64))


def _unused(holder: Holder, taken: Mapping[str, IntArray]) -> str:
    name = holder.target
    count = 2
    while name in taken:
        name = f"{holder.target}#{count}"
        count += 1
    return name
