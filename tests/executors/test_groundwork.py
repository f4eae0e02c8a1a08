"""What all candidates need is computed once, before any worker begins, and no worker writes to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import automc
from automc.compression import reconstruct
from automc.compression.bank import LayerBank
from automc.compression.reconstruct import FitPoint
from automc.compression.targets import Targets
from automc.executors.parcel import opened, opened_in, packed
from automc.kernels.tiles import lanes
from automc.registry import EXECUTORS
from automc.scoring.heat import Job
from automc.setting import Setting
from automc.workers import Blueprint, Workers, groundwork, lean
from tests.scoring import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def many(samples: int = 600, **changes: Any) -> automc.Task:
    """A task with enough calibration samples for a pass on tiles."""
    task = tiny.task(samples, **changes)
    return replace(task, calibration=[torch.cat([x for (x,), _ in task.validation])[:320]])


def blueprint(setting: Setting) -> Blueprint:
    return Blueprint(lean(setting.scoring), 0.01, groundwork(setting.evaluator, setting.scoring, 1))


@pytest.mark.parametrize("executor_threads", [1, 2])
def test_workers_however_often_they_are_replaced_compute_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor_threads: int
) -> None:
    """Where workers have another number of threads than the driver, it is computed twice, for both."""
    monkeypatch.setitem(EXECUTORS.table, "scrambled", "tests.executors.scrambled:scrambled")
    monkeypatch.setattr("tests.executors.scrambled.DEATHS", 0.3)
    counted = {"statistics": 0, "dense rows": 0, "begun": 0}
    collect, rows, begin = LayerBank._collect, reconstruct.dense_rows, Blueprint.__call__

    def counting(what: str, call: Any) -> Any:
        def counts(*given: Any, **more: Any) -> Any:
            counted[what] += 1
            return call(*given, **more)

        return counts

    monkeypatch.setattr(LayerBank, "_collect", counting("statistics", collect))
    monkeypatch.setattr("automc.compression.compress.dense_rows", counting("dense rows", rows))
    monkeypatch.setattr(Blueprint, "__call__", counting("begun", begin))
    options: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "searcher": "joint", "study": "s"}
    workers = Workers(2, "scrambled", 4, threads=executor_threads)
    automc.search(tiny.task(200), storage=tmp_path / "x.journal", trials=10, workers=workers, **options)
    assert counted["begun"] > 2
    assert counted["statistics"] == counted["dense rows"] == executor_threads


@pytest.mark.parametrize("score", ["metric", "kl"])
@pytest.mark.parametrize("driver_threads", [1, 2])
def test_what_arrives_is_to_the_last_bit_what_a_worker_would_compute(score: str, driver_threads: int) -> None:
    setting = tiny.setting(many(), (60, 200), score)
    torch.set_num_threads(driver_threads)
    setting.evaluator.evaluate(tiny.policies(setting, 1)[0])
    found = groundwork(setting.evaluator, setting.scoring, 1)
    assert torch.get_num_threads() == driver_threads
    torch.set_num_threads(1)
    alone = setting.scoring.evaluator()
    alone.compressor.compress(setting.scoring.space.decode(setting.scoring.space.smallest))
    expected = alone.groundwork(setting.scoring.space.recipe)
    assert found is not None and found.gathered.rows is not None and expected.gathered.rows is not None
    for key, table in expected.gathered.tables.items():
        assert all(torch.equal(found.gathered.tables[key][name], x) for name, x in table.items())
    for name, targets in expected.gathered.rows.targets.items():
        pairs = zip(found.gathered.rows.targets[name].tensors(), targets.tensors(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
    assert (found.dense_outputs is None) == (score == "metric")
    for one, other in zip(found.dense_outputs or (), expected.dense_outputs or (), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("score", ["metric", "kl"])
@pytest.mark.parametrize("activation", [torch.nn.ReLU, tiny.Swish], ids=["compiled", "torch"])
def test_a_scorer_with_groundwork_scores_as_one_without(activation: Any, score: str) -> None:
    setting = tiny.setting(many(activation=activation), (60, 200), score)
    parcel = packed(blueprint(setting))
    scorers = Blueprint(setting.scoring, 0.01)(), opened(parcel)(), opened_in(parcel.read(), parcel.tensors)()
    parcel.close()
    for policy in tiny.policies(setting, 4):
        scores = {scorer(Job(policy, ())).evaluation.score for scorer in scorers}
        assert len(scores) == 1 and None not in scores


def test_a_model_that_cannot_be_compressed_here_is_left_to_its_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tiny.setting(tiny.task(200))

    def broken(_: object) -> dict[str, Tensor]:
        raise ValueError("no statistics")

    monkeypatch.setattr(LayerBank, "_collect", broken)
    plan = blueprint(setting)
    assert plan.groundwork is None and not list(plan.unwritten)
    assert plan()(Job(tiny.policies(setting, 1)[0], ())).evaluation.reason == "ValueError: no statistics"


def test_groundwork_of_another_forward_is_not_used() -> None:
    """Its nodes have other names; such as where another torch records it."""
    setting = tiny.setting(tiny.task(200))
    found = groundwork(setting.evaluator, setting.scoring, 1)
    assert found is not None
    other = replace(found, gathered=replace(found.gathered, code="else", tables={}, rows=None))
    policy = tiny.policies(setting, 1)[0]
    assert setting.scoring.evaluator(other).evaluate(policy).score == setting.evaluator.evaluate(policy).score


def test_a_search_that_has_all_its_trials_begins_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "searcher": "random", "study": "s"}
    task = tiny.task(200)
    for number in (1, 2):
        found = automc.search(task, storage=tmp_path / "x.journal", trials=3, workers=number, **options)
        assert len(found.evaluations) == 3
        monkeypatch.setattr("automc.api.spread", lambda *_: pytest.fail("begun"))


def test_targets_made_for_other_vectors_are_arranged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where they come from another machine."""
    if not lanes():
        pytest.skip("nothing runs on tiles here")
    samples, side, channels = 32, 3, 5
    rows = torch.randn(samples * side * side, channels)
    outputs = np.arange(channels)

    def made() -> Targets:
        return Targets(torch.arange(samples * side * side), rows)

    for first, second in ((16, 8), (8, 16), (4, 16)):
        moved = made()
        monkeypatch.setattr("automc.compression.targets.lanes", lambda size=first: size)
        assert moved.tiles(outputs, side, side)[1].shape[2] == first
        monkeypatch.setattr("automc.compression.targets.lanes", lambda size=second: size)
        (places, values), (right, wanted) = (x.tiles(outputs, side, side) for x in (moved, made()))
        assert np.array_equal(places, right) and torch.equal(values, wanted)
        assert torch.equal(moved.rows(outputs), rows)


