"""Which registered spaces would do where the chosen one does not: each built for the model and asked, none guessed."""

from collections.abc import Mapping

from automc.graph.facts import ModelFacts
from automc.registry import SPACES
from automc.space import SearchSpace


def spaces(facts: ModelFacts) -> dict[str, SearchSpace]:
    """Every registered space that opens something in this model, by name."""
    built = {name: _built(name, facts) for name in SPACES}
    return {name: space for name, space in built.items() if space is not None and space.axes}


def nearest(space: SearchSpace, others: Mapping[str, SearchSpace]) -> list[str]:
    """Names of `others`: those first that leave open what `space` does, of these the ones that open the least."""
    wanted = _decided(space)

    def distance(name: str) -> tuple[bool, int, int]:
        decided = _decided(others[name])
        return not wanted <= decided, len({field for _, _, field in decided}), len(decided)

    return sorted(others, key=distance)


def listed(names: list[str], most: int = 2) -> str:
    """A few names as a sentence has them."""
    return " or ".join(names[:most])


def _built(name: str, facts: ModelFacts) -> SearchSpace | None:
    """A registered space; None where it cannot be had for this model."""
    try:
        return SearchSpace(facts, SPACES.load(name)(facts))
    except Exception:  # of a plug-in, which may raise anything
        return None


def _decided(space: SearchSpace) -> set[tuple[str, str, str]]:
    """What changes costs, by place, kind and field."""
    return {(place, a.kind, a.field) for a in space.axes if a.ordered for place in a.places}
