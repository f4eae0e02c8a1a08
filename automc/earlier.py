"""Trials of earlier studies of the same model, for a searcher to begin with.

Which ones, and how many of their trials, is noted in the new study: a resumed search begins with the very same,
however much the earlier studies have grown since.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from automc.errors import PolicyError, StudyError
from automc.evaluation import Evaluation
from automc.searcher import Searcher
from automc.space import SearchSpace
from automc.study import Study


@runtime_checkable
class Learns(Protocol):
    """A searcher that can be shown trials before its own."""

    def remember(self, evaluations: Sequence[Evaluation]) -> int:
        """Takes note of them and says how many it could use."""
        ...


def recall(searcher: Searcher, name: str, study: Study, earlier: Sequence[Study], space: SearchSpace) -> int:
    """Shows `searcher` (called `name`) the trials of `earlier` studies that `study` began with; returns how many it
    could use.

    StudyError where the searcher learns nothing from others, where a study is of another model or score, and where a
    search goes on with other earlier studies than it began with.
    """
    if earlier and not isinstance(searcher, Learns):
        raise StudyError(f"A searcher must learn from others to be shown earlier trials; {name!r} does not: use joint.")
    for other in earlier:
        _check_same(other, study)
    noted = _noted(study, earlier)
    shown = [e for other, entry in zip(earlier, noted, strict=True) for e in other.evaluations[: int(entry["trials"])]]
    return searcher.remember([e for e in shown if _fits(e, space)]) if isinstance(searcher, Learns) else 0


def _noted(study: Study, earlier: Sequence[Study]) -> list[dict[str, Any]]:
    """What the study began with; noted now where it begins now."""
    given = [{"storage": _place(s.storage), "study": s.name, "trials": len(s.evaluations)} for s in earlier]
    known: list[dict[str, Any]] | None = study.meta.get("earlier")
    if known is None and study.evaluations:
        known = []
    if known is None:
        study.note("earlier", given)
        return given
    if [(_place(n["storage"]), n["study"]) for n in known] != [(n["storage"], n["study"]) for n in given]:
        before, now = (", ".join(f"{n['study']} ({n['storage']})" for n in ns) or "none" for ns in (known, given))
        raise StudyError(
            f"A search must go on with the earlier studies it began with; study {study.name!r} began with {before}, "
            f"given {now}: repeat the first command, or give another --study name."
        )
    return known


def _place(storage: str) -> str:
    """A storage however it was spelt: the whole path of a file, a URL as it is."""
    return storage if "://" in storage else str(Path(storage).resolve())


def _check_same(earlier: Study, study: Study) -> None:
    """StudyError unless both are of the same model, kind of score and metric, as far as they were written down."""
    for key, usual in (("fingerprint", None), ("score", "metric"), ("metric", None)):
        was, now = earlier.meta.get(key, usual), study.meta.get(key, usual)
        if None not in (was, now) and was != now:
            what = {"fingerprint": "model"}.get(key, key)
            raise StudyError(
                f"An earlier study must be of the same {what}; {earlier.name!r} has {str(was)[:12]}, this search "
                f"{str(now)[:12]}: leave it out."
            )


def _fits(evaluation: Evaluation, space: SearchSpace) -> bool:
    """Whether a space has a level for each of a policy's words; numbers are taken for the nearest."""
    try:
        space.encode(evaluation.policy)
    except PolicyError:
        return False
    return True
