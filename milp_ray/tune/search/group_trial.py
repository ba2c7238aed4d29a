"""A trial on several workers, as a Ray Tune class Trainable.

The Trainable itself loads no model. It has the placement group, and in it a
:class:`~milp_ray.tune.workers.worker_group.WorkerGroup` that stays over trials and users. So a rank
that dies, hangs or runs out of memory costs its group, and never Tune's actor: the group is made
anew in place, and the trial begun again, up to ``ray.max_failures`` times. Where a group cannot be
set up, or Tune's actor itself is lost, its ranks end too, and the trial runs again elsewhere
(:mod:`milp_ray.tune.workers.failures`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import ray
from ray import tune

from milp_ray.errors import ClusterError
from milp_ray.trial.records import TrialReport, TrialRequest
from milp_ray.tune.workers.failures import Action, FailurePolicy, Loss
from milp_ray.tune.workers.trial_runner import WorkerSetupError
from milp_ray.tune.workers.trial_spec import TrialSpec
from milp_ray.tune.workers.worker_group import GroupFailed, WorkerGroup


class GroupTrial(tune.Trainable):  # type: ignore[misc]
    """Inject one placement for one user on several workers, then measure the objectives."""

    def __repr__(self) -> str:
        return f"GroupTrial({self._study})"  # the actor's name in the dashboard

    def setup(self, config: dict[str, object], spec: TrialSpec) -> None:
        """Start the group; called once per actor."""
        placement_group = ray.util.get_current_placement_group()
        self._study = spec.study.name
        settings = spec.study.ray
        self._policy = FailurePolicy[TrialRequest](settings.max_failures, suspends=False)
        self._begun, self._over = False, True
        self._setup_error: WorkerSetupError | None = None
        self._group = WorkerGroup(
            ray.put(spec),
            placement_group.bundle_specs,
            placement_group,
            timeout=settings.group_timeout,
            slice_seconds=spec.study.trial.slice_seconds,
        )
        self._take(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Take the next trial with the same group."""
        if not self._over:  # the last trial was stopped half way
            with contextlib.suppress(GroupFailed):  # the next step makes the group anew
                self._group.abandon()
        self._take(new_config)
        return True

    def step(self) -> dict[str, object]:
        """Work for ``trial.slice_seconds``, or to the end of the trial.

        A group that cannot be set up reports that; see :meth:`WorkerSetupError.report`.
        """
        return self._step().to_result()

    def _step(self) -> TrialReport:
        if self._setup_error is not None:
            return self._setup_error.report()
        try:
            if not self._group.alive:
                self._start()
            if not self._begun:
                self._group.begin(self._request)
                self._begun = True
            report = self._group.slice()
            self._over = report.is_over
            attempts = 1 + self._policy.deaths(self._request)
            return dataclasses.replace(
                report, cost=report.cost and dataclasses.replace(report.cost, attempts=attempts)
            )
        except WorkerSetupError as error:
            self._over, self._setup_error = True, error
            return error.report()
        except GroupFailed as failure:
            self._begun = False
            verdict = self._policy.lost(Loss(self._request))
            if not failure.final and verdict.actions[self._request] is Action.RETRY:
                return TrialReport.running("restart")
            self._over = True
            if failure.final:
                return TrialReport.failed(failure.reason)
            times = self._policy.deaths(self._request)
            in_a_row = f", {times} times in a row" if times > 1 else ""
            return TrialReport.died_too_often(failure.reason + in_a_row)

    def cleanup(self) -> None:
        """Kill all ranks."""
        self._group.kill()

    def _take(self, config: Mapping[str, object]) -> None:
        self._request = TrialRequest.from_config(config)
        self._policy.got_on(self._request)
        self._begun, self._over = False, False

    def _start(self) -> None:
        """Start the ranks.

        Raises:
            WorkerSetupError: a rank cannot work, or the ranks did not come up. Where a node is gone
                this placement group may wait for resources for hours, so Tune gives it up.
        """
        try:
            self._group.start()
        except GroupFailed as failure:
            raise WorkerSetupError(
                ClusterError(
                    f"the workers of a trial did not come up: {failure.reason}",
                    expected="nodes that start workers and keep them",
                    remedy="look into the workers' logs in Ray's session folder; then resume",
                ),
                node="",
            ) from None
