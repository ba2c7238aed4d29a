"""A simulated trial: it waits, where a real one trains, and reports a synthetic problem's values.

Driver, searcher, queue, event logs and tables are those of a real study. So a study's budget,
cluster and search settings can be tried without a GPU or a model's weights. The values are those of
:mod:`milp_ray.search.synthetic`. It is *not* claimed that a real model behaves like them.

Neither torch nor the model is imported, so a worker is up as fast as Ray starts it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ray import tune

from milp_ray.config.models import SimulationSettings, Study
from milp_ray.config.objectives import OBJECTIVES
from milp_ray.memory.architectures import Architecture
from milp_ray.memory.placement import Placement
from milp_ray.search.synthetic import SyntheticProblem, synthetic_user
from milp_ray.trial.records import BASELINE, TrialCost, TrialReport, TrialRequest
from milp_ray.tune.cluster.processes import node_name, worker_name


@dataclass(frozen=True)
class SimulatedSpec:
    """What every simulated trial of a study shares.

    A user behaves the same wherever its alias is the same: in every session of a run, and in all
    runs with one key of aliases. What a population measures is the mean of its users.

    Attributes:
        study: as workers read it.
        architecture: of the model.
        numbers: each user's own, by alias (see :func:`milp_ray.ids.number_of`). A user's values
            follow from it and are in tables, so it must not follow from the order of the data.
        members: the numbers of the users that a trial measures, by alias, where these are others
            than the user itself.
    """

    study: Study
    architecture: Architecture
    numbers: Mapping[str, int]
    members: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def settings(self) -> SimulationSettings:
        """The study's ``simulation`` section."""
        return self.study.simulation or SimulationSettings()

    def measure(self, alias: str, placement: Placement | None) -> dict[str, float]:
        """What a placement measures, or no memory; of several users the mean."""
        problems = [self._problem(number) for number in self.members.get(alias, (self.numbers[alias],))]
        found = [p.no_memory if placement is None else p.measure(placement) for p in problems]
        return {name: fmean(values[name] for values in found) for name in found[0]}

    def problem(self, alias: str) -> SyntheticProblem:
        """The synthetic problem that stands for a user."""
        return self._problem(self.numbers[alias])

    def _problem(self, number: int) -> SyntheticProblem:
        settings = self.settings
        return synthetic_user(
            self.architecture.num_layers,
            number,
            self.study.seed,
            settings.related,
            settings.noise,
            self.study.memory.ranks,
        )

    def fails(self, alias: str, number: int) -> bool:
        """Whether a trial is one of the share that fails; the no-memory measurement never does."""
        draw = random.Random(f"failure {self.study.seed} {self.numbers[alias]} {number}").random()
        return number != BASELINE and draw < self.settings.failures


class SimulatedTrial(tune.Trainable):  # type: ignore[misc]
    """Sleeps for the simulated duration, in slices, then reports the synthetic user's values."""

    def __repr__(self) -> str:
        return f"SimulatedTrial({self._spec.study.name})"  # the actor's name in the dashboard

    def setup(self, config: dict[str, object], spec: SimulatedSpec) -> None:
        """Take the first trial; called once per actor."""
        self._spec = spec
        self._begin(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Take the next trial."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, object]:
        """Sleep for a slice, or report the end."""
        left = self._until - time.monotonic()
        if left > 0:
            time.sleep(min(left, self._spec.study.trial.slice_seconds))
        if time.monotonic() < self._until:
            return TrialReport.running("simulated").to_result()
        return self._end().to_result()

    def _end(self) -> TrialReport:
        request, seconds = self._request, self._spec.settings.seconds
        cost = TrialCost(inject_seconds=seconds, node=node_name(), worker=worker_name())
        if self._spec.fails(request.alias, request.number):
            return TrialReport.failed("simulated failure", cost)
        size = self._spec.architecture.trainable_params(request.placement)
        return TrialReport.complete({**self._values(), "trainable_params": size}, cost)

    def _begin(self, config: Mapping[str, object]) -> None:
        self._request = TrialRequest.from_config(config)
        self._until = time.monotonic() + self._spec.settings.seconds

    def _values(self) -> dict[str, float]:
        request = self._request
        found = self._spec.measure(request.alias, None if request.is_baseline else request.placement)
        # A synthetic user has one metric of texts, which stands for whatever else a study measures.
        measured = [name for name in self._spec.study.objectives if OBJECTIVES[name].exact is None]
        return dict.fromkeys(measured, found["rouge_l"]) | found
