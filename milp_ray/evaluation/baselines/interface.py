"""What a method is: something trained, and something that the prompt holds.

``fit`` once per data set, base and seed; ``learn`` once per user; then ``requests``, which any
number of methods may decode together. What ``fit`` and ``learn`` make stands in folders, so that a
comparison that was cut off goes on user by user: a folder counts with its ``learned.json``, the
file that comes last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from milp_ray.config.comparison import MethodOptions
from milp_ray.config.models import OptimizerSettings, Study
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample, UserSplit
from milp_ray.errors import StorageError
from milp_ray.evaluation.common_batches import Batching, Request, decode, losses
from milp_ray.evaluation.measure import LossSum
from milp_ray.ids import child, number_of
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.storage import write_json

LEARNED = "learned.json"


@dataclass(frozen=True)
class Bench:
    """What all methods of one comparison share.

    Attributes:
        base: resident, without an adapter.
        study: lengths, schedules, optimizer and memory space; of the final job's part
            ``final.train_on`` says which samples are trained on.
        seed: of all that is random.
        folder: of this data set, base, study and seed: what was learned in it is not learned again.
        options: the same for all methods.
        placements: of users' memories, by alias, from a search.
        memories: of users, by alias: folders of adapters that a finished run trained.
        batching: bounds of a common batch.
        common: of the same data set, base, study and seed without a search's placements: what needs
            none is learned there, once for all methods; None: in ``folder``.
    """

    base: BaseModel
    study: Study
    seed: int
    folder: Path
    options: MethodOptions = field(default_factory=MethodOptions)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    memories: Mapping[str, Path] = field(default_factory=dict)
    batching: Batching = field(default_factory=Batching)
    common: Path | None = None

    @cached_property
    def prompts(self) -> Prompts:
        """The study's."""
        return Prompts(self.study.prompts)

    @property
    def optimizer(self) -> OptimizerSettings:
        """That of the final job."""
        return self.study.final.optimizer or self.study.optimizer

    def seed_of(self, alias: str) -> int:
        """A user's own seed."""
        return (1_000_003 * self.seed + number_of(alias)) % 2**61


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step of a method took.

    Attributes:
        seconds: by the clock, the choice of a learning rate or placement included.
        trained_tokens: real (unpadded) tokens trained on, every pass and every try counted.
        trainable_params: of what is kept.
        adapter_bytes: of what is kept, on the disk.
        prompt_tokens: of requests; soft tokens count.
    """

    seconds: float = 0.0
    trained_tokens: int = 0
    trainable_params: int = 0
    adapter_bytes: int = 0
    prompt_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.trained_tokens + other.trained_tokens,
            self.trainable_params + other.trainable_params,
            self.adapter_bytes + other.adapter_bytes,
            self.prompt_tokens + other.prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class Learned:
    """What a fit or a user's learning came to.

    Attributes:
        cost: of it.
        note: data, steps and choices, in words for a table's row; nothing of a user's texts.
    """

    cost: Cost = Cost()
    note: str = "nothing is trained"


@dataclass(frozen=True, slots=True)
class Carried:
    """What a user's requests have on the base, and how many soft tokens; as in ``Request``."""

    adapters: tuple[Path, ...] = ()
    soft_tokens: Path | None = None
    num_soft: int = 0
    weights: Path | None = None


class Source(Protocol):
    """What is trained, and where it is.

    Attributes:
        fitted: the folders that :meth:`fit` fills. Two sources with one in common are fitted one
            after the other, and the second finds what it shares.
    """

    @property
    def fitted(self) -> frozenset[Path]:
        """See the class."""
        ...

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Train what all users share."""
        ...

    def learn(self, user: UserSplit) -> Learned:
        """Train what is the user's own."""
        ...

    def carried(self, user: UserSplit) -> Carried:
        """What a user's requests have on the base."""
        ...


class Contents(Protocol):
    """What the prompt holds."""

    def prompts(self, user: UserSplit, samples: Sequence[Sample]) -> list[list[int]]:
        """Token ids to generate from, by sample; samples come without their responses."""
        ...


