"""A search unit: who is trained and measured in a trial of a search.

That is one user, as in the paper, or users who stand for a whole population. For a population a
trial injects one placement for each of these users in turn, and measures their mean. Where users
are divided (``data.split.regime: by_user``), it first trains stage 2 once on the train users'
samples, if ``trial.stages`` has it, and each user's stage 1 starts from that adapter
(docs/decisions.md, 16). Whom a run searches is :mod:`milp_ray.study.units`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from torch import Tensor

from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.training.loop import Progress
from milp_ray.trial.lifecycle import Trial
from milp_ray.trial.measurement import Measurement
from milp_ray.trial.records import TrialCost
from milp_ray.trial.stages import Stage, instruct_stage


@dataclass(frozen=True, slots=True)
class SearchUnit:
    """Who is trained and measured in a trial.

    Attributes:
        alias: of the user, or of the population.
        users: whom a trial injects for, each on its own.
        shared: samples of the train users for a stage 2 before that, as a user without a history;
            None where there are none.
    """

    alias: str
    users: tuple[UserSplit, ...]
    shared: UserSplit | None = None

    @classmethod
    def of_user(cls, user: UserSplit) -> SearchUnit:
        """One user alone."""
        return cls(user.alias, (user,))

    @property
    def is_user(self) -> bool:
        """Whether it is one user alone."""
        return [user.alias for user in self.users] == [self.alias]

    def example(self) -> UserSplit:
        """One user with texts for every stage of a trial, for a first step that is tried."""
        user = self.users[0]
        return user if user.train or self.shared is None else replace(user, train=self.shared.train[:1])

    def trial(self, base: BaseModel, placement: Placement, study: Study, *, seed: int) -> SearchTrial:
        """A trial of a placement; arguments as of :class:`~milp_ray.trial.lifecycle.Trial`."""
        if self.is_user:
            return Trial(base, self.users[0], placement, study, phase="search", seed=seed)
        return PopulationTrial(base, self, placement, study, seed=seed)


class SharedTrial(Trial):
    """Stage 2 on many users' samples; nothing is injected, and nothing measured.

    Args:
        user: with these users' samples, and no history.
    """

    @property
    def _is_measured(self) -> bool:
        return False

    def _stages(self) -> Iterator[Stage]:
        return instruct_stage(self.base, self.user, self._prompts, self.study, self.phase)


class PopulationTrial:
    """One placement for several users on a resident base, one after the other.

    It is iterated over, saved nowhere, and closed as a :class:`~milp_ray.trial.lifecycle.Trial`. A
    user's part of it is a trial of that user: the same numbers, whoever else is measured.

    Args:
        base: without another adapter from the first step to :meth:`close`.
        unit: whom it injects for.
        placement: of the LoRAs; the empty one trains nothing and measures the base itself.
        study: everything else.
        seed: of each user's training.

    Attributes:
        result: the mean over users of each value, once all are measured; costs are added up.
        by_user: what each user measured, by alias.
    """

    keeps_adapter = False

    def __init__(
        self, base: BaseModel, unit: SearchUnit, placement: Placement, study: Study, *, seed: int
    ) -> None:
        self.base, self.unit, self.placement, self.study, self.seed = base, unit, placement, study, seed
        self.result: Measurement | None = None
        self.by_user: dict[str, Measurement] = {}
        self._ended: list[TrialCost] = []
        self._trial: Trial | None = None

    def __repr__(self) -> str:
        return f"PopulationTrial({len(self.unit.users)} users, {self.placement.key!r}, seed={self.seed})"

    def steps(self) -> Generator[Progress, None, None]:
        """Train and measure, user by user; see :meth:`Trial.steps`, of which it raises the errors.

        Raises:
            TrialFailed: a user's part failed; the reason names the alias.
        """
        start = yield from self._share()
        for user in self.unit.users:
            trial = Trial(
                self.base, user, self.placement, self.study, phase="search", seed=self.seed, start=start
            )
            yield from self._run(trial)
            assert trial.result is not None
            self.by_user[user.alias] = trial.result
            self._end(trial)
        self.result = _mean(self.by_user, self.cost())

    def save(self, folder: Path) -> None:
        """Nothing: no adapter of it is anybody's.

        Raises:
            RuntimeError: always; look at :attr:`keeps_adapter` first.
        """
        raise RuntimeError("nothing to save: the trial of a population has no adapter of its own")

    def cost(self) -> TrialCost:
        """What all users' parts took so far, on this rank."""
        running = [self._trial.cost()] if self._trial is not None else []
        return _sum([*self._ended, *running])

    def close(self) -> None:
        """Give the base back exactly as it was. May be called at any time, and more than once."""
        if self._trial is not None:
            self._trial.close()

    def _share(self) -> Generator[Progress, None, Mapping[str, Tensor] | None]:
        """Train the shared stage 2; the weights that users start from, None for fresh ones."""
        shared = self.unit.shared
        if shared is None or not self.placement:
            return None
        trial = SharedTrial(self.base, shared, self.placement, self.study, phase="search", seed=self.seed)
        yield from self._run(trial)
        weights = trial.adapter()
        self._end(trial)
        return weights

    def _run(self, trial: Trial) -> Generator[Progress, None, None]:
        self._trial = trial
        with _naming(trial.user.alias):
            yield from trial.steps()

    def _end(self, trial: Trial) -> None:
        self._ended.append(trial.cost())
        self._trial = None
        trial.close()


SearchTrial = Trial | PopulationTrial


def shared_user(alias: str, train: Sequence[UserSplit], validation: Sequence[UserSplit]) -> UserSplit:
    """Users' samples as those of one user without a history, for a shared stage 2.

    Args:
        alias: of the population.
        train, validation: users divided by user, whose samples are all in that part.
    """
    return UserSplit(
        alias,
        history=(),
        train=tuple(sample for user in train for sample in user.train),
        validation=tuple(sample for user in validation for sample in user.validation),
        test=(),
        search_cut=0,
        final_cut=0,
    )


@contextlib.contextmanager
def _naming(alias: str) -> Iterator[None]:
    """Say in a failure's reason whose part failed."""
    try:
        yield
    except TrialFailed as failure:
        failure.reason = f"{alias}: {failure.reason}"
        raise


def _mean(by_user: Mapping[str, Measurement], cost: TrialCost) -> Measurement:
    found = list(by_user.values())
    scores = {name: fmean(one.scores[name] for one in found) for name in found[0].scores}
    values = {alias: {"loss": one.loss, **one.scores} for alias, one in by_user.items()}
    return Measurement(fmean(one.loss for one in found), scores, found[0].trainable_params, cost, values)


def _sum(costs: Sequence[TrialCost]) -> TrialCost:
    """Seconds and tokens added up; of memory the largest."""
    return replace(
        TrialCost(),
        inject_seconds=sum(cost.inject_seconds for cost in costs),
        instruct_seconds=sum(cost.instruct_seconds for cost in costs),
        eval_seconds=sum(cost.eval_seconds for cost in costs),
        train_tokens=sum(cost.train_tokens for cost in costs),
        gpu_memory=max((cost.gpu_memory for cost in costs), default=0),
    )
