"""Tables made by timing, with a clock that computes; and searches within a budget of seconds."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import automc
from automc.budget import Budget
from automc.compression.compress import Compressor
from automc.costs.latency import Kind, LatencyTable
from automc.deployment import profile as timing
from automc.deployment import stopwatch
from automc.deployment.probes import BY_SIZE
from automc.deployment.timing import in_turns
from automc.errors import BudgetError, SpaceError, StudyError, TaskError
from automc.graph.facts import ModelFacts
from automc.graph.trace import trace_model
from automc.paying import paying
from automc.projection import Costing, Projector
from automc.registry import SEARCHERS, SPACES
from automc.setting import prepare
from automc.space import Axis, SearchSpace
from automc.task import Inputs
from tests.spaces import models
from tests.test_latency import LAYER, layer_kind, random_table, table_of

pytestmark = pytest.mark.filterwarnings("ignore:Layer:UserWarning")
SCALE, FETCH, REST = 1.3, 2e-9, 5e-5
"""What the clock adds to layers in whole models."""


class Clock:
    """Seconds by the multiplications that count; keeps the shapes of the layers it was given alone."""

    def __init__(self) -> None:
        self.alone: Counter[tuple[int, ...]] = Counter()
        self.models = 0

    def __call__(self, module: nn.Module, inputs: Inputs) -> float:
        assert not module.training
        whole = any(isinstance(m, nn.Flatten) for m in module.modules())
        layers = seconds_of_layers(module, inputs)
        if not whole:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                self.alone[tuple(module.weight.shape)] += 1
            return sum(seconds for seconds, _ in layers)
        self.models += 1
        return sum(SCALE * seconds + FETCH * weights for seconds, weights in layers) + REST


def seconds_of_layers(module: nn.Module, inputs: Inputs) -> list[tuple[float, float]]:
    """Of each layer inside the seconds alone, and its weights other than zero."""
    found = []

    def see(layer: nn.Module, _: object, y: Tensor) -> None:
        weight: Any = layer.weight
        left = float(weight.count_nonzero())
        found.append((1e-9 * left * y.numel() / len(weight) + 1e-7, left))

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(see) for m in layers]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return found


def convolutional() -> nn.Module:
    """The second and the third convolution are equal; the fourth reads a smaller map."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def linear() -> nn.Module:
    layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), *layers, nn.Linear(64, 4))


def task_of(model: nn.Module, side: int = 8) -> automc.Task:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    images = torch.randn(64, 3, side, side, generator=generator)
    targets = model.eval()(images).argmax(dim=1)
    batches = [(images[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]
    return automc.Task(model, calibration=batches[:1], validation=batches[1:], name="small")


@cache
def known(model: Callable[[], nn.Module]) -> automc.Task:
    """A task, made once."""
    return task_of(model())


@cache
def facts_of(task: automc.Task) -> ModelFacts:
    return trace_model(task.model, task.example_inputs).facts


def costing_of(task: automc.Task, table: LatencyTable, space: str) -> Costing:
    facts = facts_of(task)
    return Costing(SearchSpace(facts, SPACES.load(space)(facts)), table)


@cache
def table_for(model: Callable[[], nn.Module], space: str) -> LatencyTable:
    """What the clock says of a model, made once."""
    return automc.profile(known(model), space=space, measure=Clock())


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "MODELS", 6)
    for name in ("stub", "uniform"):
        monkeypatch.setitem(SEARCHERS.table, name, "tests.cli.tiny:Stub")


# Tables


def test_equal_layers_are_timed_once_at_some_numbers_of_channels_of_either_side() -> None:
    clock = Clock()
    table = automc.profile(known(convolutional), space="channels", measure=clock, device="clock")
    assert [k.layers for k in table.kinds] == [("0",), ("2", "4"), ("7",), ("11",)]
    some, edges = (4, 8, 16, 24, 32), tuple(n for n in range(1, 33) if n % 4 in (0, 1))
    assert [(k.inputs, k.outputs) for k in table.kinds] == [
        ((1, 2, 3), edges), (some, edges), (some, edges), (some, (1, 2, 3, 4)),
    ]  # fmt: skip
    assert clock.alone[32, 32, 3, 3] == 2 and clock.alone[24, 4, 3, 3] == 2  # of both sizes of maps
    assert sum(clock.alone.values()) == sum(len(k.inputs) * len(k.outputs) for k in table.kinds)
    assert clock.models == 1 + timing.MODELS
    assert (table.device, table.batch, table.form) == ("clock", 1, "") and not table.timed_by("clock")
    assert all(not (k.zeros or k.factors or k.eight_bits) for k in table.kinds)


def test_a_linear_model_is_timed_with_its_batch() -> None:
    clock = Clock()
    table = automc.profile(known(linear), space="channels", measure=clock, batch=5)
    assert [k.layers for k in table.kinds] == [("1",), ("3", "5", "7"), ("9",)]
    assert clock.alone[64, 64] == 1 and table.batch == 5
    assert table.kinds[0].seconds[-1][-1] == pytest.approx(1e-9 * 5 * 192 * 64 + 1e-7)


def test_a_layer_that_runs_twice_takes_twice_as_long() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.conv(self.conv(x).relu()).relu())
            return y

    table = automc.profile(task_of(Shared()), space="weights", measure=Clock())
    conv = next(k for k in table.kinds if k.layers == ("conv",))
    assert conv.seconds[-1][-1] == pytest.approx(2 * (1e-9 * 3 * 3 * 9 * 64 + 1e-7))


