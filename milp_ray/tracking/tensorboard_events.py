"""TensorBoard: event files in the run folder, a folder for the study and one for each search.

``tensorboard --logdir RUN/tracking/tensorboard`` shows them. A later session tells TensorBoard from
which step on to forget what an earlier one wrote, so nothing is shown twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from milp_ray.tracking.follower import own_folder
from milp_ray.tracking.interface import OpenRuns, TrackedSearch, TrackedStudy

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_MOST_OPEN = 32


class TensorboardEvents:
    """See :class:`milp_ray.tracking.interface.Tracker`."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._parent: SummaryWriter | None = None
        self._runs: OpenRuns[SummaryWriter] = OpenRuns(_MOST_OPEN, lambda writer: writer.close())

    def begin(self, study: TrackedStudy) -> None:
        """Make the folder; the study's settings are a text of the parent."""
        self._folder = own_folder(study.folder, "tensorboard")
        assert self._folder is not None, "a run at a URL is refused before"
        self._parent = _writer(self._folder / "study", None)
        rows = "\n".join(f"| {name} | {value} |" for name, value in study.settings.items())
        self._parent.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def send(self, search: TrackedSearch, first: int) -> None:
        """Steps are scalars, and so are the numbers of the summary."""
        assert self._folder is not None, "begin comes first"
        place = self._folder / search.alias
        writer = self._runs.get(search.alias, lambda: _writer(place, first + 1 if place.exists() else None))
        for number, step in enumerate(search.steps[first:], start=first + 1):
            for name, value in step.metrics.items():
                writer.add_scalar(name, value, number, walltime=step.at)
        for name, value in search.numbers().items():
            writer.add_scalar(f"summary/{name}", value, len(search.steps))
        writer.flush()
        if search.is_over:
            self._runs.end(search.alias)

    def totals(self, step: int, metrics: Mapping[str, float]) -> None:
        """Scalars of the parent."""
        assert self._parent is not None, "begin comes first"
        for name, value in metrics.items():
            self._parent.add_scalar(name, value, step)
        self._parent.flush()

    def close(self, *, is_done: bool) -> None:
        """Close the files."""
        self._runs.end_all()
        if self._parent is not None:
            self._parent.close()


def _writer(folder: Path, purge_step: int | None) -> SummaryWriter:
    from tensorboardX import SummaryWriter

    # Files are named by the second, and one of two in the same second would overwrite the other.
    # They are read in the order of their names.
    return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=f".{time.time_ns()}")
