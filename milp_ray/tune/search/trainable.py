"""A trial as a Ray Tune class Trainable on a resident base (docs/decisions.md, 5).

The actor loads the base model once, and keeps it over trials and users; only the adapter changes
from trial to trial. A step is a slice of a few seconds, so that a stop request is obeyed in the
middle of a trial. This Trainable is one worker; a trial on several workers is
:mod:`milp_ray.tune.search.group_trial`.
"""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray import tune

from milp_ray.errors import MilpRayError
from milp_ray.trial.records import TrialRequest
from milp_ray.tune.cluster.environment import forget_launchers
from milp_ray.tune.workers.resident import resident_base
from milp_ray.tune.workers.trial_runner import TrialRunner, WorkerSetupError
from milp_ray.tune.workers.trial_spec import TrialSpec


class MemoryTrial(tune.Trainable):  # type: ignore[misc]
    """Inject one placement for one user, then measure; at the no-memory point, only measure."""

    def __repr__(self) -> str:
        return f"MemoryTrial({self._study})"  # the actor's name in the dashboard

    def setup(self, config: dict[str, object], spec: TrialSpec) -> None:
        """Load the base; called once per actor."""
        self._study = spec.study.name
        self._setup_error: WorkerSetupError | None = None
        forget_launchers()
        # The first step tells of an error: raised here, Tune would take the trial for what failed.
        try:
            base = resident_base(spec.study, spec.root, self.trial_resources.head_cpus)
            self._runner = TrialRunner(spec, base)
            self._begin(config)
        except MilpRayError as error:
            self._setup_error = WorkerSetupError(error, ray.util.get_node_ip_address())

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Take the next trial on the same base."""
        if self._setup_error is None:
            self._begin(new_config)
        return True

    def step(self) -> dict[str, object]:
        """Work for ``trial.slice_seconds``, or to the end of the trial."""
        report = self._runner.step() if self._setup_error is None else self._setup_error.report()
        return report.to_result()

    def cleanup(self) -> None:
        """Give the base back."""
        if self._setup_error is None:
            self._runner.close()

    def _begin(self, config: Mapping[str, object]) -> None:
        self._runner.begin(TrialRequest.from_config(config))