def test_a_depthwise_layer_is_timed_with_as_many_channels_on_either_side() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    clock = Clock()
    table = automc.profile(task_of(model), space="channels", measure=clock)
    kind = next(k for k in table.kinds if k.layers == ("1",))
    assert kind.inputs == (8,) and kind.outputs == (1, 2, 3, 4, 5, 6, 7, 8)
    assert {n for n, *rest in clock.alone if rest == [1, 3, 3]} == {*kind.outputs}


def test_a_depthwise_layer_with_two_outputs_a_channel_can_be_timed() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(768, 4)
    )
    table = automc.profile(task_of(model), space="channels", measure=Clock())
    assert next(k for k in table.kinds if k.layers == ("1",)).outputs[-1] == 12


def test_what_the_clock_adds_to_whole_models_is_found() -> None:
    task, clock = known(convolutional), Clock()
    table = automc.profile(task, space="channels", measure=clock)
    assert table.scale == pytest.approx(SCALE, rel=1e-3) and table.fetch == pytest.approx(FETCH, rel=1e-2)
    assert table.rest == pytest.approx(REST, rel=1e-3)
    assert table.error is not None and table.error < 1e-6 and len(table.models) == timing.MODELS
    assert table.dense == pytest.approx(clock(task.model, tuple(x[:1] for x in task.example_inputs)))
    costing = costing_of(task, table, "channels")
    assert costing.of(costing.space.largest)["latency"] == pytest.approx(table.dense)


@pytest.mark.parametrize(
    ("model", "space", "most"),
    [
        (convolutional, "channels", 1e-6),
        (linear, "channels", 1e-6),
        (convolutional, "sparsity", 0.02),
        (convolutional, "ranks-svd", 0.02),
        (linear, "ranks-svd", 0.02),
        (convolutional, "channels-ranks", 0.1),
    ],
)
def test_models_take_as_long_as_the_table_says(model: Any, space: str, most: float) -> None:
    task, clock, rng = known(model), Clock(), np.random.default_rng(7)
    costing = costing_of(task, table_for(model, space), space)
    inputs = tuple(x[:1] for x in task.example_inputs)
    for _ in range(4):
        policy = policy_in(costing.space, rng)
        took = clock(automc.apply(task, policy), inputs)
        assert costing.of_policy(policy)["latency"] == pytest.approx(took, rel=most)


def policy_in(space: SearchSpace, rng: np.random.Generator) -> automc.Policy:
    """One that is carried out at once, with as many channels as layers are timed with at least."""
    least = [
        next((i for i, v in enumerate(a.values) if a.field == "keep" and float(v) >= 0.125), 0) for a in space.axes
    ]
    return replace(space.decode(np.maximum(space.sample(rng), least)), recipe=BY_SIZE)


def test_only_what_a_space_opens_is_timed() -> None:
    def fields(space: str) -> set[str]:
        return {
            what
            for k in table_for(convolutional, space).kinds
            for what in ("zeros", "factors", "eight_bits")
            if getattr(k, what)
        }

    assert fields("channels") == fields("channels-bits") - {"eight_bits"} == set()
    assert fields("weights") == {"zeros"} and fields("ranks-svd") == {"factors"}


