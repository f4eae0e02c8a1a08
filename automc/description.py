"""What a study says of its search, held against its form when it is read: a storage may be anybody's.

Only what automc reads again is looked at; of what stands there besides, nothing is believed.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from automc.errors import StudyError
from automc.space import Axis
from automc.space import Field as Decided
from automc.visible import brief

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Cost = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_KINDS = ("group", "layer", "block")


class Said(dict[str, Any]):
    """What a study says; what it does not say, and is asked for, raises StudyError."""

    def __init__(self, found: Mapping[str, Any], of: str) -> None:
        super().__init__(found)
        self.of = of

    def __missing__(self, key: str) -> NoReturn:
        raise _unlike(key, self.of)


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Scored(_Form):
    """The dense model, or the uniform baseline."""

    score: Number | None = None
    metric: Number | None = None
    costs: dict[StrictStr, Cost] = Field(default_factory=dict)


class _Earlier(_Form):
    """A study whose trials were shown to the searcher."""

    storage: StrictStr
    study: StrictStr
    trials: Annotated[int, Field(strict=True, ge=0)]


class _Description(_Form):
    fingerprint: StrictStr
    limits: Annotated[dict[StrictStr, Limit], Field(min_length=1)]
    budget: StrictStr = ""
    dense: _Scored | None = None
    recipe: dict[StrictStr, Any] | None = None
    task: StrictStr | None = None
    space: StrictStr = ""
    searcher: StrictStr = ""
    score: StrictStr = "metric"
    metric: StrictStr = ""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    uniform: _Scored | None = None
    in_flight: Annotated[int, Field(strict=True, ge=1)] | None = None
    earlier: tuple[_Earlier, ...] | None = None


def described(found: Mapping[str, Any], name: str, where: str) -> Said:
    """What study `name` in storage `where` says; StudyError for what no search wrote."""
    of = f"{brief(name)} in {where}"
    try:
        _Description.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _unlike(".".join(map(str, first["loc"])), of) from error
    scored = {key: _scored(found[key], of) for key in ("dense", "uniform") if found.get(key) is not None}
    return Said({**found, **scored}, of)


def _scored(found: Mapping[str, Any], of: str) -> Said:
    costs = {"costs": Said(found["costs"], of)} if "costs" in found else {}
    return Said({**found, **costs}, of)


def axes(found: Any, name: str, where: str) -> tuple[Axis, ...]:
    """The decisions of a study, as `written` writes them; StudyError for anything else."""
    try:
        return tuple(_axis(*entry) for entry in found)
    except (TypeError, ValueError) as error:
        raise _unlike("axes", f"{brief(name)} in {where}") from error


def written(axis: Axis) -> list[Any]:
    """An axis as it is recorded; places decided along with the first one only where there are any."""
    return [axis.place, axis.kind, axis.field, axis.values, *([axis.also] if axis.also else [])]


def _axis(place: Any, kind: Any, field: Any, values: Sequence[Any], also: Sequence[Any] = ()) -> Axis:
    whole = kind in _KINDS and field in get_args(Decided) and len(values) > 0
    words = all(isinstance(x, str) for x in (place, *also))
    numbers = all(type(x) in (int, float) and abs(x) < 2**31 for x in values)
    if not (whole and words and (numbers or all(isinstance(x, str) for x in values))):
        raise ValueError("no axis")
    return Axis(place, kind, field, tuple(values), tuple(also))


def _unlike(what: str, of: str) -> StudyError:
    return StudyError(
        f"A study must say what was searched, as automc writes it; {brief(what)} of {of} does not: take a copy that "
        "nobody changed, or search anew."
    )
