"""A search as a run in MLflow, trials as steps: on the server, or in the database, that a URI names.

A search that goes on, goes on in its run. Nothing is sent anywhere else: MLflow's own telemetry is turned off, unless
the environment says otherwise.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from automc.callbacks.callback import Ending
from automc.callbacks.figures import counts, described, figures, place
from automc.errors import RegistryError, StudyError
from automc.evaluation import Evaluation
from automc.storage import shown
from automc.study import Study

EXPERIMENT = "automc"
_KEY = "automc.key"
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""A search waits for what it is written down by, so that a server that is away is given up soon."""
_STATUS: dict[Ending, str] = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LONGEST = 500
"""Characters of a parameter."""


class MLflow:
    """Logs to a tracking URI such as sqlite:///runs/mlflow.db or http://host:5000.

    RegistryError where the package is missing, StudyError where nothing answers there.
    """

    def __init__(self, uri: str, experiment: str = EXPERIMENT) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise RegistryError(
                "MLflow must be told through its package; it is not installed: pip install automc[mlflow]."
            ) from error
        with _readable(uri):
            self._client: Any = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run = ""

    def begin(self, study: Study) -> None:
        """Opens the study's run, the earlier one where there is one, and logs what is searched."""
        key = hashlib.sha256(json.dumps([place(study), study.name]).encode()).hexdigest()[:32]
        found = self._client.search_runs([self._experiment], f"tags.`{_KEY}` = '{key}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(self._experiment, tags={_KEY: key}, run_name=study.name)
        self._run = made.info.run_id
        for name, value in described(study).items():
            text = value if isinstance(value, str) else json.dumps(value)
            self._client.log_param(self._run, name, text[:_LONGEST])

    def trial(self, study: Study, evaluation: Evaluation) -> None:
        """Logs a trial's figures."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        found = [Metric(name, value, now, evaluation.number) for name, value in figures(study, evaluation).items()]
        self._client.log_batch(self._run, metrics=found)

    def end(self, study: Study, how: Ending, reason: str) -> None:
        """Closes the run."""
        for state, count in counts(study).items():
            self._client.set_tag(self._run, f"trials.{state}", str(count))
        if reason:
            self._client.set_tag(self._run, "reason", reason)
        self._client.set_terminated(self._run, status=_STATUS[how])


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    """What goes wrong at a tracking URI, as one StudyError."""
    try:
        yield
    except Exception as error:  # MLflow's own, its database's, the network's
        said = " ".join(str(error).split())[:200].replace(uri, shown(uri))
        raise StudyError(
            f"MLflow must be reached at its URI; {shown(uri)} cannot be used ({said}): give one like sqlite:///runs/mlflow.db."
        ) from error
