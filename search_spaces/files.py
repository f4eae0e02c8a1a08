"""Search spaces in YAML files: the presets, and the user's own.

open: [channels, bits]                          registered spaces, joined in forward order
channels: {least_keep: 0.2, multiple_of: 8}     options of what is open, a section a kind (see `options`)
bits: {weights: [4, 8], activations: [8]}
only: ["layer3.*"]                              groups, layers and blocks that are decided at all
except: ["*.shortcut"]                          and those that are not
ties: [["layer1.*.conv1"], ["fc1", "fc2"]]      what one list fits is decided once, for all of it
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from automc.errors import SpaceError
from automc.files import read_file, sha256
from automc.graph.facts import ModelFacts
from automc.registry import SPACES
from automc.search_spaces.joined import joined
from automc.search_spaces.options import Bits, Codebooks, Factors, Ranking, Widths, Zeros
from automc.search_spaces.places import check_patterns, chosen, tied
from automc.search_spaces.yaml12 import parsed
from automc.space import Axis, SpaceBuilder
from automc.visible import brief

SECTIONS: Mapping[str, type[BaseModel]] = {
    "channels": Widths,
    "criteria": Ranking,
    "ranks": Factors,
    "weights": Zeros,
    "bits": Bits,
    "codebooks": Codebooks,
}
MOST_BYTES = 2**17
"""That a space file may have: it takes seconds to read so many."""
Patterns = tuple[StrictStr, ...]
Model = TypeVar("Model", bound=BaseModel)


class Document(BaseModel):
    """What a space file holds besides the sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    open: Annotated[Patterns, Field(min_length=1, max_length=len(SPACES.table))]
    only: Annotated[Patterns, Field(min_length=1)] = ("*",)
    excluded: Annotated[Patterns, Field(alias="except")] = ()
    ties: tuple[Annotated[Patterns, Field(min_length=1)], ...] = ()


@dataclass(frozen=True, eq=False)
class FileSpace:
    """What a file opens, as a function of a model's facts."""

    name: str
    """Of a preset its own; of any other file its stem and a digest of what it says."""
    parts: tuple[SpaceBuilder, ...]
    document: Document

    def __call__(self, facts: ModelFacts) -> tuple[Axis, ...]:
        """The axes; SpaceError for a pattern that fits nothing in the model."""
        said = self.document
        check_patterns((*said.only, *said.excluded, *(p for tie in said.ties for p in tie)), facts, self.name)
        axes = dict.fromkeys(axis for part in self.parts for axis in part(facts))
        return tied(joined(facts, chosen(axes, said.only, said.excluded)), said.ties)


def read(path: Path) -> FileSpace:
    """A user's file; SpaceError or RegistryError, in one sentence that names the key, for what is no space."""
    try:
        text = read_file(path, MOST_BYTES).decode()
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.stem, SPACES, n=1)
        hint = f"did you mean the space {near[0]!r}?" if near else "give its path."
        raise SpaceError(f"A space file must exist; {path} does not: {hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SpaceError(f"A space file must be readable; {path} is not ({said}): give a YAML file.") from error
    found = parsed(text, str(path))
    space = made(path.stem, found, str(path))
    digest = sha256(json.dumps(found, sort_keys=True).encode())
    return replace(space, name=f"{path.stem}-{digest[:8]}")


def preset(name: str) -> FileSpace:
    """A space that comes with automc."""
    text = (files("automc.search_spaces") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return made(name, parsed(text, f"preset {name}"), f"preset {name}")


def __getattr__(name: str) -> FileSpace:
    """Presets as attributes, as the registry asks for them."""
    if not (files("automc.search_spaces") / "presets" / f"{name}.yaml").is_file():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return preset(name)


def made(name: str, found: Mapping[str, Any], where: str) -> FileSpace:
    """The space that a file's keys and values describe."""
    sections = {key: value for key, value in found.items() if key in SECTIONS}
    rest = {key: value for key, value in found.items() if key not in SECTIONS}
    document = _valid(Document, rest, where, "")
    used: set[str] = set()
    parts = []
    for opened in document.open:
        builder: SpaceBuilder = SPACES.load(opened)
        options = _options(builder, sections, where)
        used |= options.keys()
        parts.append(partial(builder, **{p: value for _, (p, value) in options.items()}))
    for key in sections:
        if key not in used:
            raise SpaceError(
                f"A section of a space file must belong to what is open; {key} of {where} does not "
                f"belong to {', '.join(document.open)}: open more, or leave it out."
            )
    return FileSpace(name, tuple(parts), document)


def _options(builder: Callable[..., Any], sections: Mapping[str, Any], where: str) -> dict[str, tuple[str, BaseModel]]:
    """By section the argument a builder takes it as, and its value: the builder's own default, with what is said."""
    found = {}
    for parameter in inspect.signature(builder).parameters.values():
        for key, kind in SECTIONS.items():
            if key in sections and isinstance(parameter.default, kind):
                found[key] = parameter.name, _merged(parameter.default, sections[key], where, key)
    return found


def _merged(default: BaseModel, said: Any, where: str, key: str) -> BaseModel:
    defaults = default.model_dump()
    whole = defaults | dict(said) if isinstance(defaults, dict) and isinstance(said, Mapping) else said
    return _valid(type(default), whole, where, key)


def _valid(kind: type[Model], value: Any, where: str, section: str) -> Model:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise SpaceError(_sentence(error, kind, where, section)) from error


def _sentence(error: ValidationError, kind: type[BaseModel], where: str, section: str) -> str:
    """The first thing that is wrong."""
    found = error.errors(include_url=False)[0]
    steps = [section] if section else []
    for step in found["loc"]:
        if isinstance(step, int) and steps:
            steps[-1] += f"[{step}]"
        else:
            steps.append(str(step))
    key, said = ".".join(steps), found["input"]
    if found["type"] in ("extra_forbidden", "invalid_key"):
        known = [field.alias or name for name, field in kind.model_fields.items()] + ([] if section else [*SECTIONS])
        near = difflib.get_close_matches(steps[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        return f"A key of a space file must be known; {brief(key)} of {where} is not: {hint}"
    if found["type"] == "missing":
        return f"A space file must say what is open; {where} does not: begin with open: [channels]."
    if found["type"] == "value_error":
        return f"{key or 'Options'} of {where}: {found['ctx']['error']}"
    plain = {
        "too_short": "must hold something",
        "too_long": "must hold less",
        "tuple_type": "must be a list",
        "model_type": "must hold keys",
    }
    must = plain.get(found["type"], re.sub(r"^Input should ", "must ", found["msg"]))
    return f"{key} of a space file {must}; {where} has {brief(said)}: mend it."
