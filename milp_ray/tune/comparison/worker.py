"""What a worker of a comparison does: fit methods, learn users, answer for many methods at once.

It is a Ray actor with a resident base. What it learns stands in folders, so that it is not learned
again (:mod:`milp_ray.evaluation.baselines.interface`); what it answers goes back to the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from milp_ray.config.comparison import MethodOptions
from milp_ray.config.models import Study
from milp_ray.errors import MilpRayError, TrialFailed, exception_site
from milp_ray.memory.placement import Placement
from milp_ray.tune.cluster.shared import SharedUsers

if TYPE_CHECKING:
    from milp_ray.data.records import UserSplit
    from milp_ray.evaluation.baselines import Learned, Method
    from milp_ray.evaluation.common_batches import Request
    from milp_ray.evaluation.measure import LossSum


@dataclass(frozen=True)
class MethodTask:
    """A method as workers make it.

    Attributes:
        name: in the comparison.
        builder: its registered name.
        folder: what it learned, and learns, is in it.
        searched: whether it needs a search's choice.
        placements: of the users' memories, as far as a search chose any.
    """

    name: str
    builder: str
    folder: Path
    searched: bool
    placements: Mapping[str, Placement]


@dataclass(frozen=True)
class Task:
    """What all workers of a condition share; Ray's object store carries it to each once.

    Attributes:
        study: as workers read it.
        options: of the methods.
        common: what methods without a search learn, and what all share, is in it.
        seed: of the condition.
        methods: by name.
        users: references to the compared users' texts.
        background: references to those of the background users.
        others: of each user another one, for the control.
    """

    study: Study
    options: MethodOptions
    common: Path
    seed: int
    methods: Mapping[str, MethodTask]
    users: SharedUsers
    background: SharedUsers
    others: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LearnedPart:
    """What a fit or a user's learning came to; ``reason``: why it failed, or empty."""

    learned: Learned
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A method's result for one user.

    Attributes:
        method: its name.
        alias: of the user.
        reason: why there is no result; empty if there is.
        samples: number of test samples.
        scores, control: see :class:`milp_ray.comparison.cells.UserResult`.
        responses: the own ones, by sample.
        prompt_tokens: mean length of the prompts.
        seconds: this method's and user's share of the batches, by tokens.
    """

    method: str
    alias: str
    reason: str = ""
    samples: int = 0
    scores: Mapping[str, float | None] | None = None
    control: Mapping[str, float | None] | None = None
    responses: tuple[str, ...] = ()
    prompt_tokens: float = 0.0
    seconds: float = 0.0

    def __repr__(self) -> str:  # responses are text
        return f"Answer({self.method}, {self.alias}, reason={self.reason!r})"


class WorkerFault(RuntimeError):  # noqa: N818  (it names an outcome)
    """Something unforeseen in a worker: its place in the code; a message may quote texts."""


class Worker:
    """A resident base that works for one condition after another.

    Args:
        study: whose base it is.
        root: a folder that every node must see, and a file in it.
        marker: name of that file.
        cpus: that the process may use.
    """

    def __init__(self, study: Study, root: Path, marker: str, cpus: float) -> None:
        from milp_ray.tune.workers.resident import resident_base

        self._base = resident_base(study, root, cpus, marker=marker)
        self._methods: dict[str, Method] = {}
        self._task: Task | None = None

    def begin(self, task: Task) -> None:
        """Take a condition."""
        from milp_ray.evaluation.baselines import Bench, make

        self._task, self._methods = task, {}
        for method in task.methods.values():
            bench = Bench(
                self._base,
                task.study,
                task.seed,
                method.folder,
                task.options,
                placements=method.placements,
                common=task.common,
            )
            self._methods[method.name] = make(method.builder, bench)

    def fit_groups(self, names: Sequence[str]) -> list[list[str]]:
        """Which methods one worker fits: those that share what they fit, most of them first."""
        places = {name: self._methods[name].fitted if self._fits(name) else frozenset() for name in names}
        groups: list[tuple[list[str], frozenset[Path]]] = []
        for name in names:
            mine = [group for group in groups if group[1] & places[name]]
            groups = [group for group in groups if group not in mine]
            members = [one for group in mine for one in group[0]] + [name]
            groups.append((members, places[name].union(*(group[1] for group in mine))))
        ordered = [sorted(members, key=list(names).index) for members, _ in groups]
        return sorted(ordered, key=len, reverse=True)

    def fit(self, names: Sequence[str]) -> dict[str, LearnedPart]:
        """Fit methods on the background users, one after the other."""
        background = ray.get(list(self._of_condition().background.values()))
        return {
            name: self._learned(partial(self._methods[name].fit, background))
            if self._fits(name)
            else _not_chosen()
            for name in names
        }

    def _fits(self, name: str) -> bool:
        """Whether there is what a method needs of its search."""
        method = self._of_condition().methods[name]
        return not method.searched or bool(method.placements)

    def learn(self, names: Sequence[str], alias: str) -> dict[str, LearnedPart]:
        """Learn a user with some methods, one after the other: some share what they learn."""
        task = self._of_condition()
        lost = [name for name in names if task.methods[name].searched]
        lost = [name for name in lost if alias not in task.methods[name].placements]
        found = {name: _not_chosen() for name in lost}
        if todo := [name for name in names if name not in found]:
            user = ray.get(task.users[alias])
            found |= {name: self._learned(partial(self._methods[name].learn, user)) for name in todo}
        return found

    def answer(self, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
        """Answer for pairs of a method and a user, all in common batches."""
        try:
            return _Answers(self._of_condition(), self._methods, pairs).all()
        except MilpRayError:
            raise
        except Exception as error:
            raise WorkerFault(exception_site(error)) from None

    def _of_condition(self) -> Task:
        assert self._task is not None
        return self._task

    def prompt_memory(self) -> list[tuple[int, int, int]]:
        """Memory of prompts that grow: tokens, measured bytes, and those of Eq. 5."""
        from milp_ray.evaluation.memory_use import measured_prompt_memory, prompt_memory

        base = self._base
        lengths = [2**power for power in range(4, 11) if 2**power <= base.architecture.context]
        width = base.dtype.itemsize
        return [
            (
                tokens,
                measured_prompt_memory(base, tokens),
                prompt_memory(base.model.config, tokens, width).total,
            )
            for tokens in lengths
        ]

    @staticmethod
    def _learned(learn: Callable[[], Learned]) -> LearnedPart:
        from milp_ray.evaluation.baselines import Learned

        try:
            return LearnedPart(learn())
        except TrialFailed as failure:
            return LearnedPart(Learned(note=""), failure.reason)
        except MilpRayError:
            raise
        except Exception as error:
            raise WorkerFault(exception_site(error)) from None


def _not_chosen() -> LearnedPart:
    from milp_ray.evaluation.baselines import Learned

    return LearnedPart(Learned(note=""), "its search has no measured trial to choose from")


@dataclass
class _Asked:
    """The requests of one method, user and owner of the memory."""

    method: str
    user: UserSplit
    is_control: bool
    requests: list[Request]
    responses: list[str]
    loss: LossSum
    seconds: float = 0.0


class _Answers:
    """The requests of some methods and users, decoded and measured together."""

    def __init__(
        self,
        task: Task,
        methods: Mapping[str, Method],
        pairs: Sequence[tuple[str, str]],
    ) -> None:
        self._task, self._methods, self._pairs = task, methods, pairs

    def all(self) -> list[Answer]:
        """One answer a pair."""
        from milp_ray.evaluation.baselines.interface import response_ids
        from milp_ray.evaluation.common_batches import decode, losses

        asked = [one for pair in self._pairs for one in self._asked(*pair)]
        requests = [request for one in asked for request in one.requests]
        samples = [sample for one in asked for sample in one.user.test]
        if requests:
            bench = next(iter(self._methods.values())).bench
            began = time.perf_counter()
            texts = decode(
                bench.base,
                requests,
                bench.prompts,
                bench.study.trial.max_new_tokens,
                bench.batching,
            )
            sums = losses(bench.base, requests, response_ids(bench, samples), bench.batching)
            seconds = time.perf_counter() - began
            _hand_out(asked, texts, sums, seconds)
        return [self._answer(name, alias, asked) for name, alias in self._pairs]

    def _asked(self, name: str, alias: str) -> list[_Asked]:
        """The own requests, and those with another user's memory where that makes others."""
        from milp_ray.evaluation.measure import LossSum

        method, user = self._methods[name], ray.get(self._task.users[alias])
        own = method.requests(user, user.test)
        found = [_Asked(name, user, False, own, [], LossSum())]
        if other := self._task.others.get(alias):
            # Another's texts have no place in this user's time: all that the other's memory may
            # know is taken.
            late = [replace(sample, n_hist=None) for sample in user.test]
            control = method.requests(ray.get(self._task.users[other]), late)
            if control != own:
                found.append(_Asked(name, user, True, control, [], LossSum()))
        return found

    def _answer(self, name: str, alias: str, asked: Sequence[_Asked]) -> Answer:
        parts = [one for one in asked if one.method == name and one.user.alias == alias]
        own = next(one for one in parts if not one.is_control)
        control = next((one for one in parts if one.is_control), None)
        lengths = [len(request.ids) for request in own.requests]
        return Answer(
            name,
            alias,
            samples=len(own.user.test),
            scores=self._scores(own),
            control=self._scores(control) if control is not None else {},
            responses=tuple(own.responses),
            prompt_tokens=sum(lengths) / len(lengths) if lengths else 0.0,
            seconds=sum(one.seconds for one in parts),
        )

    def _scores(self, one: _Asked) -> dict[str, float | None]:
        from milp_ray.evaluation.compare import test_scores

        rules = self._task.study.data.text_rules
        return test_scores(one.user, one.user.test, one.responses, one.loss.mean, rules).to_plain()


def _hand_out(asked: Sequence[_Asked], texts: Sequence[str], sums: Sequence[LossSum], seconds: float) -> None:
    """Give each its part of what was decoded and measured together."""
    from milp_ray.evaluation.measure import LossSum

    tokens = sum(len(request.ids) for one in asked for request in one.requests)
    start = 0
    for one in asked:
        end = start + len(one.requests)
        one.responses = list(texts[start:end])
        one.loss = sum(sums[start:end], LossSum())
        one.seconds = seconds * sum(len(request.ids) for request in one.requests) / max(1, tokens)
        start = end