def test_zeros_are_timed_in_every_pattern_at_every_share() -> None:
    table = table_for(convolutional, "weights")
    kind = next(k for k in table.kinds if "2" in k.layers)
    assert set(kind.zeros) == {"element", "N:8", "1x4", "4x1", "16x1"}
    whole = kind.seconds[-1][-1]
    for curve in kind.zeros.values():
        assert [x for x, _ in curve] == [n / 8 for n in range(1, 8)]
        assert [y for _, y in curve] == pytest.approx(
            [((1 - x) * (whole - 1e-7) + 1e-7) / whole for x, _ in curve], 0.1
        )


def test_what_is_being_timed_is_told() -> None:
    said: list[str] = []
    automc.profile(known(linear), space="channels", measure=Clock(), progress=said.append)
    assert said[:3] == ["the dense model", "1", "3"] and said[-1] == f"whole model {timing.MODELS} of {timing.MODELS}"


def test_inputs_without_a_sample_are_refused() -> None:
    task = known(linear)
    for batch in (0, -1):
        with pytest.raises(TaskError, match="at least one sample"):
            automc.profile(task, measure=Clock(), batch=batch)
    graph = trace_model(task.model, task.example_inputs)
    compressor, space = Compressor(graph, task.model, task), SearchSpace(graph.facts, ())
    for inputs in ((), (torch.zeros(0, 3, 8, 8),)):
        with pytest.raises(TaskError, match="at least one sample"):
            timing.profile(compressor, space, inputs, measure=Clock())


# Levels that save time


def opened(*axes: Axis) -> SearchSpace:
    return SearchSpace(models.facts_of("option_a"), axes)


def left(space: SearchSpace, *kinds: dict[str, Any]) -> dict[str, Sequence[Any]]:
    """Values that are left, by field."""
    return {a.field: a.values for a in paying(space, table_of(space.facts, *kinds)).axes}


def group_of(layer: str) -> str:
    facts = models.facts_of("option_a")
    return next(g.name for g in facts.groups if layer in g.producers)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        ([1.0, 2.0, 3.0, 4.0], (0.25, 0.5, 0.75, 1.0)),
        ([1.0, 3.0, 3.0, 4.0], (0.25, 0.75, 1.0)),
        ([1.0, 1.0, 4.0, 4.0], (0.5, 1.0)),
        ([1.0, 3.0, 3.99, 4.0], (0.25, 0.5, 1.0)),  # less than a fiftieth of what can be saved
        ([1.0, 3.9, 3.95, 4.0], (0.25, 0.5, 1.0)),  # two steps together save enough
        ([4.0, 3.0, 2.0, 1.0], None),  # slower with fewer channels: none of them
    ],
)
def test_levels_that_take_as_long_as_a_higher_one_leave(seconds: list[float], kept: tuple[float, ...] | None) -> None:
    group = group_of(LAYER)
    space = opened(
        Axis(group, "group", "keep", (0.25, 0.5, 0.75, 1.0)), Axis(group, "group", "criterion", ("l1", "l2"))
    )
    kind = layer_kind() | {"outputs": [4, 8, 12, 16], "seconds": [seconds]}
    wanted: dict[str, Sequence[Any]] = {} if kept is None else {"keep": kept, "criterion": ("l1", "l2")}
    assert left(space, kind) == wanted


ZEROS = (
    Axis(LAYER, "layer", "sparsity", (0.75, 0.5, 0.0)),
    Axis(LAYER, "layer", "pattern", ("element", "N:8", "1x4")),
    Axis(LAYER, "layer", "criterion", ("l1", "l2")),
)
FACTORS = (Axis(LAYER, "layer", "rank", (0.5, 1.0)), Axis(LAYER, "layer", "factorization", ("svd",)))


def test_patterns_stand_fastest_first() -> None:
    zeros = {"element": [[0.75, 0.9]], "N:8": [[0.75, 0.6]], "1x4": [[0.75, 0.4]]}
    found = left(opened(*ZEROS), layer_kind(zeros=zeros))
    assert found["pattern"] == ("1x4", "N:8", "element") and found["criterion"] == ("l1", "l2")


def test_how_leaves_with_what_it_is_about() -> None:
    both = opened(*ZEROS, *FACTORS)
    zeros, factors = {"element": [[0.75, 0.5]]}, {"svd": [[0.5, 0.5]]}
    assert set(left(both, layer_kind(zeros=zeros, factors=factors))) == {
        "sparsity", "pattern", "criterion", "rank", "factorization",
    }  # fmt: skip
    assert set(left(both, layer_kind(zeros=zeros))) == {"sparsity", "pattern", "criterion"}
    assert set(left(both, layer_kind(factors=factors))) == {"rank", "factorization"}
    assert left(both, layer_kind()) == {}


