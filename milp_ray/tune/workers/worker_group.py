"""Several workers that stay together: they load (and divide) a base once, for trial after trial.

Each rank is an actor in a bundle of the placement group that the caller runs in. All ranks run a
trial in lock-step (:mod:`milp_ray.model.parallel`): rank 0 is asked for slices of it, and the
others run it through. A rank that dies, hangs or runs out of memory ends the group, since the
others wait for it in vain. All ranks are killed then, by process id, since Ray itself would wait
for a process that no longer answers. The caller decides whether to begin again
(:mod:`milp_ray.tune.search.group_trial`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from milp_ray.errors import MilpRayError
from milp_ray.trial.records import TrialReport, TrialRequest
from milp_ray.tune.cluster.environment import forget_launchers
from milp_ray.tune.cluster.processes import WorkerProcess, end, host_rendezvous, on_one_node, this_process
from milp_ray.tune.workers.last_words import last_words
from milp_ray.tune.workers.resident import LOADING_SECONDS, resident_base
from milp_ray.tune.workers.trial_runner import TrialRunner, WorkerSetupError

if TYPE_CHECKING:
    from milp_ray.tune.workers.trial_spec import TrialSpec

_START_SECONDS = 300.0  # until all ranks have imported, and again until they have met


def longest_step(heartbeat_timeout: float) -> float:
    """Seconds that a step of a group's trial may take.

    In the longest step the ranks start, load the base, begin, work and end.

    Args:
        heartbeat_timeout: seconds for each of the last three.
    """
    return 2 * _START_SECONDS + LOADING_SECONDS + 3 * heartbeat_timeout


class GroupFailed(Exception):  # noqa: N818  (it names an outcome)
    """The group has ended. ``reason``: for people. ``final``: the trial would fail again alike."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        self.reason, self.final = reason, final
        super().__init__(reason)


class Rank:
    """One rank of a group: a Ray actor with its part of the base."""

    def __init__(self, spec: TrialSpec, cpus: float) -> None:
        self._spec = spec
        self._cpus = cpus
        self._runner: TrialRunner | None = None
        forget_launchers()

    def __repr__(self) -> str:
        return f"Rank({self._spec.study.name})"  # the actor's name in the dashboard

    def process(self) -> WorkerProcess:
        """This rank's process.

        The call imports what :meth:`join` needs, so that the ranks meet at about the same time.
        """
        import milp_ray.trial.unit  # noqa: F401

        return this_process()

    def host(self, one_machine: bool) -> str:
        """Open the rendezvous of the ranks; its address. Called on rank 0."""
        return host_rendezvous(one_machine)

    def join(self, address: str, rank: int, size: int) -> None:
        """Meet the other ranks, and load the base.

        Raises:
            WorkerSetupError: this rank cannot, and so neither can the others.
        """
        from milp_ray.model.parallel.rendezvous import Rendezvous

        study = self._spec.study
        try:
            rendezvous = Rendezvous(address, rank, size, study.ray.group_timeout)
            base = resident_base(study, self._spec.root, self._cpus, rendezvous)
        except MilpRayError as error:
            raise WorkerSetupError(error, ray.util.get_node_ip_address()) from None
        self._runner = TrialRunner(self._spec, base)

    def begin(self, request: TrialRequest) -> None:
        """Begin a trial."""
        assert self._runner is not None
        self._runner.begin(request)

    def slice(self) -> TrialReport:
        """Run a slice of the trial; see :meth:`TrialRunner.step`. Called on rank 0."""
        assert self._runner is not None
        return self._runner.step()

    def run(self) -> TrialReport:
        """Run the trial to its end. Called on the other ranks."""
        while not (report := self.slice()).is_over:
            pass
        return report

    def abandon(self) -> None:
        """Give the trial up, on all ranks. Called on rank 0."""
        assert self._runner is not None
        self._runner.abandon()


