"""MLflow: a run of its own for the study, and a nested one for each search.

Where they go says ``MLFLOW_TRACKING_URI``; without it a SQLite file in the run folder. Runs of an
earlier session are found by their tags. Metrics that are sent twice are stored once: MLflow keeps
one value per name, step, time and value.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from milp_ray.errors import RunFolderError
from milp_ray.tracking.follower import own_folder, set_defaults
from milp_ray.tracking.interface import TrackedSearch, TrackedStudy

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

_RUN, _USER, _PARENT = "milp_ray.run", "milp_ray.user", "mlflow.parentRunId"
_LONGEST = 500  # of a value: MLflow cuts longer ones without a word, at 6,000 and 8,000
_AT_ONCE = 1000  # metrics that one request may have
_PAGE = 1000


class MlflowRuns:
    """See :class:`milp_ray.tracking.interface.Tracker`."""

    def __init__(self) -> None:
        # A server that is away would keep a call waiting for four minutes, and seven retries.
        set_defaults(
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            MLFLOW_HTTP_REQUEST_TIMEOUT="30",
            MLFLOW_DISABLE_TELEMETRY="true",
        )
        self._client: MlflowClient | None = None
        self._experiment = self._parent = self._digest = ""
        self._runs: dict[str, str] = {}
        self._running: set[str] = set()

    def begin(self, study: TrackedStudy) -> None:
        """Find or make the experiment, called as the study, and the parent run."""
        from mlflow.tracking import MlflowClient

        for chatty in ("alembic", "mlflow"):  # after the import, which sets their levels
            logging.getLogger(chatty).setLevel(logging.ERROR)
        uri, artifacts = _place(study)
        client = self._client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(study.name)
        self._experiment = (
            found.experiment_id if found is not None else client.create_experiment(study.name, artifacts)
        )
        self._digest = study.digest
        self._runs = {}
        self._parent = ""
        for run in self._known(client):
            if _PARENT in run.data.tags:
                self._runs[run.data.tags.get(_USER, "")] = run.info.run_id
            else:
                self._parent = run.info.run_id
        if self._parent:
            client.update_run(self._parent, status="RUNNING")
        else:
            made = client.create_run(self._experiment, run_name=study.name, tags={_RUN: study.digest})
            self._parent = made.info.run_id
        self._log(self._parent, [], study.settings, as_params=True)

    def send(self, search: TrackedSearch, first: int) -> None:
        """Steps are metrics, numbers of the summary as well, words of it tags."""
        client = self._open()
        run = self._runs.get(search.alias)
        if run is None:
            tags = {_RUN: self._digest, _USER: search.alias, _PARENT: self._parent}
            made = client.create_run(self._experiment, run_name=search.alias, tags=tags)
            run = self._runs[search.alias] = made.info.run_id
        last = len(search.steps)
        metrics = [
            _metric(name, value, step.at, number)
            for number, step in enumerate(search.steps[first:], start=first + 1)
            for name, value in step.metrics.items()
        ]
        at = search.steps[-1].at if search.steps else 0.0
        metrics += [_metric(name, value, at, last) for name, value in search.numbers().items()]
        self._log(run, metrics, search.words())
        if search.is_over:
            client.set_terminated(run, "FINISHED")
            self._running.discard(run)
        else:
            self._running.add(run)

    def totals(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the parent."""
        now = time.time()
        self._log(self._parent, [_metric(name, value, now, step) for name, value in metrics.items()], {})

    def close(self, *, is_done: bool) -> None:
        """The parent is finished, or was stopped, and with it what has not ended."""
        for run in (*sorted(self._running), self._parent):
            self._open().set_terminated(run, "FINISHED" if is_done else "KILLED")

    def _open(self) -> MlflowClient:
        assert self._client is not None, "begin comes first"
        return self._client

    def _known(self, client: MlflowClient) -> Iterator[Any]:
        """Every run of ours, page by page."""
        token: str | None = None
        while True:
            page = client.search_runs(
                [self._experiment],
                f"tags.`{_RUN}` = '{self._digest}'",
                max_results=_PAGE,
                page_token=token,
            )
            yield from page
            if not (token := page.token):
                return

    def _log(
        self, run: str, metrics: list[Metric], words: Mapping[str, Any], *, as_params: bool = False
    ) -> None:
        from mlflow.entities import Param, RunTag

        client = self._open()
        short = {name: _short(str(value)) for name, value in words.items()}
        params = [Param(name, value) for name, value in short.items()] if as_params else []
        if params:  # what an earlier session wrote stays, also where the study has grown since
            there = client.get_run(run).data.params
            params = [param for param in params if param.key not in there]
        for first in range(0, len(metrics), _AT_ONCE):
            client.log_batch(run, metrics=metrics[first : first + _AT_ONCE])
        tags = [] if as_params else [RunTag(name, value) for name, value in short.items()]
        if params or tags:
            client.log_batch(run, params=params, tags=tags)


def _place(study: TrackedStudy) -> tuple[str, str | None]:
    """The tracking server or file, and where a new experiment keeps artifacts; None: its default.

    Raises:
        RunFolderError: the run is at a URL, and no server is named.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri, None
    folder = own_folder(study.folder, "mlflow")
    if folder is None:
        raise RunFolderError(
            "the run is at a URL, and MLflow's own file must be on a file system",
            expected="the address of a tracking server",
            remedy="set MLFLOW_TRACKING_URI",
        )
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def _metric(name: str, value: float, at: float, step: int) -> Metric:
    from mlflow.entities import Metric

    return Metric(name, float(value), round(at * 1000), step)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