BITS = (
    Axis(LAYER, "layer", "weight_bits", (4, 8, 32)),
    Axis(LAYER, "layer", "activation_bits", (4, 8, 32)),
    Axis(LAYER, "layer", "codebook", ("uniform", "kmeans")),
)


def test_few_bits_of_weights_and_of_inputs_save_time_together() -> None:
    kind = layer_kind(eight_bits={"element": [[0.0, 0.4]]})
    few = {"weight_bits": (8, 32), "activation_bits": (8, 32)}
    assert left(opened(*BITS[:2]), kind) == few
    assert left(opened(*BITS), kind) == few | {"codebook": ("uniform", "kmeans")}
    assert left(opened(*BITS[:1]), kind) == left(opened(*BITS), layer_kind()) == {}


def test_a_space_that_saves_no_time_is_refused() -> None:
    task = known(linear)
    facts = facts_of(task)
    kinds = [{"layers": ["1"], "inputs": [192], "outputs": [64], "seconds": [[1.0]]}]
    with pytest.raises(SpaceError, match="save time on d; weights has none"):
        automc.search(task, budget="latency<=60%", space="weights", latency=table_of(facts, *kinds), trials=1)


def test_where_size_is_limited_as_well_levels_that_save_no_time_stay() -> None:
    task = known(linear)
    facts = facts_of(task)
    kinds = [{"layers": ["1"], "inputs": [192], "outputs": [32, 64], "seconds": [[0.5, 1.0]]}]
    table = table_of(facts, *kinds)

    def axes(budget: str) -> int:
        setting = prepare(task, Budget.parse(budget), SPACES.load("channels"), latency=table)
        return len(setting.problem_parts[0].axes)

    assert axes("latency<=90%") < axes("latency<=90%,size<=90%") == len(SPACES.load("channels")(facts))


# Searches


def search(task: automc.Task, latency: Any, **changes: Any) -> automc.Study:
    options: dict[str, Any] = {"budget": "latency<=60%", "space": "channels-ranks", "searcher": "stub", "trials": 3}
    return automc.search(task, latency=latency, recipe=BY_SIZE, **options | changes)


def predicted(task: automc.Task, table: LatencyTable, policy: automc.Policy) -> float:
    facts = facts_of(task)
    return Costing(SearchSpace(facts, ()), table).of_policy(policy)["latency"]


@pytest.mark.parametrize("searcher", ["joint", "random", "stub"])
def test_every_trial_is_within_its_seconds(searcher: str) -> None:
    task, clock = known(convolutional), Clock()
    study = search(task, clock, searcher=searcher)
    table = LatencyTable.model_validate(study.meta["latency"])
    assert study.meta["limits"] == {"latency": pytest.approx(0.6 * table.dense)}
    assert len(study.evaluations) == 3 and study.costs == ("latency",)
    assert all(e.cost("latency") <= study.meta["limits"]["latency"] for e in study.evaluations)
    assert study.best.cost("latency") == predicted(task, table, study.best.policy)
    took = clock(automc.apply(task, study.best.policy), tuple(x[:1] for x in task.example_inputs))
    assert took == pytest.approx(study.best.cost("latency"), rel=0.1)


def test_a_table_its_file_and_the_measure_it_was_made_with_are_one(tmp_path: Path) -> None:
    task, table = known(linear), table_for(linear, "channels-ranks")
    table.write(tmp_path / "table.json")
    given = (table, str(tmp_path / "table.json"), tmp_path / "table.json", Clock())
    studies = [search(task, latency, trials=2, study=f"s{i}") for i, latency in enumerate(given)]
    policies = [[e.policy for e in study.evaluations] for study in studies]
    assert all(found == policies[0] for found in policies[1:])
    assert all(LatencyTable.model_validate(s.meta["latency"]) == table for s in studies)
    assert not Path("runs/latency").exists()


def test_a_search_by_a_measure_that_is_never_twice_the_same_goes_on() -> None:
    task, clock, rng = known(linear), Clock(), np.random.default_rng(0)

    def noisy(module: nn.Module, inputs: Inputs) -> float:
        return clock(module, inputs) * float(rng.uniform(0.99, 1.01))

    search(task, noisy, trials=1)
    assert len(search(task, noisy, trials=2).evaluations) == 2


