"""The trainable by itself, in this process: what it reports, keeps and goes on from."""

import json
import math
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.tune.trainable import trainable as ray_trainable

import automc
from automc.tuning.searcher import TuneSearcher
from automc.tuning.trainable import CHECKPOINT, PolicyTrainable
from tests.scoring import tiny

STAGES = (64, 700)


@pytest.fixture(autouse=True)
def _own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an actor sets up in its process is put back in this one."""
    monkeypatch.setattr(ray_trainable, "DEFAULT_STORAGE_PATH", str(tmp_path / "logs"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> TuneSearcher:
    folder = tmp_path_factory.mktemp("trainable")
    return automc.tune_searcher(
        tiny.task(), budget="macs<=60%", space="channels", searcher="random", score="kl", stages=STAGES,
        storage=folder / "tuned.journal",
    )  # fmt: skip


@pytest.fixture(scope="module")
def texts(search: TuneSearcher) -> list[str]:
    return [json.dumps(policy.to_dict()) for policy in tiny.policies(search.ledger.setting, 4)]


@pytest.fixture
def make(search):
    """Makes a trainable as an actor does."""
    return lambda text, of=search: automc.trainable(of)({"policy": text})


def trained(made: Any) -> list[dict[str, Any]]:
    """All that a trial reports, without when and where."""
    known = ("score", "metric", "costs", "samples", "share", "state", "reason", "done", "training_iteration")
    found: list[dict[str, Any]] = []
    while not found or not found[-1]["done"]:
        result = made.train()
        assert result["seconds"] >= 0.0
        found.append({name: result[name] for name in known})
    return found


def test_a_trial_reports_its_stages_and_ends_with_what_evaluate_gives(make, search, texts):
    for text in texts[:2]:
        policy = automc.Policy.from_json(text)
        whole = search.ledger.setting.evaluator.evaluate(policy)
        found = trained(make(text))
        assert [r["samples"] for r in found] == [64, 700, tiny.SAMPLES]
        assert [r["training_iteration"] for r in found] == [1, 2, 3]
        assert [r["state"] for r in found] == ["pruned", "pruned", "ok"]
        assert [r["share"] for r in found] == pytest.approx([64 / 1500, 700 / 1500, 1.0])
        assert (found[-1]["score"], found[-1]["metric"]) == (whole.score, whole.metric)
        assert all(r["costs"] == dict(whole.costs) for r in found)


def test_an_actor_goes_from_trial_to_trial_with_one_evaluator(make, texts):
    made = make(texts[0])
    evaluator, first = made._evaluator, trained(made)
    assert made.reset({"policy": texts[1]}) is True
    assert trained(made) == trained(make(texts[1])) != first
    assert made.reset({"policy": texts[0]}) is True
    assert trained(made) == first and made._evaluator is evaluator


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_trial_goes_on_from_its_checkpoint_wherever_it_was_paused(after, make, texts, tmp_path, monkeypatch):
    made = make(texts[0])
    whole = trained(make(texts[0]))
    for _ in range(after):
        made.train()
    saved = made.save(str(tmp_path / "saved"))
    other = make(texts[1])
    other.train()
    assert other.reset({"policy": texts[0]})
    compressed, stage_scores = [], other._evaluator.stage_scores

    def noted(forward, stage):
        compressed.append(len(stage.rows))
        return stage_scores(forward, stage)

    monkeypatch.setattr(other._evaluator, "stage_scores", noted)
    other.restore(saved)
    found = trained(other)
    assert [{**r, "training_iteration": 0} for r in found] == [
        {**r, "training_iteration": 0} for r in whole[min(after, 2) :]
    ]
    assert compressed == [64, 636, 800][min(after, 2) :], "nothing is scored twice, but for the end of a finished trial"


def test_a_checkpoint_is_one_json_file_of_which_none_is_pickled(make, texts, tmp_path):
    made = make(texts[0])
    made.train()
    made.save(str(tmp_path / "saved"))
    names = [p.name for p in (tmp_path / "saved").rglob("*") if p.is_file()]
    assert names == [CHECKPOINT]
    assert set(json.loads((tmp_path / "saved" / CHECKPOINT).read_text())) == {"policy", "scores"}


def test_scores_of_another_policy_count_for_nothing(make, texts, tmp_path):
    """A population-based scheduler hands a trial the checkpoint of a better one, and a policy of its own."""
    donor, heir = make(texts[0]), make(texts[1])
    donor.train()
    heir.restore(donor.save(str(tmp_path / "saved")))
    found = trained(heir)
    assert [r["score"] for r in found] == [r["score"] for r in trained(make(texts[1]))]


def broken(document: Any) -> st.SearchStrategy[bytes]:
    """A checkpoint with something wrong in it."""
    scores = document["scores"]
    column = scores[0][0]
    wrong: list[Any] = [
        None, [], 3, "scores", {"policy": document["policy"]}, {**document, "policy": "0" * 64},
        {**document, "scores": None}, {**document, "scores": [scores[0][:1]]}, {**document, "scores": [[1, 2]]},
        {**document, "scores": [[column[:-1], column]]}, {**document, "scores": [[[*column[:-1], "1"], column]]},
        {**document, "scores": [[[*column[:-1], math.nan], column]]}, {**document, "scores": {"0": scores[0]}},
        {**document, "scores": [[[*column[:-1], True], column]]},
    ]  # fmt: skip
    whole = json.dumps(document).encode()
    cut = st.integers(0, len(whole) - 1).map(lambda n: whole[:n])
    nested = st.just(b"[" * 100_000)
    return st.one_of(st.sampled_from([json.dumps(w).encode() for w in wrong]), cut, nested, st.binary(max_size=40))


def test_a_broken_checkpoint_is_as_good_as_none(make, texts, tmp_path):
    made = make(texts[0])
    made.train()
    made.save_checkpoint(str(tmp_path))
    document = json.loads((tmp_path / CHECKPOINT).read_text())
    made.load_checkpoint(str(tmp_path))
    assert made._steps.seen == 64, "the whole one is taken"

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(broken(document))
    def check(data):
        Path(tmp_path, CHECKPOINT).write_bytes(data)
        made.reset_config({"policy": texts[0]})
        made.load_checkpoint(str(tmp_path))
        assert made._steps.seen == 0

    check()
    Path(tmp_path, CHECKPOINT).unlink()
    made.load_checkpoint(str(tmp_path))
    assert made._steps.seen == 0


@pytest.mark.parametrize("text", [None, "", "{}", "[" * 9, json.dumps(automc.Policy("0" * 64).to_dict())])
def test_a_config_without_a_policy_of_this_model_fails_the_trial_with_its_reason(text, make, texts):
    [found] = trained(make(text))
    assert (found["state"], found["done"], found["samples"]) == ("failed", True, 0) and math.isnan(found["score"])
    assert "olicy" in found["reason"]
    made = make(text)
    assert made.reset({"policy": texts[0]}) and trained(made)[-1]["state"] == "ok"


def test_a_candidate_that_goes_wrong_is_a_result_and_no_error(make, texts, monkeypatch):
    """An error would cost the actor."""
    made = make(texts[0])
    made.train()
    monkeypatch.setattr(made._evaluator, "stage_scores", lambda forward, stage: 1 // 0)
    [found] = trained(made)
    assert (found["state"], found["done"]) == ("failed", True) and math.isnan(found["score"])
    assert found["reason"].startswith("ZeroDivisionError")


def test_an_actor_that_cannot_be_set_up_says_so_whatever_it_is_given(search, texts, monkeypatch):
    given: dict[str, Any] = {}

    class Kept(PolicyTrainable):
        def setup(self, config, parts=None):
            given["parts"] = replace(parts, parcel=parts.parcel[:-9])
            super().setup(config, given["parts"])

    monkeypatch.setattr("automc.tuning.trainable.PolicyTrainable", Kept)
    made = automc.trainable(search)({"policy": texts[0]})
    for _ in range(2):
        [found] = trained(made)
        assert (found["state"], found["done"]) == ("broken", True) and found["reason"]
        assert made.reset({"policy": texts[1]})


def test_what_no_scorer_needs_stays_behind(tmp_path):
    """A factory with a lock in it could not leave the process."""
    lock = threading.Lock()
    search = automc.tune_searcher(
        tiny.task(factory=lambda: lock), budget="macs<=60%", space="channels", searcher="random",
        storage=tmp_path / "tuned.journal",
    )  # fmt: skip
    assert issubclass(automc.trainable(search), PolicyTrainable)


@pytest.mark.parametrize(("threads", "gpus"), [(1, 0.0), (3, 0.25)])
def test_an_actor_asks_for_what_it_was_given(threads, gpus, search):
    asked = automc.trainable(search, threads=threads, gpus=gpus).default_resource_request({})
    assert asked is not None
    assert {name: amount for name, amount in asked.required_resources.items() if amount} == (
        {"CPU": threads, "GPU": gpus} if gpus else {"CPU": threads}
    )
