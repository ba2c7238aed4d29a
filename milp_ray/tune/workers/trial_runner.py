"""A trial on a resident base, in slices of a few seconds, and its reports as plain values.

A worker runs it, whether it works alone or as a rank of a group. It is driven by
:mod:`milp_ray.tune.search.trainable` and :mod:`milp_ray.tune.workers.worker_group`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

import ray

from milp_ray.config.objectives import maximized, objectives_on
from milp_ray.errors import MilpRayError, TrialFailed, exception_site
from milp_ray.ids import trial_name
from milp_ray.storage import local_copy, publish_for
from milp_ray.trial.records import TrialCost, TrialReport, TrialRequest
from milp_ray.tune.cluster.dashboard import log_line
from milp_ray.tune.cluster.processes import node_name, worker_name

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel
    from milp_ray.training.loop import Progress
    from milp_ray.trial.measurement import Measurement
    from milp_ray.trial.unit import SearchTrial, SearchUnit
    from milp_ray.tune.workers.trial_spec import TrialSpec


class WorkerBroke(RuntimeError):  # noqa: N818  (it names an outcome)
    """A worker's process failed in an unforeseen way. Its site is told, and no message.

    A message might quote a user.
    """


class WorkerSetupError(Exception):
    """A worker cannot load its base or begin its first trial.

    Attributes:
        error: why. With exit code 2 every other worker would fail alike.
        node: the address of the worker's node; empty where unknown.
    """

    def __init__(self, error: MilpRayError, node: str) -> None:
        self.error, self.node = error, node
        self._told = False
        super().__init__(str(error))

    def __reduce__(self) -> tuple[object, ...]:
        return (WorkerSetupError, (self.error, self.node))

    def report(self) -> TrialReport:
        """What the worker's trial reports instead of a step.

        With exit code 2 that is the run's end, else why the worker ends. The next call ends the
        worker, so that Tune keeps it for no other trial.
        """
        if self.error.exit_code == 2:
            return TrialReport.fatal(self.error)
        if self._told:
            # At once: Tune itself ends a worker only in its loop, which may wait for a trial first,
            # while the GPU stays taken.
            ray.actor.exit_actor()
        self._told = True
        return TrialReport.lost(self.error, self.node)


class TrialRunner:
    """One trial after another on a base.

    Args:
        spec: what all trials share.
        base: the resident model.
    """

    def __init__(self, spec: TrialSpec, base: BaseModel) -> None:
        self._spec, self._base = spec, base
        publish_for(spec.root, spec.session)
        self._trial: SearchTrial | None = None
        self._steps: Generator[Progress, None, None] | None = None

    def begin(self, request: TrialRequest) -> None:
        """Take a trial; the one before it is closed."""
        self.close()
        self._request = request
        key = request.placement.key
        self._label = trial_name(request.alias, request.number, key)
        log_line(self._label, f"begins: layers and ranks {key or 'none'}")
        study = self._spec.study
        unit: SearchUnit = ray.get(self._spec.units[request.alias])
        # One stream of random numbers per study, not per trial: two trials of a user then differ by
        # the placement alone, and not by the luck of the samples' order.
        self._trial = unit.trial(self._base, request.placement, study, seed=study.seed)
        self._steps = self._trial.steps()

    def step(self) -> TrialReport:
        """Work for ``trial.slice_seconds``, or to the end of the trial.

        Raises:
            WorkerBroke: something unforeseen happened.
        """
        from milp_ray.model.limits import OutOfMemory
        from milp_ray.trial.lifecycle import TrialStopped

        deadline = time.monotonic() + self._spec.study.trial.slice_seconds
        try:
            for progress in self._steps or ():
                if time.monotonic() >= deadline:
                    return TrialReport.running(progress.stage)
            return self._finish()
        except TrialStopped:
            return TrialReport.failed("stopped")
        except OutOfMemory as failure:
            alone = self._base.parallel.group.size > 1
            return TrialReport.failed(failure.reason, self._cost(), alone=alone)
        except TrialFailed as failure:
            log_line(self._label, f"failed: {failure.reason}")
            return TrialReport.failed(failure.reason, self._cost())
        except MilpRayError as error:
            return TrialReport.fatal(error)
        except Exception as error:
            # This process may be broken now (a CUDA error sticks), so it is replaced.
            raise WorkerBroke(exception_site(error)) from None

    def abandon(self) -> None:
        """Give the present trial up."""
        if self._steps is not None:
            self._steps.close()  # tells the other ranks
        self.close()

    def close(self) -> None:
        """Give the base back."""
        if self._trial is not None:
            self._trial.close()
            self._trial = None

    def _finish(self) -> TrialReport:
        trial, request = self._trial, self._request
        if trial is None or trial.result is None:
            return TrialReport.failed("the trial ended without a measurement")
        measured = trial.result
        wanted = self._spec.study.trial.save_adapters and trial.keeps_adapter and not request.is_baseline
        if wanted and self._base.parallel.group.rank == 0 and self._is_non_dominated(measured):
            trial.save(self._spec.layout.adapter(request.alias, request.number))
        cost = self._cost()
        self.close()
        seconds = measured.train_seconds + measured.eval_seconds
        log_line(self._label, f"done in {seconds:.1f} s: loss {measured.loss:.4f}")
        return TrialReport.complete(measured.values, cost, measured.by_user)

    def _cost(self) -> TrialCost:
        """What the trial has cost so far."""
        assert self._trial is not None
        return dataclasses.replace(self._trial.cost(), node=node_name(), worker=worker_name())

    def _is_non_dominated(self, measured: Measurement) -> bool:
        """Whether no trial in the user's event log dominates it; running ones may still do so."""
        from milp_ray.search.core.events import observed_values
        from milp_ray.search.core.objectives import exact_values
        from milp_ray.search.core.pareto import dominated_by_any

        objectives = objectives_on(self._base.architecture, self._spec.study.objectives)
        exact = exact_values(objectives, self._request.placement)
        values = maximized(objectives, measured.values | exact)
        with local_copy(self._spec.layout.events(self._request.alias)) as log:
            found = observed_values(log)
        others = [maximized(objectives, told) for number, told in found if number != self._request.number]
        return not dominated_by_any(values, others)
