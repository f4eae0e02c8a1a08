"""Policies and evaluations as data: what is written reads back, and nothing else reads."""

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automc.errors import PolicyError, StudyError
from automc.evaluation import Evaluation
from automc.pareto import front, nondominated
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy, Recipe

names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
bits = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 32])
groups = st.builds(GroupDecision, keep=st.floats(0.01, 1.0), criterion=st.sampled_from(["obs", "l1"]))
layers = st.one_of(
    st.builds(
        LayerDecision,
        weight_bits=bits,
        activation_bits=st.sampled_from([2, 4, 8, 32]),
        sparsity=st.floats(0, 0.99),
        codebook=st.sampled_from(["uniform", "kmeans"]),
        pattern=st.sampled_from(["element", "4x1", "1x16"]),
    ),
    st.builds(LayerDecision, rank=st.floats(0.01, 1.0), factorization=st.sampled_from(["svd", "cp"])),
    st.builds(LayerDecision, rank=st.floats(0.01, 1.0), weight_bits=bits, sparsity=st.floats(0, 0.99)),
    st.just(LayerDecision(sparsity=0.5, pattern="2:4")),
)
recipes = st.builds(Recipe, images=st.integers(1, 5000), ridge=st.floats(0, 1), seed=st.integers(0, 9))


def pairs(decisions: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[tuple[str, Any], ...]]:
    return st.dictionaries(names, decisions, max_size=4).map(lambda d: tuple(d.items()))


policies = st.builds(
    Policy,
    fingerprint=names,
    groups=pairs(groups),
    layers=pairs(layers),
    recipe=recipes,
    blocks=pairs(st.builds(BlockDecision, keep=st.sampled_from([0.0, 1.0]))),
)


@given(policies)
def test_a_policy_reads_back_and_keeps_its_digest(policy: Policy) -> None:
    again = Policy.from_json(policy.to_json())
    assert again == policy and hash(again) == hash(policy) and again.digest == policy.digest


@given(policies, policies)
def test_digests_differ_where_policies_do(one: Policy, other: Policy) -> None:
    assert (one.to_dict() == other.to_dict()) == (one.digest == other.digest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, '"format"'),
        ({"version": 99}, "update automc"),
        ({"groups": []}, "must be an object"),
        ({"groups": {"a": {"keep": "half"}}}, "must be a float"),
        ({"groups": {"a": {"keep": True}}}, "must be a float"),
        ({"groups": {"a": {"share": 0.5}}}, "may hold"),
        ({"groups": {"a": {"keep": 0.0}}}, r"keep must lie in \(0, 1\]"),
        ({"groups": {"a": {"keep": 1.5}}}, r"keep must lie in \(0, 1\]"),
        ({"layers": {"a": {"weight_bits": 9}}}, "2-8 or 32"),
        ({"layers": {"a": {"activation_bits": 1}}}, "2-8 or 32"),
        ({"layers": {"a": {"sparsity": 1.0}}}, "keep some weights"),
        ({"layers": {"a": {"sparsity": 0.4, "pattern": "2:4"}}}, "write 0.5"),
        ({"layers": {"a": {"pattern": "cross"}}}, "cross"),
        ({"layers": {"a": {"codebook": "huffman"}}}, "codebook must be one of"),
        ({"layers": {"a": {"rank": 0.0}}}, "at least rank one"),
        ({"layers": {"a": {"rank": 0.5, "weight_bits": 8, "factorization": "cp"}}}, "dense and float"),
        ({"blocks": {"a": {"keep": 0.5}}}, "0 or 1"),
        ({"recipe": {"reconstruct": "magic"}}, "must be one of"),
        ({"recipe": {"images": 0}}, "at least 1"),
        ({"recipe": {"ridge": float("nan")}}, "finite"),
    ],
)
def test_what_is_no_policy_is_refused_in_a_sentence(change: dict[str, Any], said: str) -> None:
    data = Policy("f").to_dict() | change
    with pytest.raises(PolicyError, match=said):
        Policy.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"policy"'])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        Policy.from_json(text)


def test_a_place_stands_once() -> None:
    with pytest.raises(PolicyError, match="stand once"):
        Policy("f", (("a", GroupDecision()), ("a", GroupDecision(0.5))))


@given(layers)
def test_effective_forgets_what_is_unused_and_nothing_else(decision: LayerDecision) -> None:
    found = decision.effective
    assert found.effective == found
    for name in ("weight_bits", "activation_bits", "sparsity", "rank"):
        assert getattr(found, name) == getattr(decision, name)
    used = {
        "pattern": decision.sparsity > 0,
        "criterion": decision.sparsity > 0,
        "codebook": decision.weight_bits < 32,
        "factorization": decision.rank < 1,
    }
    for name, matters in used.items():
        assert getattr(found, name) == getattr(decision if matters else LayerDecision(), name)


@given(policies, st.floats(allow_nan=False, allow_infinity=False) | st.none())
def test_an_evaluation_reads_back(policy: Policy, score: float | None) -> None:
    state = "failed" if score is None else "ok"
    found = Evaluation(policy, state, score, (("macs", 1e9), ("size", 7.0)), 0.5, 1.5, "tpe", "why", 3)  # type: ignore[arg-type]
    assert Evaluation.from_dict(json.loads(found.to_json()), 3) == found
    with pytest.raises(StudyError, match="name one of them"):
        found.cost("speed")


points = st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12)


@given(points)
def test_the_front_is_what_brute_force_finds(rows: list[tuple[int, int, int]]) -> None:
    def beats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [not any(beats(other, row) for other in rows) for row in rows]
    array = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
    assert nondominated(array).tolist() == expected


def test_only_feasible_evaluations_enter_the_front_and_equals_stand_once() -> None:
    policy = Policy("f")

    def evaluation(score: float | None, macs: float, state: str = "ok") -> Evaluation:
        return Evaluation(policy, state, score, (("macs", macs),))  # type: ignore[arg-type]

    all_of_them = [
        evaluation(0.9, 10), evaluation(0.8, 5), evaluation(0.9, 10), evaluation(0.7, 6),
        evaluation(None, 1, "failed"), evaluation(0.99, 1, "infeasible"),
    ]  # fmt: skip
    for order in itertools.permutations(range(6), 6):
        numbered = [replace(all_of_them[i], number=n) for n, i in enumerate(order)]
        found = front(numbered, ("macs",))
        assert [(e.score, e.cost("macs")) for e in found] == [(0.8, 5), (0.9, 10)]
        assert found[1].number == min(n for n, i in enumerate(order) if i in (0, 2))