def test_the_same_search_again_goes_on() -> None:
    task = known(linear)
    table = table_for(linear, "channels-ranks")
    first = [e.policy for e in search(task, table, trials=2).evaluations]
    seen: list[automc.Evaluation] = []
    study = search(task, table, trials=3, progress=seen.append)
    assert [e.number for e in seen] == [2] and [e.policy for e in study.evaluations][:2] == first
    assert study.name == "small-latency60-channels-ranks-stub-0"
    with pytest.raises(StudyError, match="began with"):
        search(task, table.model_copy(update={"dense": 2 * table.dense}))


def test_another_table_does_not_go_on_with_a_study_under_an_absolute_limit() -> None:
    task = known(linear)
    table = table_for(linear, "channels-ranks")
    budget = f"latency<={0.6 * table.dense}"
    search(task, table, budget=budget, trials=2)
    with pytest.raises(StudyError):
        search(task, table.model_copy(update={"scale": 0.9 * table.scale}), budget=budget)


@pytest.mark.parametrize("budget", ["latency<=60%,size<=50%", "throughput>=150%,macs<=70%"])
def test_seconds_are_limited_beside_other_costs(budget: str) -> None:
    task = known(convolutional)
    study = search(task, Clock(), budget=budget, space="auto")
    limits = study.meta["limits"]
    assert "latency" in limits and len(limits) == 2
    assert all(e.cost(name) <= limits[name] for e in study.evaluations for name in limits)


def test_throughput_is_that_of_the_tables_batch() -> None:
    task = known(linear)
    table = automc.profile(task, space="channels-ranks", measure=Clock(), batch=8)
    study = search(task, table, budget=f"throughput>={8 / (0.5 * table.dense)}")
    assert study.meta["limits"]["latency"] == pytest.approx(0.5 * table.dense)
    study = search(task, Clock(), budget="throughput>=200%", batch=8)
    assert study.meta["latency"]["batch"] == 8 and study.meta["limits"]["latency"] == pytest.approx(0.5 * table.dense)


def test_seconds_that_cannot_be_reached_are_refused_with_those_that_can() -> None:
    task = known(linear)
    with pytest.raises(BudgetError, match=r"at most 0.001ms, but the smallest reachable value is \d+\.\d+ms \(.*%"):
        search(task, Clock(), budget="latency<=1us")


def test_the_table_of_another_model_is_refused() -> None:
    table = table_for(linear, "channels-ranks")
    with pytest.raises(BudgetError, match="of the model that is searched"):
        search(known(convolutional), table)
    with pytest.raises(BudgetError, match="must be readable"):
        search(known(linear), "nowhere.json")


def test_a_limit_that_only_a_later_pattern_reaches_can_be_met_beside_another_limit() -> None:
    task = known(linear)
    facts = facts_of(task)
    zeros = {"element": [[0.875, 0.9]], "1x4": [[0.875, 0.4]]}
    kind = {"layers": ["3"], "inputs": [64], "outputs": [64], "seconds": [[1.0]], "zeros": zeros}
    table = table_of(facts, kind)
    prepare(task, Budget.parse("latency<=50%"), SPACES.load("weights"), latency=table)
    prepare(task, Budget.parse("latency<=50%,size<=100%"), SPACES.load("weights"), latency=table)


def test_without_a_table_layers_are_timed_once_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHARES", (0.5, 1.0))
    for name, value in {"ROUNDS": 2, "TURN": 1e-5}.items():
        monkeypatch.setattr(stopwatch, name, value)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))
    task, options = task_of(model), {"budget": "latency<=10s,macs<=60%", "space": "channels"}
    study = search(task, None, **options, trials=1)
    (path,) = Path("runs/latency").iterdir()
    table = LatencyTable.read(path)
    assert path.name.startswith("small-channels-") and table.timed_by(timing.processor())
    assert LatencyTable.model_validate(study.meta["latency"]) == table
    monkeypatch.setattr("automc.profiling.profiled", None)
    study = search(task, None, **options, trials=2)
    assert len(study.evaluations) == 2 and [*Path("runs/latency").iterdir()] == [path]
    assert all(0 < e.cost("latency") <= study.meta["limits"]["latency"] == 10 for e in study.evaluations)


