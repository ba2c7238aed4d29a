"""What is trained: nothing, an adapter per user, one for all users, or both at once.

Each learns into folders of its own below ``Bench.folder``, so that methods with the same source
share what was learned: ``oppu`` takes the adapter of ``task_lora``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from milp_ray.data.records import UserSplit
from milp_ray.evaluation.baselines.interface import (
    Bench,
    Carried,
    Cost,
    Learned,
    bytes_in,
    common_folder,
    own_folder,
    remembered,
)
from milp_ray.evaluation.baselines.rates import Rate, choose_rate, keep_rate, kept_rate, rate_users
from milp_ray.evaluation.baselines.training import (
    BOTH,
    background_samples,
    background_stage,
    everywhere,
    save_lora,
    trained_lora,
    user_stages,
    validation_loss,
)
from milp_ray.memory.adapters import read_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model.row_adapters import LoraWeights, load_lora

ADAPTER, HELD_BACK = "adapter", "held_back"


class _OfAll(TypedDict, total=False):
    """Arguments of :func:`~milp_ray.evaluation.baselines.training.trained_lora`."""

    below: LoraWeights
    start: Mapping[str, Tensor]


class Nothing:
    """No training at all."""

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return frozenset()

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Nothing."""
        return Learned()

    def learn(self, user: UserSplit) -> Learned:
        """Nothing."""
        return Learned()

    def carried(self, user: UserSplit) -> Carried:
        """Nothing."""
        return Carried()


class TaskLora:
    """One adapter for everybody, trained on the samples of background users.

    It sees no histories: it is to learn the task, and no person. A second one has not seen the
    background users' validation samples: what is trained on top of it chooses its learning rate by
    these.

    Args:
        bench: see there.
        placement: says where its LoRAs are; None: in every layer, whatever a search chose.
    """

    def __init__(self, bench: Bench, placement: Callable[[], Placement] | None = None) -> None:
        self._bench = bench
        self._placement = placement or (lambda: everywhere(bench))
        self._folder = common_folder(bench, "task_lora") if placement is None else own_folder(bench, "shared")

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return frozenset({self._folder})

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return remembered(self._folder, lambda: self._fit(background))

    def learn(self, user: UserSplit) -> Learned:
        """Nothing: a user has the adapter of all."""
        return Learned(note="nothing of the user's own is trained")

    def carried(self, user: UserSplit) -> Carried:
        """The adapter of all."""
        return Carried((self._folder / ADAPTER,))

    def adapter(self, *, held_back: bool = False) -> Path:
        """The folder of the adapter of all; ``held_back``: of that without validation samples."""
        found = self._folder / HELD_BACK
        return found if held_back and found.exists() else self._folder / ADAPTER

    def _fit(self, background: Sequence[UserSplit]) -> Learned:
        bench, placement = self._bench, self._placement()
        samples, chosen_from, measured = background_samples(bench, background)

        def attempt(rate: float) -> tuple[list[float], int]:
            stages = [background_stage(bench, chosen_from)]
            with trained_lora(bench, placement, stages, rate, bench.seed) as tokens:
                save_lora(bench, self._held_back(rate), placement, "all")
                return [validation_loss(bench, [sample]) for sample in measured], tokens

        whom = f"the loss on {len(measured)} validation samples of background users"
        able = attempt if measured and chosen_from else None
        rate = choose_rate(bench, bench.optimizer.learning_rate, able, whom)
        self._keep_held_back(rate.value)
        stages = [background_stage(bench, samples)]
        with trained_lora(bench, placement, stages, rate.value, bench.seed) as tokens:
            save_lora(bench, self._folder / ADAPTER, placement, "all")
        return Learned(
            Cost(
                trained_tokens=tokens + rate.tokens,
                trainable_params=bench.base.architecture.trainable_params(placement),
                adapter_bytes=bytes_in(self._folder / ADAPTER),
            ),
            f"{len(samples)} samples of {len(background)} background users, {stages[0].epochs} passes; "
            f"placement {placement.key}; {rate.note}",
        )

    def _held_back(self, rate: float) -> Path:
        return self._folder / f"{HELD_BACK}-{rate:g}"

    def _keep_held_back(self, rate: float) -> None:
        """Of the twins that rates were tried with, that of the chosen rate stays, if any."""
        shutil.rmtree(self._folder / HELD_BACK, ignore_errors=True)
        if (kept := self._held_back(rate)).exists():
            kept.rename(self._folder / HELD_BACK)
        for other in self._folder.glob(f"{HELD_BACK}-*"):
            shutil.rmtree(other)