class Method:
    """One row of a comparison.

    Example:
        >>> from milp_ray.config.models import Study
        >>> from milp_ray.evaluation.baselines import make
        >>> from milp_ray.data.records import Sample, UserSplit
        >>> from milp_ray.model.base import load_base
        >>> study = Study.model_validate(
        ...     {
        ...         "name": "example",
        ...         "model": {"path": str(tiny_model), "device": "cpu"},
        ...         "data": {"path": "users.jsonl"},
        ...         "prompts": {"max_length": 48},
        ...         "trial": {"max_new_tokens": 4},
        ...     }
        ... )
        >>> asked = (Sample("Which tea do you like?", "Tea.", n_hist=1),)
        >>> user = UserSplit("u-1", ("I like tea.",), (), (), asked, search_cut=1, final_cut=1)
        >>> rag = make("rag", Bench(load_base(study.model), study, seed=0, folder=folder))
        >>> rag.fit([]).cost.trainable_params, rag.learn(user).cost.adapter_bytes
        (0, 0)
        >>> [request] = rag.requests(user, user.test)
        >>> "I like tea." in rag.bench.base.tokenizer.decode(request.ids)
        True
        >>> len(rag.respond(user, user.test))
        1

    Args:
        name: by which it is registered.
        bench: what it shares with others.
        source: what is trained.
        contents: what the prompt holds.
    """

    def __init__(self, name: str, bench: Bench, source: Source, contents: Contents) -> None:
        self.name, self.bench = name, bench
        self._source, self._contents = source, contents

    @property
    def fitted(self) -> frozenset[Path]:
        """The folders that :meth:`fit` fills; see :class:`Source`."""
        return self._source.fitted

    def fit(self, background: Sequence[UserSplit]) -> Learned:
        """Learn what all users share, once; what is there is not learned again.

        Args:
            background: users to train on. Of each, the final history, train samples and (unless
                ``final.train_on`` is train) validation samples are read, and never test samples: so
                the measured users may be among them.

        Raises:
            TrialFailed: a loss was not finite, or there is nothing to train on.
            StorageError: the folder cannot be written or read.
        """
        return self._source.fit(background)

    def learn(self, user: UserSplit) -> Learned:
        """Learn what is the user's own, after :meth:`fit`; raises as that does."""
        return self._source.learn(user)

    def requests(self, user: UserSplit, samples: Sequence[Sample]) -> list[Request]:
        """One request a sample, after :meth:`learn`; the samples' responses are not looked at."""
        carried = self._source.carried(user)
        asked = [replace(sample, response="") for sample in samples]
        start = 0 if self.bench.base.tokenizer.bos_token_id is None else 1
        filler = [self.bench.base.pad_id] * carried.num_soft
        return [
            Request(
                (*ids[:start], *filler, *ids[start:]),
                carried.adapters,
                carried.soft_tokens,
                start,
                carried.weights,
            )
            for ids in self._contents.prompts(user, asked)
        ]

    def respond(self, user: UserSplit, samples: Sequence[Sample]) -> list[str]:
        """Greedy responses, by sample: those of :meth:`requests` decoded alone."""
        most = self.bench.study.trial.max_new_tokens
        requests = self.requests(user, samples)
        return decode(self.bench.base, requests, self.bench.prompts, most, self.bench.batching)

    def loss(self, user: UserSplit, samples: Sequence[Sample]) -> LossSum:
        """The loss of the samples' responses, given this method's prompts and adapters."""
        responses = response_ids(self.bench, samples)
        found = losses(self.bench.base, self.requests(user, samples), responses, self.bench.batching)
        return sum(found, LossSum())


def response_ids(bench: Bench, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """Tokens of the samples' responses, with their ends: the same for every method.

    A response has at most half of ``prompts.max_length``, so that losses of all methods are over
    the same tokens, whatever their prompts hold.
    """
    most = bench.study.prompts.max_length // 2
    encoded = [bench.prompts.encode_sample(bench.base.tokenizer, sample) for sample in samples]
    return [tuple(one.input_ids[one.prompt_length :][:most]) for one in encoded]


def cost_of(requests: Sequence[Request]) -> Cost:
    """The prompt tokens of requests."""
    return Cost(prompt_tokens=sum(len(request.ids) for request in requests))


def remembered(folder: Path, learn: Callable[[], Learned]) -> Learned:
    """What was learned in a folder; ``learn``, which fills it, is called where nothing was.

    Raises:
        StorageError: the folder cannot be written, or its ``learned.json`` is damaged.
    """
    file = folder / LEARNED
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Learned(Cost(**values["cost"]), str(values["note"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"what was learned could not be read ({type(error).__name__})",
            where=f"{folder.name}/{LEARNED}",
            remedy=f"delete the folder {folder.name}, and it is learned again",
        ) from error
    began = time.perf_counter()
    learned = learn()
    seconds = round(time.perf_counter() - began, 3)
    learned = replace(learned, cost=replace(learned.cost, seconds=seconds))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(learned))
    return learned


def own_folder(bench: Bench, source: str, alias: str = "fit") -> Path:
    """Where what a source learned is: of a user, or of all."""
    return child(bench.folder, source, alias)


def common_folder(bench: Bench, source: str) -> Path:
    """Where what a source learned of all users without a search is, whatever method it serves."""
    return child(bench.common or bench.folder, source, "fit")


def bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
