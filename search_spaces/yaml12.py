"""YAML with the scalars of version 1.2 (its core schema), and each key of a mapping once.

2:4 is text there, which YAML 1.1 reads as the number 124; of a key that stands twice PyYAML silently takes the last.
Version 1.2 has no merge keys, either. Aliases may stand for much more than the file holds, so that what they make is
counted.
"""

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from automc.errors import SpaceError
from automc.visible import brief, visible

MOST = 100_000
"""Values that a file may hold, those counted that aliases stand for."""
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", tuple("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", tuple("-+.0123456789")),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """By first character, what a plain scalar may be."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, first in _SCALARS:
        for character in first:
            found.setdefault(character, []).append((f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$")))
    return found


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        name, count = names.most_common(1)[0] if names else ("", 0)
        if count > 1:
            raise yaml.MarkedYAMLError(problem=f"the key {brief(name)} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges nothing: a few lines of merges of merges would be billions of keys."""


def parsed(text: str, where: str) -> Mapping[str, Any]:
    """The mapping a text holds; SpaceError, which names `where` it stands, for anything else."""
    try:
        found = yaml.load(text, _Loader)
    except (RecursionError, ValueError) as error:
        problem = "a number of too many digits" if isinstance(error, ValueError) else "it is nested too deep"
        raise SpaceError(f"A space file must be YAML; {where} is not ({problem}): mend it.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        problem = visible(str(getattr(error, "problem", None) or "a character it may not hold"))[:200]
        raise SpaceError(f"A space file must be YAML; {where} is not{line} ({problem}): mend it.") from error
    if _endless(found):
        raise SpaceError(f"A space file must hold {MOST} values at most; {where} holds more: write fewer aliases.")
    if not isinstance(found, Mapping):
        kind = "empty" if found is None else f"a {type(found).__name__}"
        raise SpaceError(f"A space file must hold keys and values; {where} is {kind}: begin with open: [channels].")
    return found


def _endless(found: Any) -> bool:
    """Whether there are more than `MOST` values in a tree; aliases may make it larger than any memory, or a ring."""
    left, seen = [found], 0
    while left and seen <= MOST:
        value = left.pop()
        seen += 1
        left += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return seen > MOST
