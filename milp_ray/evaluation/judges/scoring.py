"""Asking a judge: what it will take, what is missing in the cache, and what was lost.

Requests of equal content are asked once. Every answer is in the cache before the next one counts,
so whatever ends a run, nothing that was paid for is lost. What has no answer is counted by reason
(:class:`~milp_ray.evaluation.judges.Loss`) and is None among the answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from milp_ray.evaluation.bias import PositionBias, position_bias
from milp_ray.evaluation.judges import Judge, Loss, PairRequest, Request
from milp_ray.evaluation.judges.cache import AnswerCache


@dataclass(frozen=True, slots=True)
class Estimate:
    """What asking takes, before anything is asked.

    Attributes:
        judge: its name.
        calls: requests that will be asked.
        cached: requests whose answers are there, or come with an equal one's.
        read: tokens of prompts.
        written: tokens of answers, at most.
        exact: whether tokens are counted, by a tokenizer; otherwise they are UTF-8 bytes / 4.
        cost: of tokens by the judge's prices, at most; None where these are not known.
    """

    judge: str
    calls: int
    cached: int
    read: int
    written: int
    exact: bool
    cost: float | None

    def __str__(self) -> str:
        if not self.calls:
            return f"{self.judge}: nothing to ask, {self.cached} answers are there"
        how = "counted" if self.exact else "estimated: UTF-8 bytes / 4"
        costs = "cost unknown without prices" if self.cost is None else f"costs up to {self.cost:.4g}"
        return (
            f"{self.judge}: {self.calls} calls ({self.cached} more answers are there); "
            f"{self.read} tokens to read ({how}), up to {self.written} to write; {costs}"
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """A judge's answers to some requests.

    Attributes:
        judge: its name.
        values: by request; None where there is none.
        losses: reason -> how many requests have no answer for it.
        asked: requests that the judge was asked now.
    """

    judge: str
    values: tuple[float | None, ...]
    losses: Mapping[str, int]
    asked: int

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return sum(self.losses.values())

    def __str__(self) -> str:
        count = len(self.values)
        done = f"{self.judge}: {count - self.lost} of {count} answered ({self.asked} asked now)"
        reasons = ", ".join(f"{number} × {reason}" for reason, number in sorted(self.losses.items()))
        return f"{done}; {self.lost} of {count} lost: {reasons}" if reasons else done


def estimate(judge: Judge, requests: Sequence[Request], cache: AnswerCache) -> Estimate:
    """What :func:`ask` would take. Asks nothing, and writes nothing."""
    missing = _missing(_keys(judge, requests, cache), cache)
    todo = [requests[indices[0]] for indices in missing.values()]
    tokens = judge.tokens(todo)
    prices = judge.prices
    cost = None if prices is None else (tokens.read * prices[0] + tokens.written * prices[1]) / 1e6
    cached = len(requests) - len(todo)
    return Estimate(judge.name, len(todo), cached, tokens.read, tokens.written, tokens.exact, cost)


def ask(
    judge: Judge,
    requests: Sequence[Request],
    cache: AnswerCache,
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Ask a judge for every answer that the cache lacks.

    Args:
        judge: whom.
        requests: what.
        cache: answers of earlier runs; gets the new ones, each as it comes.
        progress: called with (asked, to be asked) after every answer.

    Raises:
        JudgeError: no request can be answered. Answers until then are in the cache.
        StorageError: the cache cannot be written.
    """
    keys = _keys(judge, requests, cache)
    missing = _missing(keys, cache)
    todo = [requests[indices[0]] for indices in missing.values()]
    groups = list(missing.items())
    lost: Counter[str] = Counter()
    asked = 0
    with closing(judge.answers(todo)) as answers:
        for done, (index, answer) in enumerate(answers, start=1):
            key, equal = groups[index]
            asked += answer is not Loss.NOT_ASKED
            if isinstance(answer, Loss):
                lost[answer.value] += len(equal)
            else:
                cache.add(key, answer)
            if progress is not None:
                progress(done, len(todo))
    return Answers(judge.name, tuple(cache.get(key) for key in keys), dict(lost), asked)


def ask_both_orders(
    judge: Judge,
    pairs: Sequence[PairRequest],
    cache: AnswerCache,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Answers, PositionBias]:
    """Ask which of two responses is better, in both orders.

    Returns:
        The answers to all pairs, then to all pairs turned round; and what the order changed.

    Raises:
        ValueError: the judge compares no pairs.
        JudgeError, StorageError: as :func:`ask`.
    """
    turned = [PairRequest(pair.exchange, pair.second, pair.first) for pair in pairs]
    found = ask(judge, [*pairs, *turned], cache, progress)
    return found, position_bias(found.values[: len(pairs)], found.values[len(pairs) :])


def _keys(judge: Judge, requests: Sequence[Request], cache: AnswerCache) -> list[str]:
    if not judge.compares and any(isinstance(request, PairRequest) for request in requests):
        raise ValueError(f"{judge.name} compares no pairs")
    return [cache.key(judge.identity, judge.content(request)) for request in requests]


def _missing(keys: Sequence[str], cache: AnswerCache) -> dict[str, list[int]]:
    """The keys that the cache lacks, with the requests that have them."""
    found: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if cache.get(key) is None:
            found.setdefault(key, []).append(index)
    return found
