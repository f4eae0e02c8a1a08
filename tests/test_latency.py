"""What a latency table says of layers, by hand; and what it answers to what is no table."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.costs.latency import Kind, LatencyTable
from automc.errors import BudgetError
from automc.graph.facts import ModelFacts
from automc.graph.ranks import METHODS
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy
from automc.projection import Costing
from automc.registry import SPACES
from automc.search_spaces.files import made
from automc.space import Axis, SearchSpace
from tests.spaces import models

LAYER = "layer2.0.conv1"
"""Of option A: 8 channels in, 16 out."""
DENSE = LayerDecision()


def table_of(facts: ModelFacts, *kinds: dict[str, Any], **changes: Any) -> LatencyTable:
    """A table of a model from kinds as a file has them."""
    said = {"fingerprint": facts.fingerprint, "device": "d", "threads": 1, "batch": 1, "dense": 1.0, "kinds": kinds}
    return LatencyTable.model_validate_json(json.dumps(said | changes))


def layer_kind(seconds: float = 1.0, **curves: Any) -> dict[str, Any]:
    """A kind of one layer that takes as long with any number of channels."""
    return {"layers": [LAYER], "inputs": [8], "outputs": [16], "seconds": [[seconds]]} | curves


def took(decision: LayerDecision, *kinds: dict[str, Any], **changes: Any) -> float:
    """Seconds of option A with one layer so decided."""
    facts = models.facts_of("option_a")
    costing = Costing(SearchSpace(facts, ()), table_of(facts, *kinds, **changes))
    return costing.of_policy(Policy(facts.fingerprint, (), ((LAYER, decision),)))["latency"]


GRID = {"layers": ("a",), "inputs": (4, 8, 16), "outputs": (2, 10), "seconds": ((1, 2), (3, 6), (7, 14))}


@pytest.mark.parametrize(
    ("inputs", "outputs", "seconds"),
    [
        (4, 2, 1), (4, 10, 2), (8, 2, 3), (16, 10, 14),  # as measured
        (6, 2, 2), (4, 4, 1.25), (12, 10, 10),  # between two of them
        (6, 6, 3), (10, 8, 0.75 * 5.25 + 0.25 * 12.25), (14, 4, 0.25 * 3.75 + 0.75 * 8.75),  # between four
        (1, 1, 1), (1, 6, 1.5), (6, 1, 2),  # below the smallest
        (20, 20, 14),  # above the largest
    ],
)  # fmt: skip
def test_seconds_lie_on_straight_lines_between_what_was_measured(inputs: int, outputs: int, seconds: float) -> None:
    found = Kind.model_validate(GRID).of(np.array([[inputs]], dtype=float), np.array([[outputs]], dtype=float))
    assert found.shape == (1, 1) and found[0, 0] == pytest.approx(seconds, rel=1e-12)


def test_what_was_measured_slower_with_fewer_channels_counts_for_more_channels_too() -> None:
    kind = Kind.model_validate(GRID | {"seconds": ((1, 5), (4, 2), (3, 3))})
    at = np.array([[4.0, 8.0, 16.0]])
    assert kind.of(at, np.full_like(at, 2.0)).tolist() == [[1, 4, 4]]
    assert kind.of(at, np.full_like(at, 10.0)).tolist() == [[5, 5, 5]]


def test_where_a_grid_is_level_every_number_of_channels_takes_the_very_same() -> None:
    kind = Kind(layers=("a",), inputs=(1, 97), outputs=(1, 89), seconds=((3e-5, 3e-5), (3e-5, 3e-5)))
    inputs, outputs = np.meshgrid(np.arange(1.0, 98.0), np.arange(1.0, 90.0))
    assert np.unique(kind.of(inputs, outputs)).tolist() == [3e-5]


def test_of_a_depthwise_layer_the_outputs_say_how_many_channels_there_are() -> None:
    facts = models.facts_of("depthwise")
    layer = next(x for x in facts.layers if x.depthwise)
    count = layer.out_channels
    kind = {"layers": [layer.name], "inputs": [count], "outputs": [count // 2, count], "seconds": [[1.0, 3.0]]}
    costing = Costing(SearchSpace(facts, ()), table_of(facts, kind))
    group = next(g for g in facts.groups if layer.name in {m.target for m in g.members})

    def kept(share: float) -> float:
        policy = Policy(facts.fingerprint, ((group.name, GroupDecision(keep=share)),), ())
        return costing.of_policy(policy)["latency"]

    assert [kept(share) for share in (1.0, 0.75, 0.5, 0.25)] == pytest.approx([3.0, 2.0, 1.0, 1.0])


ZEROS = {"element": [[0.5, 0.8], [0.75, 0.4]], "1x4": [[0.5, 0.6], [0.75, 0.5]]}


@pytest.mark.parametrize(
    ("sparsity", "pattern", "share"),
    [
        (0.0, "element", 1.0),
        (0.25, "element", 0.9),  # on the way from whole to the first point
        (0.5, "element", 0.8),
        (0.625, "element", 0.6),
        (0.9, "element", 0.4),
        (0.5, "1x4", 0.6),
        (0.75, "1x4", 0.5),
        (0.5, "16x1", 0.8),  # unknown: the slowest of the known ones, at each share
        (0.75, "16x1", 0.5),
    ],
)
def test_zeros_leave_the_share_of_their_pattern(sparsity: float, pattern: str, share: float) -> None:
    decision = LayerDecision(sparsity=sparsity, pattern=pattern)
    assert took(decision, layer_kind(10.0, zeros=ZEROS)) == pytest.approx(10.0 * share)


def test_fewer_zeros_never_take_less_whatever_was_measured() -> None:
    kind = layer_kind(zeros={"element": [[0.25, 0.3], [0.5, 0.7], [0.75, 0.2]]})
    found = [took(LayerDecision(sparsity=s), kind) for s in (0.0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx([1.0, 0.7, 0.7, 0.2])


@pytest.mark.parametrize("name", ["2:4", "1:4", "N:4"])
def test_patterns_of_one_family_are_one_curve(name: str) -> None:
    kind = layer_kind(zeros={name: [[0.5, 0.6]], "element": [[0.5, 0.9]]})
    assert took(LayerDecision(sparsity=0.5, pattern="2:4"), kind) == pytest.approx(0.6)


def test_members_of_a_family_that_are_measured_by_themselves_are_joined() -> None:
    kind = layer_kind(zeros={"4:8": [[0.5, 0.6]], "2:8": [[0.75, 0.3]]})
    for sparsity, pattern, share in ((0.5, "4:8", 0.6), (0.75, "2:8", 0.3), (0.625, "3:8", 0.45)):
        assert took(LayerDecision(sparsity=sparsity, pattern=pattern), kind) == pytest.approx(share)


EIGHT = {"element": [[0.0, 0.4], [0.5, 0.3]], "1x4": [[0.0, 0.5], [0.5, 0.2]]}


@pytest.mark.parametrize(
    ("decision", "share"),
    [
        (LayerDecision(8, 8), 0.5),  # without zeros no pattern says anything: the slowest
        (LayerDecision(4, 6), 0.5),
        (LayerDecision(8, 32), 1.0),
        (LayerDecision(32, 8), 1.0),
        (LayerDecision(8, 8, 0.5), 0.3),
        (LayerDecision(8, 8, 0.5, pattern="1x4"), 0.2),
        (LayerDecision(8, 8, codebook="kmeans"), 1.0),  # its levels are floats
        (LayerDecision(8, 8, 0.5, codebook="kmeans"), 0.8),
    ],
)
def test_eight_bits_count_where_weights_and_inputs_are_integers(decision: LayerDecision, share: float) -> None:
    kind = layer_kind(zeros={"element": [[0.5, 0.8]]}, eight_bits=EIGHT)
    assert took(decision, kind) == pytest.approx(share)


def test_a_pattern_says_nothing_of_a_layer_without_zeros() -> None:
    found = {took(LayerDecision(8, 8, pattern=p), layer_kind(eight_bits=EIGHT)) for p in ("element", "1x4", "16x1")}
    assert len(found) == 1


def test_integers_that_are_slower_than_floats_run_as_floats() -> None:
    kind = layer_kind(zeros={"element": [[0.5, 0.2]]}, eight_bits={"element": [[0.0, 0.9], [0.5, 0.7]]})
    assert took(LayerDecision(8, 8, 0.5), kind) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("decision", "seconds"),
    [
        (LayerDecision(rank=0.5, factorization="svd"), 3 * 0.25),
        (LayerDecision(rank=0.75, factorization="svd"), 3 * 0.375),
        (LayerDecision(rank=0.25, factorization="svd"), 3 * 0.25),  # as the least that was measured
        (LayerDecision(rank=0.5, factorization="spatial"), 2.0),  # slower than whole: as the whole layer
        (LayerDecision(rank=0.5, factorization="cp"), 2.0),  # never measured
        (LayerDecision(sparsity=0.5, rank=0.5, factorization="svd"), 3 * 0.25 * 0.5),
        (DENSE, 2.0),
    ],
)
def test_factors_take_their_share_but_never_more_than_the_whole_layer(decision: LayerDecision, seconds: float) -> None:
    factors = {"svd": [[0.5, 0.25], [0.75, 0.375]], "spatial": [[0.5, 0.9]]}
    kind = layer_kind(factors=factors, zeros={"element": [[0.5, 0.5]]})
    assert took(decision, kind, scale=2.0, factored=3.0) == pytest.approx(seconds)


def test_weights_take_what_fetching_them_takes_and_the_rest_comes_on_top() -> None:
    weights = 8 * 16 * 9
    others = sum(x.weight_numel for x in models.facts_of("option_a").layers) - weights
    assert took(DENSE, layer_kind(), scale=1.5, fetch=1e-3, rest=10.0) == pytest.approx(
        1.5 + 1e-3 * (weights + others) + 10
    )
    assert took(LayerDecision(sparsity=0.25), layer_kind(), fetch=1e-3) == pytest.approx(
        1 + 1e-3 * (0.75 * weights + others)
    )


def test_a_block_that_is_left_out_takes_no_time() -> None:
    facts = models.facts_of("option_a")
    block = facts.blocks[0]
    inside = [x for x in facts.layers if x.name in block.layers]
    kinds = [
        {"layers": [x.name], "inputs": [x.in_channels], "outputs": [x.out_channels], "seconds": [[1.0]]}
        for x in facts.layers
    ]
    costing = Costing(SearchSpace(facts, ()), table_of(facts, *kinds, fetch=1e-9, rest=0.5))
    whole = costing.of_policy(Policy(facts.fingerprint, (), ()))["latency"]
    left = costing.of_policy(Policy(facts.fingerprint, (), (), blocks=((block.name, BlockDecision(keep=0)),)))
    lost = sum(1.0 + 1e-9 * x.weight_numel for x in inside)
    assert whole - left["latency"] == pytest.approx(lost) and len(inside) > 1


def test_the_dense_model_costs_what_was_measured_and_no_table_no_latency() -> None:
    facts = models.facts_of("option_a")
    space = SearchSpace(facts, ())
    assert Costing(space, table_of(facts, layer_kind(), dense=7.0)).dense()["latency"] == 7.0
    assert "latency" not in Costing(space).costs


JOINED = {
    "bits and zeros": {"open": ["weights", "bits"]},
    "codebooks and zeros": {"open": ["weights", "codebooks"]},
    "whole or out": {"open": ["depth", "channels-ranks"]},
}
FAMILIES = ("element", "N:8", "1x4", "16x1")


@cache
def space_of(name: str, model: str) -> SearchSpace:
    facts = models.wide() if model == "wide" else models.facts_of(model)
    build = made(name, JOINED[name], name) if name in JOINED else SPACES.load(name)
    return SearchSpace(facts, build(facts))


def random_table(facts: ModelFacts, rng: np.random.Generator) -> LatencyTable:
    """Anything that a table may say, falling where it should rise."""

    def curves(names: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
        chosen = [name for name in names if rng.random() < 0.7]
        xs = [np.sort(rng.choice(17, size=rng.integers(0, 4), replace=False)) / 16 for _ in chosen]
        return {n: [(float(x), float(rng.integers(0, 11) / 10)) for x in at] for n, at in zip(chosen, xs, strict=True)}

    def some(count: int) -> list[int]:
        return sorted({int(rng.integers(1, count + 1)) for _ in range(3)} | ({count} if rng.random() < 0.8 else set()))

    kinds = []
    for layer in facts.layers:
        if rng.random() < 0.1:
            continue
        inputs = [layer.in_channels] if layer.depthwise else some(layer.in_channels)
        outputs = some(layer.out_channels)
        seconds = 1e-6 * rng.integers(1, 100, size=(len(inputs), len(outputs)))
        said = {"layers": [layer.name], "inputs": inputs, "outputs": outputs, "seconds": seconds.tolist()}
        said |= {"zeros": curves(FAMILIES), "eight_bits": curves(FAMILIES), "factors": curves(tuple(METHODS))}
        kinds.append(said)
    numbers = {"scale": 0.5 + rng.random(), "factored": 0.5 + rng.random()}
    fetch, rest = 1e-9 * rng.integers(0, 2), 1e-5 * rng.integers(0, 2)
    return table_of(facts, *kinds or [layer_kind()], **numbers, fetch=float(fetch), rest=float(rest))


@pytest.mark.parametrize("model", ["option_a", "transformer", "depthwise", "wide"])
@pytest.mark.parametrize("name", ["joint", "channels-ranks", "weights", *JOINED])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=8)
def test_no_layer_takes_longer_where_one_decision_takes_a_lower_level(name: str, model: str, seed: int) -> None:
    space, rng = space_of(name, model), np.random.default_rng(seed)
    costing = Costing(space, random_table(space.facts, rng))
    point = np.where(rng.random(len(space.axes)) < 0.3, space.sizes - 1, space.sample(rng))
    lower = np.repeat(point[None], len(point), axis=0) - np.diag((point > 0) & space.ordered).astype(np.int64)
    found = costing.batch(lower, ("latency",))
    assert np.isfinite(found).all() and (found >= 0).all()
    assert (found <= costing.batch(point[None], ("latency",))).all()


@pytest.mark.parametrize("name", ["joint", "weights", *JOINED])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6)
def test_one_point_many_points_and_its_policy_cost_the_very_same(name: str, seed: int) -> None:
    space, rng = space_of(name, "option_a"), np.random.default_rng(seed)
    costing = Costing(space, random_table(space.facts, rng))
    points = np.stack([space.sample(rng) for _ in range(5)])
    many = costing.batch(points, ("latency",))[:, 0].tolist()
    assert many == [costing.of(p)["latency"] for p in points]
    assert many == [costing.of_policy(space.decode(p))["latency"] for p in points]
    assert many == [costing.of(space.plain(p))["latency"] for p in points]


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5)
def test_a_table_that_is_written_reads_back(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    facts, path = models.facts_of("option_a"), tmp_path_factory.mktemp("table") / "table.json"
    table = random_table(facts, np.random.default_rng(seed)).model_copy(
        update={"noise": 0.01, "form": "one plan", "versions": {"torch": "2"}, "models": ((1e-3, 1.1e-3),)}
    )
    table.write(path)
    assert LatencyTable.read(path) == table
    assert json.loads(path.read_text())["format"] == "automc-latency"


def test_how_far_predictions_were_off_is_the_median_of_them() -> None:
    table = table_of(models.facts_of("option_a"), layer_kind(), models=((1.0, 2.0), (1.1, 1.0), (3.0, 4.0)))
    assert table.error == pytest.approx(0.25)
    assert table_of(models.facts_of("option_a"), layer_kind()).error is None


def test_a_table_is_of_this_machine_only_where_automc_timed_it_here() -> None:
    table = table_of(models.facts_of("option_a"), layer_kind(), device="cpu", form="one plan")
    assert table.timed_by("cpu") and not table.timed_by("other")
    assert not table_of(models.facts_of("option_a"), layer_kind(), device="cpu").timed_by("cpu")


def refused(path: Path) -> str:
    with pytest.raises(BudgetError) as caught:
        LatencyTable.read(path)
    said = str(caught.value)
    assert said.count(": ") >= 1 and said.endswith(".") and "\n" not in said and str(path) in said
    return said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"speed": 1}, "speed"),
        ({"dense": 0}, "dense"),
        ({"dense": float("nan")}, "dense"),
        ({"batch": 0}, "batch"),
        ({"threads": 1.5}, "threads"),
        ({"rest": -1e-3}, "rest"),
        ({"fetch": float("inf")}, "fetch"),
        ({"scale": 0.0}, "scale"),
        ({"kinds": []}, "kinds"),
        ({"kinds": [layer_kind() | {"colour": 1}]}, "kinds.0.colour"),
        ({"kinds": [layer_kind() | {"layers": []}]}, "kinds.0.layers"),
        ({"kinds": [layer_kind() | {"inputs": [8, 4], "seconds": [[1.0], [1.0]]}]}, "inputs must rise"),
        ({"kinds": [layer_kind() | {"inputs": [0]}]}, "kinds.0.inputs"),
        ({"kinds": [layer_kind() | {"outputs": [4, 4], "seconds": [[1.0, 1.0]]}]}, "outputs must rise"),
        ({"kinds": [layer_kind() | {"outputs": [4, 8]}]}, "a row for each number of inputs"),
        ({"kinds": [layer_kind() | {"inputs": [4, 8], "seconds": [[1.0]]}]}, "a row for each number of inputs"),
        ({"kinds": [layer_kind(-1.0)]}, "kinds.0.seconds"),
        ({"kinds": [layer_kind(float("nan"))]}, "kinds.0.seconds"),
        ({"kinds": [layer_kind(zeros={"element": [[0.5, 1.5]]})]}, "kinds.0.zeros.element"),
        ({"kinds": [layer_kind(zeros={"element": [[0.5, float("nan")]]})]}, "kinds.0.zeros.element"),
        ({"kinds": [layer_kind(zeros={"element": [[0.5, 0.5], [0.5, 0.4]]})]}, "element must rise"),
        ({"kinds": [layer_kind(eight_bits={"stripes": [[0.5, 0.5]]})]}, "'stripes'"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_a_sentence_that_says_where(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    table = table_of(models.facts_of("option_a"), layer_kind()).model_dump(mode="json")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    assert LatencyTable.read(path).batch == 1
    path.write_text(json.dumps(table | changes))
    assert said in refused(path)


def test_a_file_that_cannot_be_read_as_text_or_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert "No such file" in refused(path) and "automc profile" in refused(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(path)
    path.write_text("{")
    assert "JSON" in refused(path)
    path.write_text("[1, 2]")
    assert "the whole" in refused(path)
    assert "directory" in refused(tmp_path)


def test_the_table_of_another_model_or_of_unknown_layers_is_refused() -> None:
    facts = models.facts_of("option_a")
    with pytest.raises(BudgetError, match="its fingerprint 0000 differs"):
        Costing(SearchSpace(facts, ()), table_of(facts, layer_kind(), fingerprint="0000"))
    with pytest.raises(BudgetError, match="'conv9' is none"):
        Costing(SearchSpace(facts, ()), table_of(facts, layer_kind() | {"layers": [LAYER, "conv9"]}))


def test_a_layer_whose_pattern_nobody_decides_has_its_single_weights_zero() -> None:
    """Whatever pattern the first axis of the space has at its first level."""
    facts = models.facts_of("option_a")
    other = "layer2.0.conv2"
    axes = (
        Axis(LAYER, "layer", "sparsity", (0.5, 0.0)),
        Axis(LAYER, "layer", "pattern", ("1x4", "element")),
        Axis(other, "layer", "sparsity", (0.5, 0.0)),
    )
    zeros = {"element": [[0.5, 0.8]], "1x4": [[0.5, 0.6]]}
    space = SearchSpace(facts, axes)
    costing = Costing(space, table_of(facts, layer_kind(zeros=zeros) | {"layers": [LAYER, other]}))
    assert costing.of_policy(space.decode(space.smallest))["latency"] == pytest.approx(0.6 + 0.8)
    assert costing.of(space.smallest)["latency"] == pytest.approx(0.6 + 0.8)