class Held:
    """Has a tensor that is not written to, and one that may be."""

    def __init__(self) -> None:
        self.fixed, self.free = torch.ones(1000), torch.ones(1000)
        self.point = FitPoint("a", None, None)

    @property
    def unwritten(self) -> Iterator[Tensor]:
        yield self.fixed


def test_only_what_is_never_written_to_stays_in_memory_that_is_everybodys() -> None:
    parcel = packed(Held())
    shared = bytearray(parcel.read())
    before = bytes(shared)
    parcel_tensors = parcel.tensors
    parcel.close()
    one, other = opened_in(shared, parcel_tensors), opened_in(shared, parcel_tensors)
    one.free.zero_()
    assert other.free.all() and bytes(shared) == before
    one.fixed[0] = 7.0
    assert other.fixed[0] == 7.0 and bytes(shared) != before


READING = """
import mmap
import sys

import torch

from automc.budget import Budget
from automc.executors.parcel import Parcel, opened_in
from automc.scoring.heat import Job
from automc.setting import prepare
from automc.tasks import load_task
from tests.executors.test_groundwork import blueprint, many
from tests.scoring import tiny
from automc.executors.parcel import packed

torch.set_num_threads(1)
space, score, activation = sys.argv[1], sys.argv[2], {"relu": torch.nn.ReLU, "swish": tiny.Swish}[sys.argv[3]]
task = load_task("digits") if space == "ranks" else many(activation=activation)  # a tiny one has none worth it
setting = prepare(task, Budget.parse("bops<=80%"), space, score=score, stages=(60, 200))
parcel = packed(blueprint(setting))
memory = mmap.mmap(parcel.memory, parcel.size, prot=mmap.PROT_READ)  # who writes there does not live on
assert len(list(blueprint(setting).unwritten)) > 3
scorer, other = opened_in(memory, parcel.tensors)(), setting.scoring.evaluator()
for policy in tiny.policies(setting, 8):
    found = scorer(Job(policy, ())).evaluation
    assert found.ok, found.reason
    assert found.score == other.evaluate(policy).score
    assert all(scorer.evaluator.compressor.errors(setting.scoring.space)[0] >= 0)
print("done")
"""


def reads(space: str, score: str, activation: str) -> None:
    command, environment = (
        [sys.executable, "-c", READING, space, score, activation],
        os.environ | {"PYTHONPATH": str(ROOT)},
    )
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_no_scorer_writes_to_it() -> None:
    reads("joint", "kl", "relu")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("activation", ["relu", "swish"])
@pytest.mark.parametrize(
    ("space", "score"),
    [("channels", "metric"), ("criteria", "kl"), ("bits", "mse"), ("codebooks", "kl"), ("weights", "metric"),
     ("ranks", "kl"), ("channels-bits", "metric"), ("zeros-bits", "kl"), ("joint", "metric")],
)  # fmt: skip
def test_no_scorer_of_any_space_writes_to_it(space: str, score: str, activation: str) -> None:
    reads(space, score, activation)


def test_memory_that_cannot_be_written_to_proves_it() -> None:
    """The guard of the two tests above."""
    script = "import mmap,os,torch; f=os.memfd_create('x'); os.ftruncate(f,4096); "
    script += "torch.frombuffer(mmap.mmap(f,4096,prot=mmap.PROT_READ),dtype=torch.uint8).zero_(); print('written')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, check=False)
    assert done.returncode < 0 and not done.stdout
