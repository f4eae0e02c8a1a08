"""Which groups, layers and blocks a space decides, and which together, by patterns of their names (`fnmatch`)."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from automc.errors import SpaceError
from automc.graph.facts import ModelFacts
from automc.space import Axis, Value, first_layers
from automc.visible import brief

Patterns = Sequence[str]


def matches(name: str, patterns: Patterns) -> bool:
    """Whether a name fits one of some patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Patterns, facts: ModelFacts, where: str) -> None:
    """Raises SpaceError, which says `where` it stands, for a pattern that fits nothing in the model."""
    names = sorted({name for places in first_layers(facts).values() for name in places})
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern[:200].strip("*."), names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else "see `automc inspect`."
            raise SpaceError(
                f"A pattern must fit a group, layer or block of the model; {brief(pattern)} of {where} fits none: "
                f"{hint}"
            )


def chosen(axes: Iterable[Axis], only: Patterns, excluded: Patterns) -> tuple[Axis, ...]:
    """Axes of the places that fit `only` and none of `excluded`; one of several places keeps those of them that do."""
    found = []
    for axis in axes:
        places = [p for p in axis.places if matches(p, only) and not matches(p, excluded)]
        if places:
            found.append(replace(axis, place=places[0], also=tuple(places[1:])))
    return tuple(found)


def tied(axes: Sequence[Axis], ties: Sequence[Patterns]) -> tuple[Axis, ...]:
    """Axes in forward order, those of one kind of decision that fit the same list as one, at the first of them.

    It has the values they share; lists that fit the same place are one. SpaceError for a list that joins nothing, and
    for decisions with too few values in common.
    """
    for patterns in ties:
        together: dict[tuple[str, str], list[Axis]] = {}
        for axis in axes:
            if any(matches(place, patterns) for place in axis.places):
                together.setdefault((axis.kind, axis.field), []).append(axis)
        joins = {group[0]: _as_one(group) for group in together.values() if len(group) > 1}
        if not joins:
            raise SpaceError(
                f"A tie must join decisions; {brief(list(patterns))} fits no two open ones of a kind: mend its "
                "patterns."
            )
        gone = {a for group in together.values() if len(group) > 1 for a in group[1:]}
        axes = tuple(joins.get(a, a) for a in axes if a not in gone)
    return tuple(axes)


def _as_one(axes: Sequence[Axis]) -> Axis:
    first, *others = axes
    shared: tuple[Value, ...] = tuple(v for v in first.values if all(v in a.values for a in others))
    if len(shared) < min(2, len(first.values)):
        names = ", ".join(a.place for a in axes)
        raise SpaceError(
            f"Decisions tied together must have values in common; {first.field} of {names} has too few: tie fewer."
        )
    return replace(first, values=shared, also=tuple(p for a in axes for p in a.places)[1:])