class UserLora:
    """An adapter per user.

    Args:
        bench: see there.
        name: of the folder in which it learns.
        placement_of: a user's LoRAs; of None, those of background users, who have none.
        parts: the stages that are trained.
        on: an adapter for everybody that is on the base, frozen, in training and afterwards.
        after: an adapter for everybody of the same placement, from whose weights the user's start.
    """

    def __init__(
        self,
        bench: Bench,
        name: str,
        placement_of: Callable[[UserSplit | None], Placement],
        parts: Collection[str] = BOTH,
        on: TaskLora | None = None,
        after: TaskLora | None = None,
    ) -> None:
        self._bench, self._name, self._placement_of = bench, name, placement_of
        self._parts, self._on, self._after = parts, on, after

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return frozenset({own_folder(self._bench, self._name)}).union(*(one.fitted for one in self._beneath))

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Choose the learning rate, once for all users."""
        shared = next(iter(self._beneath), None)
        below = shared.fit(background) if shared is not None else None
        own = remembered(own_folder(self._bench, self._name), lambda: self._fit(background))
        if below is None:
            return own
        return Learned(below.cost + own.cost, f"{below.note}; then per user: {own.note}")

    def learn(self, user: UserSplit) -> Learned:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        folder = own_folder(self._bench, self._name, user.alias)
        return remembered(folder, lambda: self._learn(user))

    def carried(self, user: UserSplit) -> Carried:
        """The user's adapter, on top of that of all if there is one."""
        below = self._on.carried(user).adapters if self._on is not None else ()
        return Carried((*below, own_folder(self._bench, self._name, user.alias) / ADAPTER))

    @property
    def _beneath(self) -> list[TaskLora]:
        return [one for one in (self._on, self._after) if one is not None]

    def _fit(self, background: Sequence[UserSplit]) -> Learned:
        users = rate_users(self._bench, background)
        if not users:
            return Learned(note="each user's own validation samples choose the learning rate")
        placement = self._placement_of(None)
        rate = self._choose(
            users, placement, f"the loss of {len(users)} background users' validation samples"
        )
        keep_rate(own_folder(self._bench, self._name), rate)
        return Learned(Cost(trained_tokens=rate.tokens), rate.note)

    def _choose(self, users: Sequence[UserSplit], placement: Placement, whom: str) -> Rate:
        bench, base = self._bench, self._of_all(held_back=True)

        def attempt(rate: float) -> tuple[list[float], int]:
            found, trained = [], 0
            for user in users:
                stages = user_stages(bench, user, self._parts, held_back=True)
                with trained_lora(
                    bench, placement, stages, rate, bench.seed_of(user.alias), **base
                ) as tokens:
                    found.append(validation_loss(bench, user.validation))
                    trained += tokens
            return found, trained

        return choose_rate(bench, bench.optimizer.learning_rate, attempt if users else None, whom)

    def _learn(self, user: UserSplit) -> Learned:
        bench, placement, folder = (
            self._bench,
            self._placement_of(user),
            own_folder(self._bench, self._name, user.alias),
        )
        rate, spent = kept_rate(own_folder(bench, self._name)), 0
        if rate is None:
            usable = [user] if user.validation and user.search_history else []
            rate = self._choose(usable, placement, "the loss on the user's own validation samples")
            spent = rate.tokens
        stages = user_stages(bench, user, self._parts)
        seed = bench.seed_of(user.alias)
        with trained_lora(bench, placement, stages, rate.value, seed, **self._of_all()) as tokens:
            save_lora(bench, folder / ADAPTER, placement, user.alias)
        trained = ", ".join(f"{one.name}: {len(one.examples)} texts, {one.epochs} passes" for one in stages)
        return Learned(
            Cost(
                trained_tokens=tokens + spent,
                trainable_params=bench.base.architecture.trainable_params(placement),
                adapter_bytes=bytes_in(folder / ADAPTER),
            ),
            f"{trained}; placement {placement.key}; {rate.note}",
        )

    def _of_all(self, *, held_back: bool = False) -> _OfAll:
        """What of everybody's a training has: an adapter beneath, or weights to start from."""
        found = _OfAll()
        if self._on is not None:
            found["below"] = load_lora(self._bench.base, self._on.adapter(held_back=held_back))
        if self._after is not None:
            found["start"] = read_adapter(self._after.adapter(held_back=held_back))[1]
        return found
