"""Judges: what gives a response a score from 1 to 10, or says which of two is better.

To add a judge, write one module here with a function ``(settings, base) -> Judge``, decorate it
with ``@register("kind")``, name it in ``_REGISTRY`` and its settings in
:mod:`milp_ray.config.judging`. A judge answers requests; :mod:`milp_ray.evaluation.judges.scoring`
asks it for what no cache has, counts what it did not answer, and says beforehand what that costs.

A judge is given texts of users, and an endpoint sends them to another machine. Errors, losses,
caches and names hold none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from milp_ray.config.judging import EndpointSettings, LocalModelSettings, RougeProxySettings
from milp_ray.data.records import Sample, UserSplit
from milp_ray.registry import Registry

if TYPE_CHECKING:
    from milp_ray.model.base import BaseModel

LOWEST, HIGHEST = 1, 10
AnyJudgeSettings = EndpointSettings | LocalModelSettings | RougeProxySettings


class Loss(StrEnum):
    """Why a response has no score, in words that hold nothing of it."""

    NO_NUMBER = "no number in the answer"
    SEVERAL_NUMBERS = "several numbers in the answer"
    OUT_OF_RANGE = "a number outside 1 to 10"
    NO_CHOICE = "no choice, or several, in the answer"
    EMPTY = "an empty answer"
    CUT = "an answer that ended before its score"
    TIMEOUT = "timed out"
    UNREACHABLE = "no connection"
    RATE_LIMITED = "rate limit"
    SERVER_ERROR = "server error"
    REFUSED = "request refused"
    UNREADABLE = "an answer that is torn or no JSON"
    MALFORMED = "JSON that is no chat completion"
    TOO_LONG = "a prompt longer than the judge's context"
    NO_REFERENCE = "no gold response to compare with"
    NOT_ASKED = "not asked, since the judge had failed too often in a row"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a judge is told of a user and a query.

    Attributes:
        query: with its context, if it has one.
        history: what the user had written *before* the query, oldest first.
        profile: of the user, if there is one.
        reference: the gold response. Judges never see it; the ROUGE proxy does.
    """

    query: str
    history: Sequence[str] = ()
    profile: Mapping[str, str] | None = None
    reference: str | None = None

    def __repr__(self) -> str:
        return f"Exchange(query=<{len(self.query)} characters>, history={len(self.history)})"


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One response to be scored on its own."""

    exchange: Exchange
    response: str

    def __repr__(self) -> str:
        return f"ScoreRequest({self.exchange!r}, response=<{len(self.response)} characters>)"


@dataclass(frozen=True, slots=True)
class PairRequest:
    """Two responses to one query, in the order in which they are shown."""

    exchange: Exchange
    first: str
    second: str

    def __repr__(self) -> str:
        return f"PairRequest({self.exchange!r}, <{len(self.first)} and {len(self.second)} characters>)"


Request = ScoreRequest | PairRequest
#: Of a response its score in [1, 10]; of a pair 1, 0 or -1: the first is better, as good, worse.
Answer = float | Loss


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of some requests.

    Attributes:
        read: of prompts.
        written: of answers, at most.
        exact: counted by the judge's tokenizer; otherwise estimated from the texts' lengths.
    """

    read: int
    written: int
    exact: bool


class Judge(Protocol):
    """Answers requests."""

    @property
    def name(self) -> str:
        """What stands in tables. A proxy's says that it is one."""
        ...

    @property
    def identity(self) -> str:
        """All that answers depend on beside :meth:`content`: a cache's keys contain it."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it answers a :class:`PairRequest`."""
        ...

    @property
    def prices(self) -> tuple[float, float] | None:
        """Of a million tokens read and written; None where they are not known."""
        ...

    def content(self, request: Request) -> str:
        """What the answer to a request depends on: the prompt, say."""
        ...

    def tokens(self, requests: Sequence[Request]) -> Tokens:
        """What asking them takes. Asks nothing."""
        ...

    def answers(self, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
        """The answers as they come, each with its request's index, each index once.

        Closing the generator ends the asking.

        Raises:
            JudgeError: no request can be answered: a key that is refused, say.
        """
        ...


JudgeFactory = Callable[..., Judge]
_REGISTRY: Registry[JudgeFactory] = Registry(
    "judge", [f"{__name__}.{name}" for name in ("endpoint", "local_model", "rouge_proxy")]
)
register = _REGISTRY.register
judge_names = _REGISTRY.names


def make_judge(settings: AnyJudgeSettings, base: BaseModel | None = None) -> Judge:
    """The judge of some settings.

    Args:
        settings: of it.
        base: a resident base to judge with; None: the local model is loaded.

    Raises:
        JudgeError: the endpoint's key cannot be read.
        ModelError, StorageError, ClusterError: the model cannot be loaded.
    """
    factory = _REGISTRY.find(settings.kind)
    assert factory is not None
    return factory(settings, base)


def exchange_of(user: UserSplit, sample: Sample, profile: Mapping[str, str] | None = None) -> Exchange:
    """What a judge is told of a user's sample: only texts that are older than it."""
    # As in the final test: without n_hist, only texts up to the first test sample are no leak.
    cut = user.final_cut if sample.n_hist is None else sample.n_hist
    query = sample.query if sample.context is None else f"{sample.query}\n{sample.context}"
    return Exchange(query, user.history[:cut], profile, sample.response)


def control_of(exchange: Exchange, other: Exchange) -> Exchange:
    """The exchange with what is known of another user in place of its own: a judge's control.

    A response that is scored as high beside a stranger's background was not scored for fitting this
    user. Asking for controls doubles the calls.
    """
    return replace(exchange, history=other.history, profile=other.profile)
