"""What a rank of the final job does: users one after another, with the other ranks of its group.

Ray Train starts the ranks, and starts them again when one is lost. They are divided into groups of
``ray.workers_per_trial`` ranks. The groups work side by side, each on a user of its own. Each group
has a process group, made when Ray Train starts its workers (:class:`GroupsConfig`), in place of one
process group over all ranks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.train import UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup

from milp_ray.errors import MilpRayError, TrialFailed, exception_site
from milp_ray.ids import POPULATION
from milp_ray.storage import local_copy, publish_for, write_json
from milp_ray.tune.cluster.dashboard import log_line
from milp_ray.tune.cluster.processes import end, host_rendezvous, on_one_node, this_process
from milp_ray.tune.cluster.reservations import release
from milp_ray.tune.final.coordinator import FinalSpec, FinalTask
from milp_ray.tune.workers.resident import resident_base

if TYPE_CHECKING:
    from torch import Tensor

    from milp_ray.evaluation.compare import TestScores
    from milp_ray.model.parallel.group import Group
    from milp_ray.training.checkpoint import TrainingState
    from milp_ray.trial.lifecycle import Trial

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class RankAssignment:
    """Which group and which rank a process is.

    Attributes:
        group: number of the group.
        rank: of the process in its group.
        size: of the group.
        address: where the group's ranks meet; empty for a group of one.
    """

    group: int
    rank: int
    size: int
    address: str


# Of this process. A list, since Ray Train sets it from another thread.
_ASSIGNED: list[RankAssignment] = []


@dataclass
class GroupsConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's configuration for groups of ranks side by side.

    Attributes:
        size: ranks of a group.
        coordinator: hands out the groups' tasks.
    """

    size: int = 1
    coordinator: Any = None

    @property
    def backend_cls(self) -> type[Backend]:
        """Ray Train asks for it."""
        return _GroupsBackend


class _GroupsBackend(Backend):  # type: ignore[misc]
    """Tells every rank its assignment. Each rank sees its own GPU alone, as in the search."""

    def on_start(self, worker_group: Any, backend_config: GroupsConfig) -> None:
        size, coordinator = backend_config.size, backend_config.coordinator
        if not _pause(ray.get(coordinator.begin.remote(size)), coordinator):
            return
        count = len(worker_group) // size  # ranks that fill no group have no assignment, and end at once
        addresses = self._addresses(worker_group, size, count) if size > 1 else [""] * count
        ray.get(
            [
                worker_group.execute_single_async(
                    group * size + rank, _assign, RankAssignment(group, rank, size, addresses[group])
                )
                for group in range(count)
                for rank in range(size)
            ]
        )

    @staticmethod
    def _addresses(worker_group: Any, size: int, count: int) -> list[str]:
        """The address that each group meets at: its first rank opens it."""
        ranks = range(count * size)
        processes = ray.get([worker_group.execute_single_async(rank, this_process) for rank in ranks])
        opened = [
            worker_group.execute_single_async(
                first, host_rendezvous, on_one_node(processes[first : first + size])
            )
            for first in ranks[::size]
        ]
        return list(ray.get(opened))


def _pause(seconds: float, coordinator: Any) -> bool:
    """Wait so many seconds; whether the job still goes on. If not, no rank gets an assignment."""
    end_of_pause = time.monotonic() + seconds
    while (
        not (over := bool(ray.get(coordinator.stop_requested.remote()))) and time.monotonic() < end_of_pause
    ):
        time.sleep(_POLL_SECONDS / 4)
    return not over


def _assign(assignment: RankAssignment) -> None:
    _ASSIGNED[:] = [assignment]


class KillRanks(UserCallback):  # type: ignore[misc]
    """Kills all ranks when one is lost: some may hang where Ray's own way does not reach."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:
        """Ray Train calls it before it ends the other ranks: here it is known which were lost."""
        with contextlib.suppress(ray.exceptions.RayError):
            end(ray.get(self._coordinator.lost.remote(list(worker_exceptions))))


class ReleaseReservation(WorkerGroupCallback):  # type: ignore[misc]
    """Releases what was reserved for Ray Train's workers, right before Ray Train asks for it.

    Ray Train takes seconds to come so far. Released earlier, the resources would go to others who
    wait for them.
    """

    def __init__(self, reserved: Sequence[PlacementGroup]) -> None:
        self._reserved = reserved

    def before_worker_group_start(self, worker_group_context: object) -> None:
        """Ray Train's controller calls it; at a later start there is nothing left to release."""
        release(self._reserved)


