"""``full``: every parameter of the base is fine-tuned per user; the base is restored afterwards.

The other end from a LoRA: the most that can be trained, and the most to store. Texts, stages and
passes are those of every trained method; AdamW's settings are the study's, and the grid of learning
rates stands around a tenth of the study's, which is set for LoRA. Trained are fp32 copies, without
dropout; what is kept has the base's own number format. Responses of such users share no batch with
others'. The base's own tensors are kept aside and put back, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from milp_ray.data.records import UserSplit
from milp_ray.evaluation.baselines import register
from milp_ray.evaluation.baselines.contents import QueryAlone
from milp_ray.evaluation.baselines.interface import (
    Bench,
    Carried,
    Cost,
    Learned,
    Method,
    own_folder,
    remembered,
)
from milp_ray.evaluation.baselines.rates import Rate, choose_rate, keep_rate, kept_rate, rate_users
from milp_ray.evaluation.baselines.training import run_stages, user_stages, validation_loss
from milp_ray.model.full_weights import save_full, trainable

WEIGHTS = "weights.safetensors"
_OF_LORAS = 0.1  # the middle of the grid, as a share of the rate that the study has for LoRA


@register("full")
def full(bench: Bench) -> Method:
    """See the module."""
    return Method("full", bench, FullFineTuning(bench), QueryAlone(bench))


class FullFineTuning:
    """All parameters per user."""

    name = "full"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    @property
    def fitted(self) -> frozenset[Path]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return frozenset({own_folder(self._bench, self.name)})

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Choose the learning rate, once for all users."""
        return remembered(own_folder(self._bench, self.name), lambda: self._fit(background))

    def learn(self, user: UserSplit) -> Learned:
        """See :class:`~milp_ray.evaluation.baselines.interface.Source`."""
        return remembered(own_folder(self._bench, self.name, user.alias), lambda: self._learn(user))

    def carried(self, user: UserSplit) -> Carried:
        """The user's parameters."""
        return Carried(weights=self._file(user))

    def _file(self, user: UserSplit) -> Path:
        return own_folder(self._bench, self.name, user.alias) / WEIGHTS

    def _fit(self, background: Sequence[UserSplit]) -> Learned:
        users = rate_users(self._bench, background)
        if not users:
            return Learned(note="each user's own validation samples choose the learning rate")
        rate = self._choose(users, f"the loss of {len(users)} background users' validation samples")
        keep_rate(own_folder(self._bench, self.name), rate)
        return Learned(Cost(trained_tokens=rate.tokens), rate.note)

    def _choose(self, users: Sequence[UserSplit], whom: str) -> Rate:
        bench = self._bench

        def attempt(rate: float) -> tuple[list[float], int]:
            found, tokens = [], 0
            for user in users:
                stages = user_stages(bench, user, held_back=True)
                optimizer = bench.optimizer.model_copy(update={"learning_rate": rate})
                with trainable(bench.base) as whole:
                    tokens += run_stages(bench, stages, optimizer, bench.seed_of(user.alias), trained=whole)
                    found.append(validation_loss(bench, user.validation))
            return found, tokens

        center = _OF_LORAS * bench.optimizer.learning_rate
        return choose_rate(bench, center, attempt if users else None, whom)

    def _learn(self, user: UserSplit) -> Learned:
        bench, file = self._bench, self._file(user)
        rate, spent = kept_rate(own_folder(bench, self.name)), 0
        if rate is None:
            usable = [user] if user.validation and user.search_history else []
            rate = self._choose(usable, "the loss on the user's own validation samples")
            spent = rate.tokens
        stages = user_stages(bench, user)
        optimizer = bench.optimizer.model_copy(update={"learning_rate": rate.value})
        with trainable(bench.base) as whole:
            params = sum(parameter.numel() for parameter in whole.parameters())
            tokens = run_stages(bench, stages, optimizer, bench.seed_of(user.alias), trained=whole)
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = save_full(bench.base, file)
        trained = ", ".join(f"{one.name}: {len(one.examples)} texts, {one.epochs} passes" for one in stages)
        return Learned(Cost(0.0, tokens + spent, params, kept), f"{trained}; every parameter; {rate.note}")
