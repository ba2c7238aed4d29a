"""One trial: inject a placement for one user, then measure it; the base is given back as it was.

Covers both phases. *search*: stage 1 on the history before the first validation sample, stage 2 on the train
samples where the study asks for it, measured on the validation samples. *final*: both stages for the chosen
placement, tested elsewhere (:mod:`milp_ray.evaluation.compare`). Needs no Ray: run it in a notebook with
``with Trial(...) as trial: measurement = trial.run()``. Which placement to try is the search's business.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch

from milp_ray.config.models import OptimizerSettings, Study
from milp_ray.data.prompt_card import prompt_card
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample, UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.evaluation.measure import LossSum, encode_prompts, measure_loss, measure_responses
from milp_ray.evaluation.metrics import RESPONSE_METRICS
from milp_ray.memory.adapters import lora_config, save_adapter
from milp_ray.memory.export import portable_name
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import Example, history_examples, sample_examples
from milp_ray.model.limits import infeasible
from milp_ray.model.pretrained import check_fits
from milp_ray.storage import is_url
from milp_ray.training.checkpoint import Checkpoints, TrainingState
from milp_ray.training.loop import IsolatedRNG, Progress, StageTrainer
from milp_ray.trial.records import TrialCost

Phase = Literal["search", "final"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial found.

    Attributes:
        loss: validation loss, nats per response token.
        scores: of greedy responses, by name (``RESPONSE_METRICS``); NaN when the study's objectives
            name none of these, as nothing is generated then, and on other ranks than 0.
        trainable_params: exact number of trained parameters.
        cost: what it took.
    """

    loss: float
    scores: Mapping[str, float]
    trainable_params: int
    cost: TrialCost

    @property
    def values(self) -> dict[str, float]:
        """All that a study may have as an objective, by name."""
        return {"loss": self.loss, **self.scores, "trainable_params": self.trainable_params}

    @property
    def train_seconds(self) -> float:
        """Spent in both stages."""
        return self.cost.train_seconds

    @property
    def eval_seconds(self) -> float:
        """Spent measuring."""
        return self.cost.eval_seconds

    @property
    def train_tokens(self) -> int:
        """Real (unpadded) tokens that were trained on, every epoch counted."""
        return self.cost.train_tokens


@dataclass(frozen=True, slots=True)
class _Stage:
    name: Literal["inject", "instruct"]
    examples: list[Example]
    epochs: int


_Clock = Literal["inject", "instruct", "eval"]


class TrialStopped(Exception):  # noqa: N818  (it names an outcome)
    """Another rank dropped the trial half way."""


