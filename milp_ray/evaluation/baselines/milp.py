"""``milp``, ``milp_inject``, ``milp_instruct``: this project's memory, and each stage alone.

Placements come from a search (``Bench.placements``); a memory that a finished run trained
(``Bench.memories``) is taken as it is by ``milp``. Where only placements are given, memories are
trained here as the final job trains them, with the learning-rate choice of every trained method.
With one rate in ``options.rate_factors`` and the run's seed they are the final job's, bit for bit.

A background user has no placement of their own: the learning rate is chosen with the given
placement that has the middle number of parameters.

Where users are divided (``data.split.regime: by_user``) there is one placement, stage 2 is trained
on background users' samples, and a user's stage 1 starts from there, as in the final job.
``milp_instruct`` is that shared adapter alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from milp_ray.data.records import UserSplit
from milp_ray.errors import RunFolderError
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import Bench, Carried, Cost, Learned, Method, Source, bytes_in
from milp_ray.evaluation.baselines.sources import TaskLora, UserLora
from milp_ray.evaluation.baselines.training import BOTH
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.adapter_notes import noted_placement
from milp_ray.memory.placement import Placement


@register("milp")
def milp(bench: Bench) -> Method:
    """See the module."""
    return Method("milp", bench, memories(bench), QueryAlone(bench))


@register("milp_inject")
def milp_inject(bench: Bench) -> Method:
    """Stage 1 alone."""
    return _with_stages(bench, "milp_inject", ("inject",))


@register("milp_instruct")
def milp_instruct(bench: Bench) -> Method:
    """Stage 2 alone."""
    if bench.study.data.split.regime == "by_user":
        return Method("milp_instruct", bench, _shared(bench), QueryAlone(bench))
    return _with_stages(bench, "milp_instruct", ("instruct",))


def memories(bench: Bench) -> Source:
    """Users' memories: a finished run's, or trained here."""
    if bench.memories:
        return Memories(bench)
    after = _shared(bench) if bench.study.data.split.regime == "by_user" else None
    return UserLora(bench, "milp", placements(bench), BOTH, after=after)


def placements(bench: Bench) -> Callable[[UserSplit | None], Placement]:
    """Each user's placement, and for background users one of middle size."""
    params = bench.base.architecture.trainable_params

    def of(user: UserSplit | None) -> Placement:
        known = _known(bench)
        if user is None and known:
            by_size = sorted(known.values(), key=lambda placement: (params(placement), placement.key))
            return by_size[len(by_size) // 2]
        if user is None or not known.get(user.alias):
            raise RunFolderError(
                f"no placement of {'any user' if user is None else user.alias} is given",
                expected="a search's choice for every measured user",
                remedy="search first (milp-ray search), or leave the methods with milp out",
            )
        return known[user.alias]

    return of


class Memories:
    """The adapters of a finished run, as they are."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return frozenset()

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Nothing: the run has done it."""
        return Learned(note="trained by a finished run")

    def learn(self, user: UserSplit) -> Learned:
        """Nothing; says what is there."""
        [folder] = self.carried(user).adapters
        key = noted_placement(folder)
        placement = Placement.from_key(key) if key else Placement()
        return Learned(
            Cost(
                trainable_params=self._bench.base.architecture.trainable_params(placement),
                adapter_bytes=bytes_in(folder),
            ),
            f"memory of a finished run; placement {key or 'unknown'}; the run's own schedule and rate",
        )

    def carried(self, user: UserSplit) -> Carried:
        """The user's memory.

        Raises:
            RunFolderError: the run has none.
        """
        folder = self._bench.memories.get(user.alias)
        if folder is None or not (folder / WEIGHTS).exists():
            raise RunFolderError(
                f"the run has no memory of {user.alias}",
                expected="a final memory of every measured user",
                remedy="finish the run: milp-ray final RUN",
            )
        return Carried((folder,))


def _known(bench: Bench) -> dict[str, Placement]:
    noted = {alias: noted_placement(folder) for alias, folder in bench.memories.items()}
    found = {alias: Placement.from_key(key) for alias, key in noted.items() if key}
    return {**found, **{alias: placement for alias, placement in bench.placements.items() if placement}}


def _shared(bench: Bench) -> TaskLora:
    return TaskLora(bench, lambda: placements(bench)(None))


def _with_stages(bench: Bench, name: str, parts: Collection[str]) -> Method:
    return Method(name, bench, UserLora(bench, name, placements(bench), parts), QueryAlone(bench))
