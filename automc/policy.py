"""The policy: every decision about one model, as frozen data with a versioned JSON form.

A policy holds decisions, not weights: the same policy applied to the same model with the same calibration
data gives the same compressed model.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from automc.errors import PolicyError
from automc.files import parsed_json
from automc.pattern import parse
from automc.visible import brief

FORMAT = "automc-policy"
VERSION = 1
FULL_BITS = 32
Codebooks = Literal["uniform", "kmeans"]
"""In the order of what they cost."""
PAIRS = ("svd", "spatial")
"""Factorizations that make two layers of one."""


@dataclass(frozen=True, slots=True)
class GroupDecision:
    """What is decided for one group of coupled channels."""

    keep: float = 1.0
    """Share of the group's units kept, in (0, 1]."""
    criterion: str = "obs"
    """Registered criterion that ranks the units."""


@dataclass(frozen=True, slots=True)
class LayerDecision:
    """What is decided for the weights of one layer."""

    weight_bits: int = FULL_BITS
    """Bits a stored weight takes, 2-8, or 32 for float."""
    activation_bits: int = FULL_BITS
    """Bits of the layer's quantized input, 4-8, or 32 for float."""
    sparsity: float = 0.0
    """Share of the kept weights set to zero, in [0, 1)."""
    codebook: Codebooks = "uniform"
    """Levels of few-bit weights: evenly spaced for each output channel, or k-means centroids of the layer."""
    rank: float = 1.0
    """Share of the layer's parameters and MACs that its factors may take, in (0, 1]; 1 leaves it whole."""
    factorization: str = "svd"
    """How it is factored: svd, spatial, tucker2, cp, eigendamage or tt; unused at rank 1. Where two factors make the
    layer (`PAIRS`), each takes the layer's decisions: its zeros, its bits."""
    pattern: str = "element"
    """Which weights leave together: element, N:M or RxC (see `automc.pattern`); unused at sparsity 0."""
    criterion: str = "l1"
    """Registered criterion that ranks single weights; unused at sparsity 0."""

    @property
    def effective(self) -> "LayerDecision":
        """The same decision with the default wherever a value is unused: equal for equal layers."""
        unused: dict[str, Any] = {}
        if self.sparsity == 0:
            unused |= {"pattern": "element", "criterion": "l1"}
        if self.rank == 1:
            unused |= {"factorization": "svd"}
        if self.weight_bits == FULL_BITS:
            unused |= {"codebook": "uniform"}
        return replace(self, **unused)


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """What is decided for one residual block."""

    keep: float = 1.0
    """1 keeps the block, 0 leaves only its shortcut."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How decisions are carried out; part of the policy, so that applying it later repeats the scored model."""

    reconstruct: Literal["none", "layerwise", "sequential"] = "sequential"
    """Least-squares refit of the kept weights: none, each layer by itself, or in forward order."""
    batchnorm: Literal["keep", "reestimate"] = "reestimate"
    """Whether batch-norm statistics that the refit leaves in place are estimated anew."""
    images: int = 1024
    """Calibration samples used, at most."""
    rows: int = 16384
    """Sampled positions per layer used by the refit, at most."""
    ridge: float = 1e-3
    """Ridge of the refit, relative to the mean of the Gram matrix's diagonal."""
    rounding: Literal["nearest", "gptq"] = "gptq"
    """How weights are rounded: each to the nearest, or column by column with errors handed on."""
    activation_range: Literal["minmax", "percentile", "mse", "kl"] = "mse"
    """How the range of a quantized input is chosen."""
    seed: int = 0
    """Seed of the sampled positions and of the random criterion."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Recipe).items():
            choices, value = get_args(kind), getattr(self, name)
            if choices and value not in choices:
                raise PolicyError(
                    f"A recipe's {name} must be one of {choices}; it is {brief(value)}: choose one of them."
                )
        for name, least, bound in (("images", 1, 2**31), ("rows", 1, 2**31), ("seed", 0, 2**63)):
            value = getattr(self, name)
            if not least <= value < bound:
                raise PolicyError(
                    f"A recipe's {name} must be at least {least} and below {bound}; it is {brief(value)}: change it."
                )
        if not 0 <= self.ridge < float("inf"):
            raise PolicyError(f"A recipe's ridge must be finite and not negative; it is {self.ridge}: try 0.001.")

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """Reads what `dataclasses.asdict` gives; anything else raises PolicyError."""
        return _read(cls, data, "recipe")


@dataclass(frozen=True, slots=True)
class Policy:
    """All decisions for one model, keyed by group and layer name in forward order."""

    fingerprint: str
    """Fingerprint of the dense model this policy was made for."""
    groups: tuple[tuple[str, GroupDecision], ...] = ()
    layers: tuple[tuple[str, LayerDecision], ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    blocks: tuple[tuple[str, BlockDecision], ...] = ()
    _digest: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    """None yet, or the one: it is asked for again and again."""

    def __post_init__(self) -> None:
        for name, group in self.groups:
            _check_group(name, group)
        for name, layer in self.layers:
            _check_layer(name, layer)
        for name, block in self.blocks:
            if block.keep not in (0.0, 1.0):
                raise PolicyError(
                    f"keep of a block must be 0 or 1; block {brief(name)} has {brief(block.keep)}: choose one."
                )
        for kind, pairs in (("group", self.groups), ("layer", self.layers), ("block", self.blocks)):
            twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
            if twice:
                raise PolicyError(
                    f"Each {kind} must stand once in a policy; {brief(twice[0])} stands twice: remove one."
                )

    def group(self, name: str) -> GroupDecision:
        """The decision for group `name`; all channels kept where the policy says nothing."""
        return dict(self.groups).get(name, GroupDecision())

    def layer(self, name: str) -> LayerDecision:
        """The decision for layer `name`; dense float where the policy says nothing."""
        return dict(self.layers).get(name, LayerDecision())

    def block(self, name: str) -> BlockDecision:
        """The decision for residual block `name`; kept where the policy says nothing."""
        return dict(self.blocks).get(name, BlockDecision())

    @property
    def dropped(self) -> tuple[str, ...]:
        """Residual blocks left out."""
        return tuple(name for name, decision in self.blocks if not decision.keep)

    def with_recipe(self, recipe: Recipe) -> "Policy":
        """The same decisions, carried out by another recipe."""
        return replace(self, recipe=recipe)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form: the key under which scores and files are kept."""
        if not self._digest:
            self._digest.append(hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest())
        return self._digest[0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain dictionaries."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "recipe": _plain(self.recipe),
            "groups": {name: _plain(decision) for name, decision in self.groups},
            "layers": {name: _plain(decision) for name, decision in self.layers},
            "blocks": {name: _plain(decision) for name, decision in self.blocks},
        }

    def to_json(self) -> str:
        """The JSON form as text, indented for people."""
        return json.dumps(self.to_dict(), indent=1)

    def to_line(self) -> str:
        """The JSON form as text, on one line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Policy":
        """Reads the form `to_dict` writes; anything else raises PolicyError."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PolicyError(f'A policy file must have "format": "{FORMAT}"; this one has not: give a policy.json.')
        if data.get("version") != VERSION:
            raise PolicyError(
                f"This automc reads policy version {VERSION}; the file has {brief(data.get('version'))}: update automc."
            )
        unknown = [name for name in data if name not in _KEYS]
        fingerprint = data.get("fingerprint", "")
        if unknown or not isinstance(fingerprint, str):
            what = f"{brief(unknown[0])} is none of them" if unknown else f"its fingerprint is {brief(fingerprint)}"
            raise PolicyError(f"A policy must hold {', '.join(_KEYS)}; {what}: mend the file.")
        return cls(
            fingerprint=fingerprint,
            groups=tuple((n, _read(GroupDecision, d, n)) for n, d in _section(data, "groups").items()),
            layers=tuple((n, _read(LayerDecision, d, n)) for n, d in _section(data, "layers").items()),
            recipe=Recipe.from_dict(data.get("recipe", {})),
            blocks=tuple((n, _read(BlockDecision, d, n)) for n, d in _section(data, "blocks").items()),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Policy":
        """Reads the form `to_json` or `to_line` writes; anything else raises PolicyError."""
        try:
            data = parsed_json(text)
        except ValueError as error:
            raise PolicyError(
                f"A policy must be JSON; this text is not ({error}): give an unbroken policy.json."
            ) from error
        return cls.from_dict(data)


_KEYS = ("format", "version", "fingerprint", "recipe", "groups", "layers", "blocks")
_Decision = TypeVar("_Decision", GroupDecision, LayerDecision, BlockDecision, Recipe)


def _plain(decision: Any) -> dict[str, Any]:
    return {f.name: getattr(decision, f.name) for f in fields(decision)}


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = data.get(name, {})
    if not isinstance(section, Mapping):
        raise PolicyError(f'"{name}" of a policy must be an object; it is a {type(section).__name__}: mend the file.')
    return section


def _read(kind: type[_Decision], data: Any, where: str) -> _Decision:
    """Builds a decision from its JSON object, with every value checked against the field's type."""
    known = {f.name for f in fields(kind)}
    if not isinstance(data, Mapping) or not set(data) <= known:
        raise PolicyError(
            f"{brief(where)} of a policy may hold {sorted(known)}; it holds {brief(data)}: mend the file."
        )
    defaults, numbers = kind(), dict[str, Any]()
    for name, value in data.items():
        expected = type(getattr(defaults, name))
        fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
        if not fits or isinstance(value, bool):
            raise PolicyError(
                f"{name} of {brief(where)} must be a {expected.__name__}; it is {brief(value)}: mend the file."
            )
        numbers[name] = _float(value) if expected is float else value  # 1 and 1.0 are one policy, with one digest
    return kind(**numbers)


def _float(value: float) -> float:
    """A number of any size as one of the usual precision, which may be infinite."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _check_group(name: str, decision: GroupDecision) -> None:
    if not 0.0 < decision.keep <= 1.0:
        raise PolicyError(
            f"keep must lie in (0, 1]; group {brief(name)} has {brief(decision.keep)}: keep at least one channel."
        )


def _check_layer(name: str, decision: LayerDecision) -> None:
    for what, bits in (("weight_bits", decision.weight_bits), ("activation_bits", decision.activation_bits)):
        if bits != FULL_BITS and not 2 <= bits <= 8:
            raise PolicyError(f"{what} must be 2-8 or 32; layer {brief(name)} has {brief(bits)}: choose one of them.")
    if decision.codebook not in get_args(Codebooks):
        raise PolicyError(
            f"codebook must be one of {get_args(Codebooks)}; layer {brief(name)} has {brief(decision.codebook)}: take "
            "one."
        )
    if not 0.0 < decision.rank <= 1.0:
        raise PolicyError(
            f"rank must lie in (0, 1]; layer {brief(name)} has {brief(decision.rank)}: keep at least rank one."
        )
    few = min(decision.weight_bits, decision.activation_bits) < FULL_BITS
    if decision.rank < 1.0 and decision.factorization not in PAIRS and (few or decision.sparsity > 0):
        raise PolicyError(
            f"Factors by {brief(decision.factorization)} must be dense and float; layer {brief(name)} has other "
            f"decisions, too: take {' or '.join(PAIRS)}, or drop them."
        )
    if not 0.0 <= decision.sparsity < 1.0:
        raise PolicyError(
            f"sparsity must lie in [0, 1); layer {brief(name)} has {brief(decision.sparsity)}: keep some weights."
        )
    share = parse(decision.pattern).share
    if share is not None and decision.sparsity not in (0.0, share):
        raise PolicyError(
            f"Pattern {decision.pattern} makes sparsity {share}; layer {brief(name)} has {decision.sparsity}: write "
            f"{share}."
        )
