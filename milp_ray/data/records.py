"""What a user is to milp_ray: an id, a history in time order, and query/response samples.

No reading and no splitting here: see :mod:`milp_ray.data.readers` and :mod:`milp_ray.data.splits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One exchange of a user. ``history[:n_hist]`` is what the user had written before it.

    Attributes:
        query: what was asked of, or said to, the user's model.
        response: what it should answer.
        context: further text that belongs to the query (a product page, a post's body), if any.
        n_hist: how many history texts precede the sample; None when the source does not say.
        label: the class, or the number on a scale, that the response stands for, where the data set
            has such; the response itself where that is the label.
        choices: all responses that the data set allows, the right one among them; empty: any.
        source_id: the data set's own id of the sample, for predictions in its form; as private as a
            user's id.
    """

    query: str
    response: str
    context: str | None = None
    n_hist: int | None = None
    label: str | None = None
    choices: tuple[str, ...] = ()
    source_id: str | None = None

    def __repr__(self) -> str:  # user text must not reach a traceback or a log by way of repr
        return f"Sample(query=<{len(self.query)} characters>, response=<{len(self.response)} characters>)"


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One person as read from a data source, before any split."""

    user_id: str
    history: tuple[str, ...]
    samples: tuple[Sample, ...]
    profile: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return f"UserRecord(history={len(self.history)}, samples={len(self.samples)})"


@dataclass(frozen=True, slots=True)
class UserSplit:
    """One user's data, divided in time order, known by alias only.

    ``n_hist`` of every sample is resolved. Stage 1 of a trial may read ``history[:search_cut]``
    (nothing at or after the first validation sample), stage 1 of the final job
    ``history[final_start:final_cut]`` (nothing at or after the first test sample). ``final_start``
    is above 0 only where ``data.max_history`` limits what one training run reads: each of the two
    histories then holds the newest texts before its cut.

    In the by-user regime one of ``train``, ``validation`` and ``test`` holds all samples of the
    user.

    ``profile`` is what the source says of the user beside texts, names and values; no part of a
    training reads it. Fields that hold the answer of a held-out sample are left out.
    """

    alias: str
    history: tuple[str, ...]
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    search_cut: int
    final_cut: int
    final_start: int = 0
    profile: tuple[tuple[str, str], ...] = ()

    @property
    def search_history(self) -> tuple[str, ...]:
        """The texts stage 1 of a trial trains on, oldest first."""
        return self.history[: self.search_cut]

    @property
    def final_history(self) -> tuple[str, ...]:
        """The texts stage 1 of the final job trains on, oldest first."""
        return self.history[self.final_start : self.final_cut]

    def __repr__(self) -> str:
        return (
            f"UserSplit({self.alias}, history={len(self.history)}, train={len(self.train)}, "
            f"validation={len(self.validation)}, test={len(self.test)})"
        )
