"""A study for tiny models, and what a trial must leave as it was."""

from __future__ import annotations

import torch

from milp_ray.config.models import (
    DataSettings,
    MemorySettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    Study,
    TrialSettings,
)
from milp_ray.data.records import UserSplit
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.trial.lifecycle import Trial
from milp_ray.trial.measurement import Measurement

STUDY = Study(
    name="t",
    model=ModelSettings(path="models/tiny"),
    data=DataSettings(path="x"),
    prompts=PromptSettings(max_length=64),
    memory=MemorySettings(ranks=(2, 4)),
    optimizer=OptimizerSettings(learning_rate=1e-2, batch_size=4),
    trial=TrialSettings(epochs=2, max_new_tokens=6, eval_batch_size=2),
)
PLACED = Placement.from_key("1:2,3:4,11:2")


def changed(**sections: object) -> Study:
    return STUDY.model_copy(update=sections)


def numbers(measured: Measurement | None) -> tuple[float, ...]:
    assert measured is not None
    return (measured.loss, measured.scores["rouge_l"], measured.trainable_params, measured.train_tokens)


def run(
    base: BaseModel,
    user: UserSplit,
    placement: Placement = PLACED,
    study: Study = STUDY,
    seed: int = 5,
) -> tuple[float, ...]:
    with Trial(base, user, placement, study, seed=seed) as trial:
        return numbers(trial.run())


class Snapshot:
    """Everything of a base that a trial might change."""

    def __init__(self, base: BaseModel) -> None:
        self.model = base.model
        self.modules = self._modules()
        self.tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        self.attributes = set(vars(base.model))
        self.hooks = self._hooks()

    def _modules(self) -> dict[str, tuple[int, type, bool]]:
        return {n: (id(m), type(m), m.training) for n, m in self.model.named_modules()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    def _hooks(self) -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in self.model.modules()
        )

    def check(self) -> None:
        assert self._modules() == self.modules
        assert self._tensors().keys() == self.tensors.keys()
        assert all(torch.equal(tensor, self.tensors[name]) for name, tensor in self._tensors().items())
        assert set(vars(self.model)) == self.attributes
        assert self._hooks() == self.hooks
        assert not any(p.requires_grad or p.grad is not None for p in self.model.parameters())
