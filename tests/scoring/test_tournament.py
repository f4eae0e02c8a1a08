"""The best few of many policies: the same as by scoring all, at less work, and sound where scoring fails."""

from typing import Any

import numpy as np
import pytest

from automc.errors import TaskError
from automc.policy import Policy, Recipe
from automc.scoring.evaluator import Evaluator
from automc.scoring.tournament import Bridge, Tournament, cheaper
from tests.scoring import tiny


def distinct(setting: Any, count: int) -> list[Policy]:
    return list({p.digest: p for p in tiny.policies(setting, 4 * count)}.values())[:count]


def ranked(found: list[Any], keep: int) -> list[str]:
    fully = [e for e in found if e.ok]
    return [e.policy.digest for e in sorted(fully, key=lambda e: -e.score)[:keep]]


def test_the_best_are_those_of_scoring_all_and_their_scores_are_the_same() -> None:
    setting = tiny.setting(tiny.task(), (60,), "mse")
    policies = distinct(setting, 60)
    whole = [setting.evaluator.evaluate(policy) for policy in policies]
    found = Tournament(setting.evaluator, lambda: setting.screen, keep=3).run(policies)
    assert [e.policy for e in found] == list(policies)
    best = ranked(whole, 3)
    assert ranked(found, 3) == best
    scores = {e.policy.digest: e.score for e in whole}
    assert all(e.score == scores[e.policy.digest] for e in found if e.ok)
    assert sum(e.ok for e in found) < 40
    again = Tournament(setting.evaluator, lambda: setting.screen, keep=3).run(policies)
    assert [(e.state, e.score) for e in again] == [(e.state, e.score) for e in found]


def test_a_candidate_that_raises_is_failed_and_the_others_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tiny.setting(tiny.task(), (60,), "mse")
    policies = distinct(setting, 30)
    plain = Evaluator._candidate

    def broken(self: Evaluator, policy: Any) -> Any:
        if policy.groups == policies[3].groups:
            raise KeyError("odd")
        return plain(self, policy)

    monkeypatch.setattr(Evaluator, "_candidate", broken)
    found = Tournament(setting.evaluator, lambda: setting.screen, keep=2).run(policies)
    assert found[3].state == "failed" and "KeyError" in found[3].reason
    assert len(ranked(found, 2)) == 2


def test_equal_policies_are_refused() -> None:
    setting = tiny.setting(tiny.task(), (60,))
    policy = tiny.policies(setting, 1)[0]
    with pytest.raises(TaskError, match="two of these are the same"):
        Tournament(setting.evaluator, lambda: setting.screen).run([policy, policy])


def test_acheaper_recipe_is_never_dearer() -> None:
    assert cheaper(Recipe()) == Recipe(images=256, rows=4096)
    assert cheaper(Recipe(images=300, rows=3)) == Recipe(images=256, rows=1)
    assert cheaper(Recipe(images=100)).images == 100


@pytest.mark.parametrize("count", [1, 4, 12])
def test_few_policies_are_all_looked_at(count: int) -> None:
    setting = tiny.setting(tiny.task(), (60,), "mse")
    policies = distinct(setting, count)
    found = Tournament(setting.evaluator, lambda: setting.screen, keep=3).run(policies)
    whole = [setting.evaluator.evaluate(policy) for policy in policies]
    assert ranked(found, 3) == ranked(whole, 3)
    assert all(e.share > 0 for e in found)


def test_a_bridge_through_an_exact_line() -> None:
    bridge = Bridge.of([(x, x + 3.0) for x in (0.0, 1.0, 2.0, 5.0)])
    assert bridge.slope == pytest.approx(1.0) and bridge.deviation == pytest.approx(0.0, abs=1e-9)
    assert bridge.upper(np.array([7.0]), 0.01) == pytest.approx([10.0])
    assert bridge.upper(np.array([7.0]), 0.01, 1.0)[0] > 12.0  # a guess that may itself be wrong


def test_as_many_full_scores_exceed_the_bound_as_the_risk_says() -> None:
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(4000):
        slope = 1.0 + 0.25 * rng.standard_normal()
        cheap = rng.standard_normal(9)
        full = 2.0 + slope * cheap + 0.2 * rng.standard_normal(9)
        bridge = Bridge.of(list(zip(cheap[:8], full[:8], strict=True)))
        exceeded += full[8] > bridge.upper(cheap[8:], 0.05)[0]
    assert 0.03 < exceeded / 4000 < 0.07
