"""What MLflow holds of a search, in a database of its own; and that nothing else is told."""

import os
import sys

import pytest

from automc.errors import RegistryError, StudyError
from tests.callbacks.searching import mixed, search
from tests.study import lab

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(client, name):
    [experiment] = [e for e in client.search_experiments() if e.name == "automc"]
    return client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")


def test_a_search_that_goes_on_is_one_run_with_each_trial_once(uri, client, tmp_path):
    from automc.callbacks.mlflow import MLflow

    for trials in (4, 9):
        study = search(lab.study(tmp_path / "lab.journal"), [MLflow(uri)], trials=trials, evaluate=mixed)
    [run] = runs(client, "lab")
    assert run.info.status == "FINISHED"
    assert run.data.params["budget"] == "macs<=70%,size<=75%" and '"macs": 700.0' in run.data.params["limits"]
    history = client.get_metric_history(run.info.run_id, "seconds")
    assert sorted(m.step for m in history) == list(range(9))
    scores = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "score")}
    assert scores == pytest.approx({e.number: e.score for e in study.evaluations if e.ok})
    assert run.data.metrics["best/score"] == pytest.approx(study.best.score)
    assert run.data.tags["trials.failed"] == str(sum(e.state == "failed" for e in study.evaluations))


def test_how_a_search_ended_is_the_runs_status(uri, client, tmp_path):
    from automc.callbacks.mlflow import MLflow

    for name, error, status in (("stop", KeyboardInterrupt(), "KILLED"), ("fail", OSError("fire"), "FAILED")):

        def evaluate(policy, error=error):
            raise error

        with pytest.raises(type(error)):
            search(lab.study(tmp_path / "lab.journal", name=name), [MLflow(uri)], evaluate=evaluate)
        [run] = runs(client, name)
        assert run.info.status == status and run.data.tags.get("reason") == (
            "OSError: fire" if name == "fail" else None
        )


def test_studies_of_one_name_in_two_storages_are_two_runs(uri, client, tmp_path):
    from automc.callbacks.mlflow import MLflow

    for path in ("first.journal", "second.journal"):
        search(lab.study(tmp_path / path, name="twice"), [MLflow(uri)], trials=1)
    assert len(runs(client, "twice")) == 2


def test_nothing_is_reported_to_anybody_else(uri, monkeypatch):
    from automc.callbacks.mlflow import MLflow

    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    MLflow(uri)
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and is_telemetry_disabled()


@pytest.mark.parametrize("where", ["http://user:secret@127.0.0.1:9", "nonsense://x", "sqlite:////dev/null/mlflow.db"])
def test_a_uri_where_nothing_answers_is_one_sentence(where, monkeypatch):
    from automc.callbacks.mlflow import MLflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StudyError, match="MLflow must be reached at its URI") as raised:
        MLflow(where)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_package_is_one_sentence(monkeypatch):
    from automc.callbacks.mlflow import MLflow

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RegistryError, match=r"not installed: pip install automc\[mlflow\]\.$"):
        MLflow("sqlite:///x.db")
