"""One trial as plain data, from the proposal to the table: its request, reports, state and cost.

A :class:`TrialRequest` goes from the queue through Ray Tune to a worker. A :class:`TrialReport`
comes back after every slice of the trial. Both turn into the plain values that Tune carries, and
back. Neither has a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from milp_ray.errors import MilpRayError, from_plain
from milp_ray.memory.placement import Placement

BASELINE = -1


class TrialState(StrEnum):
    """Where a trial stands.

    Attributes:
        WAITING: it was proposed, and no worker has it.
        RUNNING: a worker has it.
        LOST: its worker is gone, or could not be set up; it is decided next whether it runs again.
        COMPLETE: it was measured.
        FAILED: it ended without a measurement, and does not run again.
        ABANDONED: it was given up without an outcome. It stays pending in the event log, so a
            resume runs it again.
    """

    WAITING = "waiting"
    RUNNING = "running"
    LOST = "lost"
    COMPLETE = "complete"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class TrialRequest:
    """One trial to run.

    Attributes:
        alias: of the user.
        number: within the user's search; :data:`BASELINE` for the no-memory measurement.
        placement: to be trained; empty for the no-memory measurement.
        source: who proposed it.
    """

    alias: str
    number: int
    placement: Placement
    source: str = ""

    @property
    def is_baseline(self) -> bool:
        """Whether it measures without a memory; the event log has it only once it has ended."""
        return self.number == BASELINE

    def to_config(self) -> dict[str, object]:
        """The trial's config in Ray Tune, which writes it to files and the dashboard verbatim."""
        return {"user": self.alias, "trial": self.number, "placement": self.placement.key}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> TrialRequest:
        """The request that :meth:`to_config` turned into a config, but for its source."""
        number: Any = config["trial"]
        return cls(str(config["user"]), int(number), Placement.from_key(str(config["placement"])))


@dataclass(frozen=True)
class TrialCost:
    """What a trial took, on the worker that ended it.

    Attributes:
        inject_seconds, instruct_seconds: of the two stages of training.
        eval_seconds: of measuring.
        train_tokens: real (unpadded) tokens that were trained on, every epoch counted.
        gpu_memory: largest allocation in one worker, bytes, the base included; 0 on a CPU.
        node: a short name of the worker's node: the first digits of its id in Ray's dashboard.
        attempts: how often it was begun in this session of the run, this time included.
        ended: when the driver heard of its end, in seconds since 1970; 0 where it has not yet.
    """

    inject_seconds: float = 0.0
    instruct_seconds: float = 0.0
    eval_seconds: float = 0.0
    train_tokens: int = 0
    gpu_memory: int = 0
    node: str = ""
    attempts: int = 1
    ended: float = 0.0

    @property
    def train_seconds(self) -> float:
        """Of both stages of training."""
        return self.inject_seconds + self.instruct_seconds

    def to_plain(self) -> dict[str, float | str]:
        """As JSON values; seconds to a tenth of a millisecond."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: round(value, 4) if type(value) is float else value for name, value in values.items()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> TrialCost:
        """What :meth:`to_plain` gave; what a later version adds is left out.

        Raises:
            TypeError, ValueError: a value is of another kind.
        """
        kinds = {one.name: type(getattr(cls, one.name)) for one in fields(cls)}
        return cls(**{name: kinds[name](value) for name, value in values.items() if name in kinds})


@dataclass(frozen=True)
class TrialReport:
    """What a worker says of its trial after a slice.

    Attributes:
        state: RUNNING: it goes on; COMPLETE; FAILED; LOST: this worker cannot work, another may.
        stage: of a trial that is running.
        values: what it measured, by name.
        reason: why it failed.
        cost: what it took; None where that is not known.
        error: of FAILED: one that every trial would meet, which ends the run; of LOST: why the
            worker cannot work.
        node: of LOST: the address of the worker's node; empty where unknown.
        alone: this rank failed, and the others of its group do not know.
        workers_died: of FAILED: its workers died more often than may be. Whose fault that is, the
            driver decides.
        by_user: of COMPLETE, where it measured a population: each user's values, by alias.
    """

    state: TrialState
    stage: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    cost: TrialCost | None = None
    error: MilpRayError | None = None
    node: str = ""
    alone: bool = False
    workers_died: bool = False
    by_user: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def running(cls, stage: str) -> TrialReport:
        """The trial goes on."""
        return cls(TrialState.RUNNING, stage)

    @classmethod
    def complete(
        cls,
        values: Mapping[str, float],
        cost: TrialCost | None = None,
        by_user: Mapping[str, Mapping[str, float]] | None = None,
    ) -> TrialReport:
        """It was measured."""
        return cls(TrialState.COMPLETE, values=values, cost=cost, by_user=by_user or {})

    @classmethod
    def failed(cls, reason: str, cost: TrialCost | None = None, *, alone: bool = False) -> TrialReport:
        """It ended without a measurement."""
        return cls(TrialState.FAILED, reason=reason, cost=cost, alone=alone)

    @classmethod
    def died_too_often(cls, reason: str) -> TrialReport:
        """Its workers died, and all its retries are used up."""
        return cls(TrialState.FAILED, reason=reason, workers_died=True)

    @classmethod
    def fatal(cls, error: MilpRayError) -> TrialReport:
        """It cannot run, and neither can any other."""
        return cls(TrialState.FAILED, error=error)

    @classmethod
    def lost(cls, error: MilpRayError, node: str) -> TrialReport:
        """Its worker cannot work, and ends."""
        return cls(TrialState.LOST, error=error, node=node)

    @property
    def is_over(self) -> bool:
        """Whether its worker is done with the trial."""
        return self.state in (TrialState.COMPLETE, TrialState.FAILED)

    def to_result(self) -> dict[str, object]:
        """The result of a step in Ray Tune.

        The report is one text, since Tune takes nested values apart. The values stand beside it for
        people who look at Tune's own output.
        """
        plain: dict[str, object] = {"state": self.state.value}
        for name in ("stage", "reason", "node", "alone", "workers_died"):
            if value := getattr(self, name):
                plain[name] = value
        if self.values:
            plain["values"] = dict(self.values)
        if self.by_user:
            plain["by_user"] = {alias: dict(values) for alias, values in self.by_user.items()}
        if self.cost is not None:
            plain["cost"] = self.cost.to_plain()
        if self.error is not None:
            plain["error"] = self.error.to_plain()
        return {"done": self.is_over, "report": json.dumps(plain), **self.values}

    @classmethod
    def from_result(cls, result: Mapping[str, object]) -> TrialReport:
        """The report that :meth:`to_result` turned into a result.

        A result of Tune's own, before a worker's first one, says only that the trial is running.

        Raises:
            KeyError, ValueError: the report is damaged.
        """
        if "report" not in result:
            return cls.running("")
        plain = json.loads(str(result["report"]))
        return cls(
            TrialState(plain["state"]),
            plain.get("stage", ""),
            plain.get("values", {}),
            plain.get("reason", ""),
            TrialCost.from_plain(plain["cost"]) if "cost" in plain else None,
            from_plain(plain["error"]) if "error" in plain else None,
            plain.get("node", ""),
            plain.get("alone", False),
            plain.get("workers_died", False),
            plain.get("by_user", {}),
        )