@dataclass(frozen=True)
class FinalLoop:
    """Ray Train's function for every worker. ``cpus``: CPUs of one worker."""

    coordinator: Any
    cpus: float

    def __call__(self) -> None:
        """Work until there is no task left.

        Raises:
            RuntimeError: the workers are to be started again, since a fault may pass (the
                coordinator knows it), or something unforeseen happened. Its message is left out,
                since it might quote a text.
        """
        if not _ASSIGNED:
            return
        assignment = _ASSIGNED[0]
        ray.get(self.coordinator.start.remote(assignment.group, assignment.rank, this_process()))
        try:
            _Rank(assignment, self.coordinator, self.cpus).work()
        except MilpRayError as error:
            ray.get(self.coordinator.fail.remote(assignment.group, error.to_plain()))
            if error.exit_code != 2:
                raise RuntimeError(exception_site(error)) from None
        except _AloneOutOfMemory:
            raise RuntimeError("out of memory") from None
        except Exception as error:
            raise RuntimeError(exception_site(error)) from None


class _AloneOutOfMemory(Exception):  # noqa: N818  (it names an outcome)
    """This rank ran out of memory, and the others of its group do not know."""


class _Rank:
    """One rank: its part of the base, and the tasks of its group."""

    def __init__(self, assignment: RankAssignment, coordinator: Any, cpus: float) -> None:
        self._assignment, self._coordinator = assignment, coordinator
        self._spec: FinalSpec = ray.get(coordinator.spec.remote())
        publish_for(self._spec.root, self._spec.session)
        rendezvous = None
        if assignment.size > 1:
            from milp_ray.model.parallel.rendezvous import Rendezvous

            heartbeat_timeout = self._spec.study.ray.group_timeout
            rendezvous = Rendezvous(assignment.address, assignment.rank, assignment.size, heartbeat_timeout)
        self._base = resident_base(self._spec.study, self._spec.root, cpus, rendezvous)
        self._group: Group = self._base.parallel.group
        self._asked = time.monotonic()

    def work(self) -> None:
        while (task := self._next()) is not None:
            reason, notes = "", []
            name, began = f"{task.alias}-{task.step}", time.monotonic()
            log_line(name, "begins")
            try:
                if task.step == "test":
                    self._test(task)
                else:
                    notes = self._train(task)
            except TrialFailed as failure:
                reason = failure.reason
                self._check_alone(failure)
            except _TaskStopped:
                log_line(name, "stopped")
                continue
            log_line(name, f"failed: {reason}" if reason else f"done in {time.monotonic() - began:.1f} s")
            if self._assignment.rank == 0:
                ray.get(self._coordinator.end.remote(self._assignment.group, reason, notes))

    def _next(self) -> FinalTask | None:
        """The group's next task, the same on all ranks."""
        while True:
            asked = (
                self._coordinator.next.remote(self._assignment.group) if self._assignment.rank == 0 else None
            )
            answer: FinalTask | str | None = ray.get(asked) if asked is not None else None
            plain = self._group.all_gather(asdict(answer) if isinstance(answer, FinalTask) else answer)[0]
            if not isinstance(plain, str):
                return None if plain is None else FinalTask(**plain)
            time.sleep(_POLL_SECONDS / 2)

    def _train(self, task: FinalTask) -> list[str]:
        """Train a memory, or the adapter that memories start from; notes for people.

        A training that was interrupted goes on from the state that it left.
        """
        from milp_ray.training.checkpoint import Checkpoints
        from milp_ray.trial.lifecycle import Trial, TrialStopped
        from milp_ray.trial.unit import SharedTrial

        spec, study, parallel, alias = self._spec, self._spec.study, self._base.parallel, task.alias
        placement = spec.placement(alias)
        checkpoints = Checkpoints(
            spec.layout.checkpoints(alias),
            self._group,
            replicated=not parallel.zero,
            made_with={"placement": placement.key, "parallelism": study.ray.parallelism, "seed": study.seed},
            every=study.final.checkpoint_steps,
            kept=self._kept,
        )
        user = ray.get(spec.users[alias])
        kind, start = (SharedTrial, None) if task.step == "share" else (Trial, self._shared_weights())
        with kind(
            self._base,
            user,
            placement,
            study,
            phase="final",
            seed=study.seed,
            checkpoints=checkpoints,
            start=start,
        ) as trial:
            try:
                self._run_steps(trial)
            except TrialStopped:
                raise _TaskStopped from None
            self._write_on_rank_0(lambda: trial.save(spec.layout.memory(alias)))
        checkpoints.clear()
        return checkpoints.notes

    def _shared_weights(self) -> dict[str, Tensor] | None:
        """The weights that memories start from; None where each starts afresh."""
        from milp_ray.memory.adapter_notes import check_note
        from milp_ray.memory.adapters import read_adapter

        if self._spec.shared is None:
            return None
        with local_copy(self._spec.layout.memory(POPULATION)) as folder:
            check_note(folder, placement=self._spec.shared.key, user=POPULATION)
            return read_adapter(folder)[1]

    def _kept(self, state: TrainingState) -> None:
        if self._assignment.rank == 0:
            ray.get(self._coordinator.kept.remote(self._assignment.group, state.stage, state.step))

    def _run_steps(self, trial: Trial) -> None:
        steps = trial.steps()
        for _ in steps:
            if self._assignment.rank == 0 and self._stop_requested():
                steps.close()  # keeps the state, and tells the other ranks
                raise _TaskStopped

    def _test(self, task: FinalTask) -> None:
        """Test a user once with no memory, the shared adapter, the own memory and another user's.

        Values that are not finite become null.
        """
        from milp_ray.data.prompts import Prompts
        from milp_ray.evaluation.compare import evaluation
        from milp_ray.memory.adapter_notes import check_note
        from milp_ray.model.base import loaded
        from milp_ray.model.limits import infeasible

        study, alias = self._spec.study, task.alias
        user = ray.get(self._spec.users[alias])
        prompts = Prompts(study.prompts)

        def scores() -> dict[str, float | None]:
            found: TestScores = self._checked(evaluation(self._base, user, prompts, study, user.test))
            return found.to_plain()

        with infeasible("out of memory in the test"):
            table = {"base": scores()}
            shared = POPULATION if self._spec.shared is not None else None
            for model, owner in (("shared", shared), ("own", alias), ("other", task.other)):
                if owner is not None:
                    placement = self._spec.placement(owner).key
                    with local_copy(self._spec.layout.memory(owner)) as memory:
                        check_note(memory, placement=placement, user=owner)
                        with loaded(self._base, memory):
                            table[model] = scores()
        found = {
            "samples": len(user.test),
            "placement": self._spec.placements[alias].key,
            "other": task.other,
            "models": table,
        }
        self._write_on_rank_0(lambda: write_json(self._spec.layout.scores(alias), found))

    def _checked(self, work: Generator[Any, None, Any]) -> Any:
        """Go through ``work``, unless the driver asks to stop; what it returns."""
        while True:
            if self._group.any(self._assignment.rank == 0 and self._stop_requested()):
                raise _TaskStopped
            try:
                next(work)
            except StopIteration as done:
                return done.value

    def _stop_requested(self) -> bool:
        """Whether the driver asks to stop; the coordinator is asked once a second."""
        now = time.monotonic()
        if now - self._asked < _POLL_SECONDS:
            return False
        self._asked = now
        return bool(ray.get(self._coordinator.stop_requested.remote()))

    def _write_on_rank_0(self, write: Callable[[], None]) -> None:
        """Have rank 0 write; if it cannot, all ranks know."""
        self._group.on_all_ranks(lambda: write() if self._assignment.rank == 0 else None)

    def _check_alone(self, failure: TrialFailed) -> None:
        """Tell that this rank alone ran out of memory: its group has to be made anew."""
        from milp_ray.model.limits import OutOfMemory

        if self._assignment.size > 1 and isinstance(failure, OutOfMemory):
            ray.get(self._coordinator.end.remote(self._assignment.group, failure.reason))
            raise _AloneOutOfMemory


class _TaskStopped(Exception):  # noqa: N818  (it names an outcome)
    """The driver asks to stop."""