def test_a_model_counts_relative_to_the_dense_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is now half as fast as when the dense model was timed first takes twice as long for both."""
    slow = [1.0]

    def timed(ways: Sequence[Any], *_: Any, **__: Any) -> list[list[float]]:
        return [[slow[0] * (4.0 if at == len(ways) - 1 else 3.0)] * 3 for at in range(len(ways))]

    monkeypatch.setattr(stopwatch, "in_turns", timed)
    model, x = nn.Linear(4, 2), (torch.randn(1, 4),)
    watch = stopwatch.Stopwatch.of(model, x)
    assert watch.dense == 4.0
    for slow[0] in (1.0, 2.0, 0.5):
        assert watch.model(nn.Linear(4, 2), x) == 3.0


def test_turns_are_as_long_and_rounds_as_many_as_asked() -> None:
    runs: list[str] = []
    ways = [lambda name=name: runs.append(name) for name in "ab"]
    found = in_turns(ways, 3, 0.0, 0.0, runs=4, least=2)  # no time at all, and still two rounds
    assert [len(own) for own in found] == [2, 2]
    assert runs[4:] == [*"aaaaabbbbb"] * 2  # behind a first run of each, and one to see how long it takes


def test_what_was_timed_for_another_space_of_the_same_name_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_clock(*args: Any, **options: Any) -> LatencyTable:
        return timing.profile(*args, **options | {"measure": Clock()})

    monkeypatch.setattr("automc.profiling.profiled", by_clock)
    task = known(linear)
    for number, opened in enumerate(("channels", "sparsity")):

        def mine(facts: ModelFacts, opened: str = opened) -> tuple[Axis, ...]:
            return SPACES.load(opened)(facts)

        assert search(task, None, space=mine, trials=1, study=f"s{number}").best.ok


# Projection


def weights_of(facts: ModelFacts) -> SearchSpace:
    return SearchSpace(facts, SPACES.load("weights")(facts))


def test_points_keep_as_far_below_a_limit_in_seconds_as_predictions_are_off() -> None:
    """A limit stays what was asked for; below what can be reached at least there is no room to keep."""
    table, task = table_for(convolutional, "channels"), known(convolutional)
    facts = facts_of(task)
    space, off = SearchSpace(facts, SPACES.load("channels")(facts)), ((1.1, 1.0), (0.9, 1.0), (1.0, 1.0))
    budget = Budget.parse("latency<=60%,macs<=90%")
    exact, rough = (Projector(space, budget, table.model_copy(update={"models": m})) for m in ((), off))
    assert exact.limits == rough.limits
    near, far = (p.costing.of(p.project(space.largest, fill=True))["latency"] for p in (exact, rough))
    limit, least = exact.limits["latency"], exact.costing.of(space.smallest)["latency"]
    assert near <= limit and far <= max(least, limit / 1.1) < near
    tight = Projector(space, Budget.parse(f"latency<={1e6 * least * 1.01:.6f}us,macs<=90%"), rough.costing.latency)
    assert tight.feasible(space.smallest) and tight.costing.of(tight.project(space.largest))["latency"] == least


@pytest.mark.parametrize("model", ["option_a", "transformer"])
@given(seed=st.integers(0, 2**31), share=st.floats(0.0, 1.0), fill=st.booleans())
@settings(max_examples=10)
def test_points_are_made_feasible_and_patterns_changed_only_where_they_must_be(
    model: str, seed: int, share: float, fill: bool
) -> None:
    facts, rng = models.facts_of(model), np.random.default_rng(seed)
    table = random_table(facts, rng)
    space = paying(weights_of(facts), table)
    if not space.axes:
        return
    costing = Costing(space, table)
    least, most = (costing.of(p)["latency"] for p in (space.smallest, space.largest))
    bound = least + share * (most - least)
    projector = Projector(space, Budget.parse(f"latency<={bound!r}"), table)
    patterns = np.array([a.field == "pattern" for a in space.axes])
    point = space.sample(rng)
    found = projector.project(point, fill=fill)
    floor = np.where(space.ordered, 0, point)
    assert projector.feasible(found)
    others = ~space.ordered & ~patterns
    assert (found[others] == point[others]).all()
    assert projector.feasible(floor) == bool((found[patterns] == point[patterns]).all()) or (found[patterns] == 0).all()
    assert not projector.feasible(floor) or (found[patterns] == point[patterns]).all()
    if projector.feasible(point) and not fill:
        assert (found == point).all()


def test_the_kind_of_a_table_is_what_its_file_says() -> None:
    kind = table_for(linear, "channels").kinds[0]
    assert Kind.model_validate_json(kind.model_dump_json()) == kind
