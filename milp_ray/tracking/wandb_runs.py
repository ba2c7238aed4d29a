"""Weights & Biases: a run for the study, and one for each search, in one group.

Online where a key is set (``WANDB_API_KEY``, or ``wandb login``), else offline: files in the run
folder, which ``wandb sync`` sends. Ids follow from the run and the alias, so a later session goes
on with the same runs. What W&B adds by itself (console, code, git, machine) is off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from milp_ray.tracking.follower import own_folder, set_defaults
from milp_ray.tracking.interface import OpenRuns, TrackedSearch, TrackedStudy

if TYPE_CHECKING:
    from wandb import Run

_MOST_OPEN = 8


class WandbRuns:
    """See :class:`milp_ray.tracking.interface.Tracker`."""

    def __init__(self) -> None:
        set_defaults(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
        self._study: TrackedStudy | None = None
        self._parent: Run | None = None
        self._runs: OpenRuns[Run] = OpenRuns(_MOST_OPEN, lambda run: run.finish())

    def begin(self, study: TrackedStudy) -> None:
        """Open the parent; the group is called as the study, with a mark of the run."""
        self._study = study
        self._parent = self._init(study.digest, study.name, "study", dict(study.settings))

    def send(self, search: TrackedSearch, first: int) -> None:
        """Steps are the run's history, the summary its summary."""
        study = self._known()
        words = {"user": search.alias, "study": study.name}
        run = self._runs.get(
            search.alias,
            lambda: self._init(f"{study.digest}-{search.alias}", search.alias, "user", words),
        )
        for number, step in enumerate(search.steps[first:], start=first + 1):
            run.log({**step.metrics, "ended_at": step.at}, step=number)
        run.summary.update(dict(search.summary))
        if search.is_over:
            self._runs.end(search.alias)

    def totals(self, step: int, metrics: Mapping[str, float]) -> None:
        """History of the parent."""
        assert self._parent is not None, "begin comes first"
        self._parent.log(dict(metrics), step=step)

    def close(self, *, is_done: bool) -> None:
        """End all that is open; an exit code says whether the study is done."""
        self._runs.end_all()
        if self._parent is not None:
            self._parent.finish(exit_code=0 if is_done else 1)
            self._parent = None

    def _known(self) -> TrackedStudy:
        assert self._study is not None, "begin comes first"
        return self._study

    def _init(self, name: str, shown: str, kind: str, config: dict[str, Any]) -> Run:
        import wandb

        study = self._known()
        folder = own_folder(study.folder, "wandb")
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "milp_ray"),
            group=f"{study.name}-{study.digest[:6]}",
            job_type=kind,
            name=shown,
            id=name,
            resume="allow",
            mode=_mode(),
            dir=os.environ.get("WANDB_DIR") or (None if folder is None else str(folder)),
            config=config,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                silent=True,
                init_timeout=60,
            ),
        )


def _mode() -> Any:
    """As ``WANDB_MODE`` says; without a key offline, since W&B would ask for one."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    import wandb

    return "online" if os.environ.get("WANDB_API_KEY") or wandb.api.api_key else "offline"
