"""MLflow: where MLFLOW_TRACKING_URI says, else the database RUN/tracking/mlflow/mlflow.db."""

import os
from collections.abc import Mapping
from typing import Any

from tutelage.training.trackers import PROJECT, TrackedRun, Tracker

MODULE, EXTRA = "mlflow", "mlflow"


class _Mlflow:
    def __init__(self, client: Any, run_id: str) -> None:  # mlflow's
        self._client, self._run_id = client, run_id

    def write(self, figures: Mapping[str, float], *, step: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def begin(run: TrackedRun) -> Tracker:
    """The run that has our id as a tag, or a new one."""
    import mlflow

    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.folder}/mlflow.db"))
    named = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    there = client.get_experiment_by_name(named)
    experiment = there.experiment_id if there is not None else client.create_experiment(named)
    known = client.search_runs([experiment], filter_string=f"tags.tutelage_run = '{run.run_id}'")
    if known:
        return _Mlflow(client, known[0].info.run_id)
    made = client.create_run(experiment, run_name=run.name, tags={"tutelage_run": run.run_id})
    for section, value in run.recipe.items():
        client.log_param(made.info.run_id, section, str(value)[:500])
    return _Mlflow(client, made.info.run_id)