class Trial:
    """One placement for one user on a resident base.

    Where several ranks share the base, each makes the same trial and goes through its steps; before every
    step they agree to go on, so that one who drops its iterator ends the trial for all.

    Nothing depends on earlier trials or on torch's global random numbers, and neither is touched: the same
    arguments give the same numbers (on a CPU, with the same number of threads, to the last bit).

    Example:
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
        base: no other memory may be on it from the first step to :meth:`close`.
        user: whose memory it is.
        placement: where; the empty placement trains nothing and measures the base itself.
        study: everything else.
        phase: see the module.
        seed: of the LoRA weights, the order of texts and dropout.
        checkpoints: where the state of the training is kept on the way, and gone on from; None: nowhere.

    Raises:
        SpaceError: the placement does not fit the model.
        ModelError: the study's text lengths do not fit the model.
    """

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
        self._trainer: tuple[int, StageTrainer] | None = None
        self._clock: _Clock = "inject"
        self._seconds: dict[_Clock, float] = {"inject": 0.0, "instruct": 0.0, "eval": 0.0}
        self._state: Literal["new", "running", "done", "closed"] = "new"
        self._holds_base = False
        self._tokens = 0
        self._loss = LossSum()
        self._responses: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Trial({self.user.alias}, {self.placement.key!r}, phase={self.phase}, seed={self.seed})"

    def run(self) -> Measurement | None:
        """All steps at once; the measurement of a search trial, None of a final one.

        Raises:
            TrialFailed: see :meth:`steps`.
        """
        for _ in self.steps():
            pass
        return self.result

    def steps(self) -> Generator[Progress, None, None]:
        """Train and measure; a yield after every optimizer step, every measured batch and every few tokens of
        generated responses. Once a trial.

        The adapter stays on the base after the last step, for :meth:`save` or a test, until :meth:`close`.
        After a failure, or when the iterator is dropped half way, the base is given back at once.

        Raises:
            TrialFailed: the loss or a gradient was not finite, memory ran out, or there is nothing to train
                or measure on. Running out of memory is of this rank alone; the others wait for it in vain.
            TrialStopped: another rank dropped the trial.
        """
        if self._state != "new":
            raise RuntimeError("a trial runs once: make a new one")
        self._state = "running"
        try:
            with self._failures():
                self._attach()
                yield from self._timed(self._train())
                if self.phase == "search":
                    self._clock = "eval"
                    yield from self._timed(self._measure())
                    self.result = self._measurement()
            self._agree()
            self._state = "done"
        finally:
            if self._state != "done":
                self.close()

    def save(self, folder: Path) -> None:
        """Write the trained adapter to ``folder`` in PEFT's layout (safetensors), all of it or nothing; a
        final one with its exact prompt beside it.

        Raises:
            StorageError: the folder cannot be written.
            RuntimeError: the trial has not finished, is closed, or is of no memory (nothing to save).
        """
        if self._state != "done" or self.base.attached is None or not self._holds_base:
            raise RuntimeError("nothing to save: only a finished trial of a memory, before close, has it")
        card = prompt_card(self.base.tokenizer, self._prompts) if self.phase == "final" else {}
        base = self.study.model.path
        if is_url(self.study.storage.path):  # where no path of this machine means anything
            base = portable_name(base)
        save_adapter(
            self.base.attached,
            folder,
            base,
            self.study.model.revision,
            placement=self.placement.key,
            user=self.user.alias,
            beside=card,
        )

    def checkpoint(self) -> None:
        """Keep the state of the training that is under way, if any; on all ranks after the same step.

        Raises:
            StorageError: it cannot be written; earlier ones are intact.
        """
        if self._checkpoints is None or self._trainer is None or self.base.attached is None:
            return
        index, trainer = self._trainer
        self._checkpoints.save(
            TrainingState(
                index,
                trainer.global_step,
                self._tokens,
                self._seconds["inject"] + self._seconds["instruct"],
                self.base.attached.state(),
                trainer.optimizer_state(),
                self._rng.state(),
            )
        )

    def close(self) -> None:
        """Give the base back exactly as it was. May be called at any time, and more than once."""
        self._state = "closed"
        self._trainer = None
        if self._holds_base:
            self._holds_base = False
            self.base.detach()

    def _attach(self) -> None:
        self._rng = IsolatedRNG(self.seed, self.base.device)
        if self.base.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.base.device)
        if self.base.attached is not None:
            raise RuntimeError("another memory is on the base: close its trial first")
        if self._config is not None:
            with self._rng.active():
                self.base.attach(self._config)
            self._holds_base = True
            if rank := self.base.parallel.group.rank:  # the same weights on all ranks, dropout of its own
                self._rng = IsolatedRNG(self.seed + rank, self.base.device)

    def _train(self) -> Iterator[Progress]:
        if self._config is None:
            return
        resumed = self._resume()
        for index, stage in enumerate(self._stages()):
            self._clock = stage.name
            if resumed is not None and index < resumed.stage:
                continue
            under_way = resumed if resumed is not None and index == resumed.stage else None
            trainer = StageTrainer(
                self.base,
                stage.examples,
                self._optimizer(),
                epochs=stage.epochs,
                stage=stage.name,
                generator=torch.Generator().manual_seed(2 * self.seed + index),
                rng=self._rng if self._config.lora_dropout else None,
                global_step=under_way.step if under_way is not None else 0,
                optimizer_state=under_way.optimizer if under_way is not None else None,
            )
            for progress in trainer:
                self._tokens += progress.tokens
                self._trainer = (index, trainer)
                if self._checkpoints is not None and self._checkpoints.due(progress.step):
                    self.checkpoint()
                yield progress
            self._trainer = None

    def _resume(self) -> TrainingState | None:
        """Take over the state that an interrupted trial left, if there is one."""
        state = self._checkpoints.load() if self._checkpoints is not None else None
        if state is not None and self.base.attached is not None:
            self.base.attached.load(state.adapter)
            self._rng.load(state.random)
            self._tokens, self._seconds["inject"] = state.tokens, state.seconds
        return state

    def _stages(self) -> Iterator[_Stage]:
        """What is trained on, in order. A user without train samples has no stage 2."""
        study, user = self.study, self.user
        final = self.phase == "final"
        everything = final and study.final.train_on == "train+validation"
        texts = user.final_history if everything else user.search_history
        settings = study.final if final else study.trial
        examples = self._encoded("history", texts)
        if not examples:
            raise TrialFailed("the user has no history to inject")
        yield _Stage("inject", examples, settings.epochs)
        if final or "instruct" in study.trial.stages:
            samples = (*user.train, *user.validation) if everything else user.train
            if examples := self._encoded("samples", samples):
                yield _Stage("instruct", examples, settings.instruct_epochs)

    def _measure(self) -> Iterator[Progress]:
        samples, size = self.user.validation, self.study.trial.eval_batch_size
        if not samples:
            raise TrialFailed("the user has no validation samples")
        self._loss = yield from measure_loss(self.base, self._encoded("samples", samples), size)
        if not math.isfinite(self._loss.mean):
            raise TrialFailed("loss is not finite in the measurement")
        if not RESPONSE_METRICS.keys().isdisjoint(self.study.objectives):
            longest = self.study.trial.max_new_tokens
            prompts = self.base.token_cache.get(
                ("prompts", self.study.prompts, longest, samples),
                lambda: encode_prompts(self.base, samples, self._prompts, longest),
            )
            self._responses = yield from measure_responses(self.base, prompts, self._prompts, longest, size)

    def _measurement(self) -> Measurement:
        responses = self._responses
        scores = dict.fromkeys(RESPONSE_METRICS, float("nan"))
        if responses and self.base.parallel.group.rank == 0:
            given, rules = [sample.response for sample in self.user.validation], self.study.data.text_rules
            scores = {name: metric(responses, given, rules) for name, metric in RESPONSE_METRICS.items()}
        return Measurement(self._loss.mean, scores, self.trainable_params, self.cost())

    def cost(self) -> TrialCost:
        """What it took so far, on this rank."""
        on_gpu = self.base.device.type == "cuda"
        return TrialCost(
            self._seconds["inject"],
            self._seconds["instruct"],
            self._seconds["eval"],
            self._tokens,
            torch.cuda.max_memory_allocated(self.base.device) if on_gpu else 0,
        )

    def _encoded(self, kind: Literal["history", "samples"], items: Sequence[str | Sample]) -> list[Example]:
        make = history_examples if kind == "history" else sample_examples
        return self.base.token_cache.get(
            (kind, self.study.prompts, tuple(items)),
            lambda: make(self.base, self._prompts, items),  # type: ignore[arg-type]
        )

    def _optimizer(self) -> OptimizerSettings:
        own = self.study.final.optimizer if self.phase == "final" else None
        return own or self.study.optimizer

    def _timed(self, work: Iterator[Progress]) -> Iterator[Progress]:
        """``work``, with the time spent in it (and not in its consumer) added to the clock of its stage.

        Where it is dropped, the other ranks are told, and a state is kept before ``work`` is taken down.
        """
        while True:
            self._agree()
            start = time.perf_counter()
            try:
                progress = next(work)
            except StopIteration:
                return
            finally:
                self._seconds[self._clock] += time.perf_counter() - start
            try:
                yield progress
            except GeneratorExit:
                self.base.parallel.group.any(True)
                self.checkpoint()
                raise

    def _agree(self) -> None:
        if self.base.parallel.group.any(False):
            self.checkpoint()
            raise TrialStopped

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        """Running out of memory becomes a failed trial; whatever held the memory is let go first."""
        size, key = self.trainable_params, self.placement.key or "none"
        return infeasible(
            f"out of memory with {size} trainable parameters (placement {key})", let_go=self.close
        )
