"""Candidates known together: each has the score it would have alone, and what several share runs once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from automc.compression.compress import Compressor
from automc.compression.structure import Structure
from automc.evaluation import Evaluation
from automc.kernels.tiles import lanes
from automc.policy import Policy
from automc.scoring import forward
from tests.scoring import tiny


def setting() -> Any:
    return tiny.setting(tiny.task(batch=500), (), "mse", "macs<=90%")


def neighbours(of: Any, count: int) -> list[Policy]:
    """Policies around one, in no order; one of them twice."""
    rng = np.random.default_rng(0)
    space, _ = of.problem_parts
    start = space.largest // 2
    points = [start, *(space.neighbours(start, rng, changes=1, reach=4) for _ in range(count)), start]
    return [space.decode(point) for point in points]


def told(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    return [replace(e, seconds=0.0) for e in evaluations]


@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_scores_are_those_of_one_after_the_other(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "torch":
        monkeypatch.setattr(forward, "lanes", lambda: 0)
    alone, together = setting(), setting()
    policies = neighbours(alone, 8)
    expected = []
    for policy in policies:  # by an evaluator that has seen nothing
        expected.append(setting().evaluator.evaluate(policy))
    assert told(together.evaluator.evaluate_all(policies)) == told(expected)
    assert told([alone.evaluator.evaluate(p) for p in policies]) == told(expected)


def test_what_candidates_share_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str | None] = []
    real = forward._Compiled.values if lanes() else forward._Torch.values

    def values(self: Any, begin: Any, keep: Any) -> Any:
        begun.append(None if begin is None else begin[0])
        return real(self, begin, keep)

    monkeypatch.setattr(forward._Compiled if lanes() else forward._Torch, "values", values)
    found = setting()
    found.evaluator.evaluate_all(neighbours(found, 12))
    assert begun[:2] == [None, None] and None in begun  # the dense outputs, the first candidate
    assert sum(name is not None for name in begun) >= 8


def test_one_that_raises_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = setting()
    policies = neighbours(found, 5)
    real = Compressor.structure

    def broken(self: Compressor, policy: Policy) -> Structure:
        if policy is policies[4]:
            raise KeyError("odd")
        return real(self, policy)

    monkeypatch.setattr(Compressor, "structure", broken)
    states = [e.state for e in found.evaluator.evaluate_all(policies)]
    assert states == ["ok", "ok", "ok", "ok", "failed", "ok", "ok"]
    assert found.evaluator.evaluate_all([]) == []