class WorkerGroup:
    """The ranks of one placement group. Not thread-safe.

    Example:
        Two ranks on the bundles that a Tune trial runs in, as ``GroupTrial`` starts them. The
        example is skipped: it needs a cluster and a base model.

        >>> group = WorkerGroup(  # doctest: +SKIP
        ...     spec, [{"CPU": 1}] * 2, placement_group, timeout=60, slice_seconds=2
        ... )
        >>> group.start()  # doctest: +SKIP

    Args:
        spec: a reference to the trials' :class:`TrialSpec` in Ray's object store.
        bundles: resources of each rank.
        placement_group: the one whose bundles these are.
        timeout: seconds without a sign of life after which a rank counts as hung.
        slice_seconds: how long a slice takes.
    """

    def __init__(
        self,
        spec: Any,
        bundles: Sequence[Mapping[str, float]],
        placement_group: PlacementGroup,
        *,
        timeout: float,
        slice_seconds: float,
    ) -> None:
        self._spec = spec
        self._bundles = list(bundles)
        self._placement_group = placement_group
        self._heartbeat_timeout = timeout + slice_seconds
        self._ranks: list[Any] = []
        self._processes: list[WorkerProcess] = []
        self._others: list[Any] = []

    @property
    def alive(self) -> bool:
        """Whether the group has ranks, as far as is known."""
        return bool(self._ranks)

    def start(self) -> None:
        """Start the ranks, and have them load the base.

        Raises:
            GroupFailed: a rank did not come up in time.
            WorkerSetupError: a rank cannot work: the base cannot be loaded, say.
        """
        make = ray.remote(max_restarts=0)(Rank)
        self._ranks = [
            make.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                memory=bundle.get("memory"),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._placement_group, placement_group_bundle_index=index
                ),
            ).remote(self._spec, bundle.get("CPU", 1))
            for index, bundle in enumerate(self._bundles)
        ]
        with self._failing():
            self._processes = self._all(
                [rank.process.remote() for rank in self._ranks], "started", _START_SECONDS
            )
            opened = [self._ranks[0].host.remote(on_one_node(self._processes))]
            (address,), size = self._all(opened, "opened where they meet"), len(self._ranks)
            self._all(
                [rank.join.remote(address, index, size) for index, rank in enumerate(self._ranks)],
                "loaded the base model",
                _START_SECONDS + LOADING_SECONDS,
            )

    def begin(self, request: TrialRequest) -> None:
        """Begin a trial on all ranks.

        Raises:
            GroupFailed: a rank was lost.
        """
        with self._failing():
            self._all([rank.begin.remote(request) for rank in self._ranks], "began")
            self._others = [rank.run.remote() for rank in self._ranks[1:]]

    def slice(self) -> TrialReport:
        """Run a slice of the trial; what rank 0 reports.

        Raises:
            GroupFailed: a rank died, hung, or ran out of memory.
        """
        with self._failing():
            first = self._ranks[0].slice.remote()
            deadline = time.monotonic() + self._heartbeat_timeout
            waiting = [first, *self._others]
            while first in waiting:
                done, waiting = ray.wait(
                    waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic())
                )
                if not done:
                    raise GroupFailed(f"a worker gave no sign of life for {self._heartbeat_timeout:.0f} s")
                for ref in done:
                    self._check(ray.get(ref))
            report: TrialReport = ray.get(first)
            if report.is_over:
                for other in self._all(self._others, "ended"):
                    self._check(other)
                self._others = []
            return report

    def abandon(self) -> None:
        """Give the present trial up, on all ranks; then the group is ready for another one.

        Raises:
            GroupFailed: the ranks did not give it up.
        """
        if not self._others:
            return
        with self._failing():
            self._all([self._ranks[0].abandon.remote(), *self._others], "stopped")
            self._others = []

    def kill(self) -> None:
        """Kill all ranks at once, whatever they are doing."""
        ranks, processes = self._ranks, self._processes
        self._ranks, self._processes, self._others = [], [], []
        for rank in ranks:
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.kill(rank)
        end(processes)

    def _all(self, refs: Sequence[Any], what: str, seconds: float | None = None) -> list[Any]:
        """The answers of all ranks, which must come within ``seconds``."""
        waiting = list(refs)
        deadline = time.monotonic() + (seconds or self._heartbeat_timeout)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise GroupFailed(f"{len(waiting)} of {len(refs)} workers have not {what} in time")
            ray.get(done)  # an error of one is known before the others are waited for
        return list(ray.get(list(refs)))

    def _check(self, report: TrialReport) -> None:
        """Raise if a rank reports a failure of its own, which the others do not know of."""
        if report.alone:
            raise GroupFailed(report.reason, final=True)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Kill the group if anything goes wrong inside."""
        try:
            yield
        except GroupFailed:
            self.kill()
            raise
        except ray.exceptions.RayActorError as error:
            self.kill()
            raise GroupFailed(": ".join(filter(None, ("a worker died", last_words(error))))) from None
        except ray.exceptions.RayTaskError as error:
            self.kill()
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, WorkerSetupError):
                raise cause from None
            raise GroupFailed(f"a worker failed: {last_words(error)}") from None
