"""A comparison at work: the searches behind methods, then cells on resident workers, then tables.

Every step adds what is missing, so that one that was stopped or killed goes on by the same command.
Searches are runs of their own (:mod:`milp_ray.study.driver`). Then workers take all cells of a
condition, and decode their responses in common batches, whatever the method.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import milp_ray
from milp_ray.comparison.answers import AnswerStore
from milp_ray.comparison.cells import Cell, CellCost, CellRecord, UserResult
from milp_ray.comparison.folder import MARKER, ComparisonFolder
from milp_ray.comparison.plan import ConditionPlan, MethodPlan, plan_of
from milp_ray.comparison.searches import Search, search_behind
from milp_ray.config.comparison import Comparison
from milp_ray.config.models import ModelSettings
from milp_ray.storage import write_json
from milp_ray.study.alias_key import given_key
from milp_ray.study.provenance import packages
from milp_ray.study.stopping import StopRequest, stop_on_signals
from milp_ray.tune.cluster.session import ray_session

if TYPE_CHECKING:
    from milp_ray.tune.comparison.pool import Piece, Pool
    from milp_ray.tune.comparison.worker import Answer, LearnedPart, MethodTask

_CHUNKS_PER_WORKER = 2  # of users that are answered together: more lose less to an interruption


@dataclass
class Compared:
    """How a comparison ended.

    Attributes:
        cells: how many there are.
        finished: how many of them are finished, in this session or before.
        failed: users without a result, over all cells.
        interrupted: whether it was asked to stop.
        records: the finished cells.
    """

    cells: int
    finished: int = 0
    failed: int = 0
    interrupted: bool = False
    records: list[CellRecord] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 done; 3 done, but some users failed; 130 stopped on request."""
        return 130 if self.interrupted else 3 if self.failed or self.finished < self.cells else 0


