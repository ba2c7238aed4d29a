"""The life of a trial: attach an adapter to the base, train, measure, and give the base back.

Covers both phases. *search*: stage 1 on the history before the first validation sample, stage 2 on
the train samples where the study asks for it, measured on the validation samples. *final*: both
stages for the chosen placement, tested elsewhere (:mod:`milp_ray.evaluation.compare`). Needs no
Ray: in a notebook, ``with Trial(...) as trial: measurement = trial.run()``. Which placement to try
is decided by :mod:`milp_ray.search`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor

from milp_ray.config.models import Study
from milp_ray.data.prompt_card import prompt_card
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import UserSplit
from milp_ray.memory.adapters import Attached, lora_config, save_adapter
from milp_ray.memory.export import portable_name
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.model.limits import infeasible
from milp_ray.model.pretrained import check_fits
from milp_ray.storage import is_url
from milp_ray.training.checkpoint import Checkpoints
from milp_ray.training.loop import IsolatedRNG, Progress
from milp_ray.trial.measurement import Measurement, measure_user, response_scores
from milp_ray.trial.records import TrialCost
from milp_ray.trial.stages import Phase, Stage, StageClock, StagedTraining, training_stages

Result = TypeVar("Result")


class TrialStopped(Exception):  # noqa: N818  (it names an outcome)
    """Another rank dropped the trial half way."""


class Trial:
    """One placement for one user on a resident base.

    Where several ranks share the base, each makes the same trial and iterates over its steps.
    Before every step they agree to go on, so that one that drops its iterator ends it for all.

    A trial depends neither on earlier trials nor on torch's global random numbers, and changes
    neither: the same arguments give the same numbers (on a CPU, with the same number of threads, to
    the last bit).

    Example:
        >>> from milp_ray.data.records import Sample
        >>> from milp_ray.model.base import load_base
        >>> study = Study.model_validate(
        ...     {
        ...         "name": "example",
        ...         "model": {"path": str(tiny_model), "device": "cpu"},
        ...         "data": {"path": "users.jsonl"},
        ...         "prompts": {"max_length": 48},
        ...         "trial": {"epochs": 1, "max_new_tokens": 4},
        ...     }
        ... )
        >>> base = load_base(study.model)
        >>> asked = (Sample("What do you drink?", "Tea.", n_hist=1),)
        >>> user = UserSplit("u-1", ("I like tea.",), (), asked, (), search_cut=1, final_cut=1)
        >>> with Trial(base, user, Placement(((0, 2),)), study, seed=0) as trial:
        ...     measured = trial.run()
        >>> measured.loss > 0, measured.trainable_params == trial.trainable_params
        (True, True)
        >>> base.attached is None  # the base is as it was
        True

    Args:
        base: without another adapter from the first step to :meth:`close`.
        user: whose memory is trained.
        placement: of the LoRAs; the empty one trains nothing and measures the base itself.
        study: everything else.
        phase: see the module.
        seed: of the LoRA weights, the order of texts and dropout.
        checkpoints: where the training's state is written, and resumed from; None: nowhere.
        start: weights of an adapter of this placement that the training starts from
            (:meth:`adapter`); None: fresh ones.

    Raises:
        SpaceError: the placement does not fit the model.
        ModelError: the study's text lengths do not fit the model.
    """

    keeps_adapter = True

    def __init__(
        self,
        base: BaseModel,
        user: UserSplit,
        placement: Placement,
        study: Study,
        *,
        phase: Phase = "search",
        seed: int,
        checkpoints: Checkpoints | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_fits(base.architecture, study)
        self.base = base
        self.user = user
        self.placement = placement
        self.study = study
        self.phase = phase
        self.seed = seed % 2**62
        self.trainable_params = base.architecture.trainable_params(placement)
        self.result: Measurement | None = None
        memory = study.memory
        self._config = (
            lora_config(placement, base.architecture, memory.scaling, memory.dropout) if placement else None
        )
        self._prompts = Prompts(study.prompts)
        self._checkpoints = checkpoints
        self._start = start
        self._training: StagedTraining | None = None
        self._clock = StageClock()
        self._state: Literal["new", "running", "done", "closed"] = "new"
        self._holds_base = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Trial({self.user.alias}, {self.placement.key!r}, phase={self.phase}, seed={self.seed})"

    def run(self) -> Measurement | None:
        """Run all steps; returns the measurement of a search trial, None of a final one.

        Raises:
            TrialFailed: see :meth:`steps`.
        """
        for _ in self.steps():
            pass
        return self.result

    def steps(self) -> Generator[Progress, None, None]:
        """Train and measure; called once per trial.

        It yields after every optimizer step, every measured batch and every few tokens of a
        response.

        The adapter stays on the base after the last step, for :meth:`save` or a test, until
        :meth:`close`. After a failure, or when the iterator is dropped half way, the base is given
        back at once.

        Raises:
            TrialFailed: the loss or a gradient was not finite, memory ran out, or there is nothing
                to train or measure on. If memory runs out, the other ranks wait in vain.
            TrialStopped: another rank dropped the trial.
        """
        if self._state != "new":
            raise RuntimeError("a trial runs once: make a new one")
        self._state = "running"
        try:
            with self._failures():
                self._attach()
                yield from self._timed(self._train())
                if self._is_measured:
                    yield from self._measure()
            self._agree()
            self._state = "done"
        finally:
            if self._state != "done":
                self.close()

    def adapter(self) -> dict[str, Tensor]:
        """The weights of the trained adapter, under PEFT's names, on the CPU.

        Raises:
            RuntimeError: the trial has not finished, is closed, or has no adapter.
        """
        return self._finished().state()

    def save(self, folder: Path) -> None:
        """Write the trained adapter to ``folder`` in PEFT's layout, whole or not at all.

        A final adapter gets its exact prompt beside it.

        Raises:
            StorageError: the folder cannot be written.
            RuntimeError: the trial has not finished, is closed, or has no adapter.
        """
        attached = self._finished()
        card = prompt_card(self.base.tokenizer, self._prompts) if self.phase == "final" else {}
        base = self.study.model.path
        if is_url(self.study.storage.path):  # where no path of this machine means anything
            base = portable_name(base)
        save_adapter(
            attached,
            folder,
            base,
            self.study.model.revision,
            placement=self.placement.key,
            user=self.user.alias,
            beside=card,
        )

    def checkpoint(self) -> None:
        """Write a checkpoint if training is under way; on all ranks after the same step.

        Raises:
            StorageError: it cannot be written; earlier ones are intact.
        """
        if self._training is not None:
            self._training.checkpoint()

    def cost(self) -> TrialCost:
        """What the trial took so far, on this rank."""
        seconds = self._clock.seconds
        return TrialCost(
            seconds["inject"],
            seconds["instruct"],
            seconds["eval"],
            self._training.tokens if self._training is not None else 0,
            torch.cuda.max_memory_allocated(self.base.device) if self.base.device.type == "cuda" else 0,
        )

    def close(self) -> None:
        """Give the base back exactly as it was. May be called at any time, and more than once."""
        self._state = "closed"
        if self._training is not None:
            self._training.close()
        if self._holds_base:
            self._holds_base = False
            self.base.detach()

    @property
    def _is_measured(self) -> bool:
        return self.phase == "search"

    def _stages(self) -> Iterator[Stage]:
        return training_stages(self.base, self.user, self._prompts, self.study, self.phase)

    def _finished(self) -> Attached:
        if self._state != "done" or self.base.attached is None or not self._holds_base:
            raise RuntimeError("nothing to save: only a finished trial of a memory, before close, has it")
        return self.base.attached

    def _attach(self) -> None:
        self._rng = IsolatedRNG(self.seed, self.base.device)
        if self.base.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.base.device)
        if self.base.attached is not None:
            raise RuntimeError("another memory is on the base: close its trial first")
        if self._config is not None:
            with self._rng.active():
                attached = self.base.attach(self._config)
            self._holds_base = True
            if self._start is not None:
                attached.load(self._start)
            if rank := self.base.parallel.group.rank:  # the same weights, but dropout of its own
                self._rng = IsolatedRNG(self.seed + rank, self.base.device)

    def _train(self) -> Generator[Progress, None, None]:
        if self._config is None:
            return
        own = self.study.final.optimizer if self.phase == "final" else None
        self._training = StagedTraining(
            self.base,
            self._stages(),
            own or self.study.optimizer,
            seed=self.seed,
            rng=self._rng,
            dropout=bool(self._config.lora_dropout),
            clock=self._clock,
            checkpoints=self._checkpoints,
        )
        yield from self._training.steps()

    def _measure(self) -> Generator[Progress, None, None]:
        self._clock.part = "eval"
        loss, responses = yield from self._timed(
            measure_user(self.base, self.user, self._prompts, self.study)
        )
        if self.base.parallel.group.rank:  # rank 0 computes the metrics
            responses = []
        scores = response_scores(self.user, responses, self.study.data.text_rules)
        self.result = Measurement(loss, scores, self.trainable_params, self.cost())

    def _timed(self, work: Generator[Progress, None, Result]) -> Generator[Progress, None, Result]:
        """``work``, with the time spent in it (and not in its consumer) added to the clock.

        Where it is dropped, the other ranks are told, and a checkpoint is written before ``work``
        ends.
        """
        while True:
            self._agree()
            began = time.perf_counter()
            try:
                progress = next(work)
            except StopIteration as end:
                result: Result = end.value
                return result
            finally:
                self._clock.add(time.perf_counter() - began)
            try:
                yield progress
            except GeneratorExit:
                self.base.parallel.group.any(True)
                self.checkpoint()
                raise

    def _agree(self) -> None:
        """End the trial where another rank has dropped it."""
        if self.base.parallel.group.any(False):
            self.checkpoint()
            raise TrialStopped

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        """Running out of memory becomes a failed trial, once what held the memory is freed."""
        size, key = self.trainable_params, self.placement.key or "none"
        return infeasible(
            f"out of memory with {size} trainable parameters (placement {key})", release=self.close
        )