class Comparing:
    """A comparison, and what it does.

    Args:
        comparison: of the file.
        console: where progress goes.

    Attributes:
        folder: its folder, made where there is none. Its lock is held by whoever calls :meth:`run`.
        key: of all aliases.
        plans: of its settings.

    Raises:
        MilpRayError: the file, data or a model is not usable.
    """

    def __init__(self, comparison: Comparison, console: Console) -> None:
        self.folder = ComparisonFolder(comparison)
        keyed = comparison.model_copy(update={"alias_key": str(self.folder.key_file)})
        any_study = keyed.study(next(iter(keyed.datasets)), next(iter(keyed.models)), keyed.seeds[0])
        key = given_key(any_study)
        assert key is not None
        self.key = key
        self.plans = plan_of(keyed, key)
        self._console = console
        self._searches: dict[str, Search] = {}
        self._interrupted = False

    def run(self) -> None:
        """Compute what is missing: searches first, then cells, in one Ray session.

        Raises:
            MilpRayError: a model, the storage or the cluster is not usable. What is finished is
                kept.
        """
        pending = {plan.condition: self._pending(plan) for plan in self.plans}
        total = sum(len(plan.methods) for plan in self.plans)
        done = total - sum(map(len, pending.values()))
        self._say(f"{total} cells, {done} of them finished before")
        todo = [plan for plan in self.plans if pending[plan.condition] or not self._is_measured(plan)]
        if todo:
            with ray_session(todo[0].study.ray):
                for plan in todo:
                    if not self._compute(plan, pending[plan.condition]):
                        self._interrupted = True
                        return

    def _compute(self, plan: ConditionPlan, methods: Sequence[MethodPlan]) -> bool:
        """Compute what is missing of a condition; False if it was asked to stop."""
        if not all(self._searched(plan, method) for method in methods if method.searched):
            return False
        with stop_on_signals(self._say) as stop_requested, self._pool(plan, stop_requested) as pool:
            if methods:
                self._condition(pool, plan, methods, stop_requested)
            if not self._is_measured(plan):
                self._measure_prompts(pool, plan)
            return not stop_requested()

    @property
    def models(self) -> dict[str, ModelSettings]:
        """The base models, by name, with absolute paths."""
        return {plan.condition.model: plan.study.model for plan in self.plans}

    def outcome(self) -> Compared:
        """How far it is."""
        records = self._records()
        failed = sum(len(record.failed) for record in records)
        cells = sum(len(plan.methods) for plan in self.plans)
        return Compared(cells, len(records), failed, self._interrupted, records)

    def _records(self) -> list[CellRecord]:
        store = self.folder.cells
        found = (store.find(cell, digest) for plan in self.plans for cell, digest in _cells(plan))
        return [record for record in found if record is not None]

    def _pending(self, plan: ConditionPlan) -> list[MethodPlan]:
        store = self.folder.cells
        return [
            method
            for method in plan.methods
            if store.find(Cell(plan.condition, method.name), plan.digest(method)) is None
        ]

    def _searched(self, plan: ConditionPlan, method: MethodPlan) -> bool:
        """Make sure that the search behind a method is finished; False if it was asked to stop."""
        study = plan.searched_study(method, self.folder.runs, self.folder.key_file)
        if study.name not in self._searches:
            self._say(f"{plan.condition.name}: search {study.name} for {method.name}")
            found = search_behind(study, self._console)
            if found is None:
                return False
            self._searches[study.name] = found
        return True

    @contextlib.contextmanager
    def _pool(self, plan: ConditionPlan, stop_requested: StopRequest) -> Iterator[Pool]:
        from milp_ray.tune.comparison.pool import Pool

        pool = Pool(plan.study, self.folder.root, MARKER, stop_requested, self._say)
        try:
            yield pool
        finally:
            pool.close()

    def _condition(
        self, pool: Pool, plan: ConditionPlan, methods: Sequence[MethodPlan], stop_requested: StopRequest
    ) -> None:
        from milp_ray.tune.cluster.shared import share
        from milp_ray.tune.comparison.worker import Task

        searches = {method.name: self._search(plan, method) for method in methods}
        tasks = {m.name: self._task(plan, m, searches[m.name]) for m in methods}
        users, background = share(plan.users), share(plan.background.splits)
        common, seed = self._learned(plan, plan.learned_digest()), plan.condition.seed
        pool.begin(Task(pool.study, plan.options, common, seed, tasks, users, background, plan.others))
        learning = _Learning([method.name for method in methods], list(plan.users))
        pool.work([learning.groups()])
        pool.work([learning.fit(names) for names in learning.together])
        if stop_requested():
            return
        self._say(f"{plan.condition.name}: {len(methods)} methods are fitted")
        pool.work([learning.learn(alias) for alias in plan.users])
        if stop_requested():
            return
        self._say(f"{plan.condition.name}: {len(plan.users)} users are learned")
        stores = {m.name: self.answers(plan, m) for m in methods}
        for name, alias, reason in learning.failures():
            stores[name].add(_failed(name, alias, reason))
        pool.work(self._chunks(pool, plan, stores))
        for method in methods:
            self._finish(plan, method, stores[method.name], learning, searches[method.name])

    def _is_measured(self, plan: ConditionPlan) -> bool:
        return self.folder.memory_use(plan.condition.model).exists()

    def _measure_prompts(self, pool: Pool, plan: ConditionPlan) -> None:
        """Measure what prompts take on a model."""
        from milp_ray.tune.comparison.pool import Piece

        path = self.folder.memory_use(plan.condition.model)
        path.parent.mkdir(exist_ok=True)
        label = f"memory of prompts on {plan.condition.model}"
        pool.work([Piece("prompt_memory", (), label, partial(write_json, path), self._say)])

    def _task(self, plan: ConditionPlan, method: MethodPlan, search: Search | None) -> MethodTask:
        from milp_ray.tune.comparison.worker import MethodTask

        digest = plan.run_digest(method) if method.searched else plan.learned_digest()
        folder = self._learned(plan, digest)
        placements = search.placements_of(plan.users) if search else {}
        return MethodTask(method.name, method.builder, folder, method.searched, placements)

    def _learned(self, plan: ConditionPlan, digest: str) -> Path:
        return self.folder.learned(plan.condition.name, digest)

    def _search(self, plan: ConditionPlan, method: MethodPlan) -> Search | None:
        if not method.searched:
            return None
        study = plan.searched_study(method, self.folder.runs, self.folder.key_file)
        return self._searches[study.name]

    def answers(self, plan: ConditionPlan, method: MethodPlan) -> AnswerStore:
        """The answers of a cell."""
        return AnswerStore(self.folder.answers(Cell(plan.condition, method.name), plan.digest(method)))

    def _chunks(
        self, pool: Pool, plan: ConditionPlan, stores: Mapping[str, AnswerStore]
    ) -> list[Piece[list[Answer]]]:
        """Pieces of work, each some users with all their methods, whose batches they share."""
        from milp_ray.tune.comparison.pool import Piece

        aliases = list(plan.users)
        missing = {name: set(store.missing(aliases)) for name, store in stores.items()}
        waiting = [alias for alias in aliases if any(alias in found for found in missing.values())]
        size = max(1, math.ceil(len(waiting) / (_CHUNKS_PER_WORKER * pool.size)))
        pieces: list[Piece[list[Answer]]] = []
        for first in range(0, len(waiting), size):
            some = waiting[first : first + size]
            pairs = [(name, alias) for alias in some for name in stores if alias in missing[name]]
            label = f"{plan.condition.name}, answers of {len(some)} users with {len(stores)} methods"
            pieces.append(
                Piece("answer", (pairs,), label, partial(_keep, stores), partial(_give_up, stores, pairs))
            )
        return pieces

    def _finish(
        self,
        plan: ConditionPlan,
        method: MethodPlan,
        store: AnswerStore,
        learning: _Learning,
        search: Search | None,
    ) -> None:
        """Make a cell of its answers, if all are there."""
        answers = [answer for alias in plan.users if (answer := store.find(alias)) is not None]
        if len(answers) < len(plan.users):
            return
        users = {
            answer.alias: UserResult(
                answer.samples, answer.scores or {}, answer.control or {}, answer.prompt_tokens
            )
            for answer in answers
            if not answer.reason
        }
        cost = learning.cost(method.name, len(plan.users))
        if search is not None:
            cost = search.added_to(cost)
        seconds = sum(answer.seconds for answer in answers)
        record = CellRecord(
            Cell(plan.condition, method.name),
            plan.digest(method),
            users,
            _with_answering(cost, seconds),
            learning.note(method.name),
            {answer.alias: answer.reason for answer in answers if answer.reason},
            made_with(),
        )
        self.folder.cells.add(record)
        failed = f", {len(record.failed)} failed" if record.failed else ""
        self._say(f"{record.cell}: {len(users)} users{failed}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class _Learning:
    """What became of fitting methods and learning users.

    Args:
        names: of the methods.
        aliases: of the users.

    Attributes:
        names: as given.
        together: groups of methods that share what they fit, known after :meth:`groups`.
    """

    def __init__(self, names: Sequence[str], aliases: Sequence[str]) -> None:
        self.names, self._aliases = names, aliases
        self.together: list[list[str]] = []
        self._fits: dict[str, LearnedPart] = {}
        self._users: dict[str, dict[str, LearnedPart]] = {}
        self._reasons: dict[tuple[str, str], str] = {}

    def groups(self) -> Piece[list[list[str]]]:
        """The piece of work that says which methods are fitted together."""
        from milp_ray.tune.comparison.pool import Piece

        def done(groups: list[list[str]]) -> None:
            self.together = groups

        lost = partial(self._lost, self.names, self._aliases)
        return Piece("fit_groups", (self.names,), "the methods", done, lost)

    def fit(self, names: Sequence[str]) -> Piece[dict[str, LearnedPart]]:
        """The piece of work that fits methods which share something."""
        from milp_ray.tune.comparison.pool import Piece

        label = f"fit of {', '.join(names)}"
        return Piece("fit", (names,), label, self._fits.update, partial(self._lost, names, self._aliases))

    def learn(self, alias: str) -> Piece[dict[str, LearnedPart]]:
        """The piece of work that learns a user, with all methods that could be fitted."""
        from milp_ray.tune.comparison.pool import Piece

        names = [name for name in self.names if name in self._fits and not self._fits[name].reason]

        def done(parts: dict[str, LearnedPart]) -> None:
            self._users[alias] = parts

        label = f"learning of {alias}"
        return Piece("learn", (names, alias), label, done, partial(self._lost, names, [alias]))

    def failures(self) -> Iterator[tuple[str, str, str]]:
        """Method, alias and reason of every user that cannot be answered."""
        for name in self.names:
            for alias in self._aliases:
                fit, user = self._fits.get(name), self._users.get(alias, {}).get(name)
                reason = self._reasons.get((name, alias), "")
                reason = reason or (fit.reason if fit else "") or (user.reason if user else "")
                if reason:
                    yield name, alias, reason

    def cost(self, name: str, users: int) -> CellCost:
        """What a method's fit and learning took."""
        parts = [found[name].learned.cost for found in self._users.values() if name in found]
        fit = self._fits[name].learned.cost if name in self._fits else None
        shared = fit.trainable_params if fit else 0
        count = max(1, len(parts))
        return CellCost(
            train_seconds=(fit.seconds if fit else 0.0) + sum(cost.seconds for cost in parts),
            train_tokens=(fit.trained_tokens if fit else 0) + sum(cost.trained_tokens for cost in parts),
            trainable_params=shared + sum(cost.trainable_params for cost in parts) / count,
            adapter_bytes=(fit.adapter_bytes if fit else 0) / users
            + sum(cost.adapter_bytes for cost in parts) / count,
        )

    def note(self, name: str) -> str:
        """What was trained, in words: of the fit, and of the first user."""
        fit = self._fits.get(name)
        users = (found[name] for found in self._users.values() if name in found)
        notes = [part.learned.note for part in (fit, next(users, None)) if part is not None]
        return "; ".join(dict.fromkeys(note for note in notes if note))

    def _lost(self, names: Sequence[str], aliases: Sequence[str], why: str) -> None:
        self._reasons.update({(name, alias): why for name in names for alias in aliases})


def made_with() -> dict[str, str]:
    """Versions of packages, and the commit where this package runs from a checkout."""
    place = Path(milp_ray.__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(place), "rev-parse", "--short=12", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return {"milp_ray": milp_ray.__version__, "commit": found.stdout.strip()} | packages()
    return {"milp_ray": milp_ray.__version__} | packages()


def _cells(plan: ConditionPlan) -> Iterator[tuple[Cell, str]]:
    for method in plan.methods:
        yield Cell(plan.condition, method.name), plan.digest(method)


def _keep(stores: Mapping[str, AnswerStore], answers: Sequence[Answer]) -> None:
    for answer in answers:
        stores[answer.method].add(answer)


def _give_up(stores: Mapping[str, AnswerStore], pairs: Sequence[tuple[str, str]], why: str) -> None:
    _keep(stores, [_failed(name, alias, why) for name, alias in pairs])


def _failed(name: str, alias: str, reason: str) -> Answer:
    from milp_ray.tune.comparison.worker import Answer

    return Answer(name, alias, reason=reason)


def _with_answering(cost: CellCost, seconds: float) -> CellCost:
    return replace(cost, answer_seconds=seconds)
