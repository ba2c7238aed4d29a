"""A trial as a Ray Tune class Trainable on a resident base (DESIGN, decision 5).

The actor loads the base model once and keeps it over trials and users; what changes from trial to trial is
the adapter. A step is a slice of a few seconds, so that a stop request is obeyed in the middle of a trial.
One worker per trial; worker groups are not covered here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray import ObjectRef, tune

from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import ClusterError, MilpRayError, TrialFailed, place_of
from milp_ray.ids import child, trial_label
from milp_ray.memory.space import Placement
from milp_ray.tune.queue import BASELINE

if TYPE_CHECKING:
    from milp_ray.training.base import BaseModel
    from milp_ray.training.loop import Progress
    from milp_ray.training.trial import Measurement, Trial


@dataclass(frozen=True)
class TrialSpec:
    """What every trial of a study shares. Sent once per worker, by way of the object store.

    ``users`` maps aliases to object references: texts travel in memory to the workers that need them, and
    stand in no config, name or file of Ray's.
    """

    study: Study
    users: Mapping[str, ObjectRef[UserSplit]]
    events: Path
    adapters: Path


def cannot_start(error: Exception) -> ClusterError:
    """The error that ends a run when a worker cannot be set up."""
    return ClusterError(
        f"a worker could not be set up: {place_of(error)}",
        expected="a worker that imports the pinned packages and has room for the base model",
        remedy="look into the worker's log in Ray's session folder; is another job on its GPU?",
    )


class MemoryTrial(tune.Trainable):  # type: ignore[misc]
    """Inject one placement for one user, then measure the objectives (the no-memory point: only measure)."""

    def setup(self, config: dict[str, object], spec: TrialSpec) -> None:
        """Load the base; called once per actor."""
        import torch

        from milp_ray.training.base import load_base

        if (cpus := self.trial_resources.head_cpus) >= 1:
            torch.set_num_threads(int(cpus))
        self._spec = spec
        self._trial: Trial | None = None
        self._fatal: MilpRayError | None = None
        # A base that cannot be loaded here fails every trial: told by the first step, it ends the run, where
        # an error now would have Tune start the actor again and then write off one trial after the other.
        try:
            self._base: BaseModel = load_base(spec.study.model)
            self._begin(config)
        except MilpRayError as error:
            self._fatal = error
        except Exception as error:
            self._fatal = cannot_start(error)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Take the next trial on the same base."""
        if self._fatal is None:
            self._begin(new_config)
        return True

    def step(self) -> dict[str, object]:
        """Work for ``trial.slice_seconds``, or to the end of the trial."""
        deadline = time.monotonic() + self._spec.study.trial.slice_seconds
        if self._fatal is not None:
            return self._end(fatal=self._fatal)
        try:
            for progress in self._steps:
                if time.monotonic() >= deadline:
                    return {"finished": False, "done": False, "stage": progress.stage}
            return self._finish()
        except TrialFailed as failure:
            return self._end(failure.reason)
        except MilpRayError as error:
            return self._end(fatal=error)
        except Exception as error:
            # Whatever it was, this process may be broken (a CUDA error sticks): Tune replaces it and retries.
            raise RuntimeError(place_of(error)) from None

    def cleanup(self) -> None:
        """Give the base back."""
        if self._trial is not None:
            self._trial.close()

    def _begin(self, config: Mapping[str, object]) -> None:
        import ray

        from milp_ray.training.trial import Trial

        if self._trial is not None:
            self._trial.close()
        self._alias, self._number = str(config["user"]), int(config["trial"])  # type: ignore[call-overload]
        study = self._spec.study
        self._trial = Trial(
            self._base,
            ray.get(self._spec.users[self._alias]),
            Placement.from_key(str(config["placement"])),
            study,
            phase="search",
            # One stream of random numbers per study, not per trial: two placements of a user then differ by
            # the placement alone, which takes the order's luck out of the comparison.
            seed=study.seed,
        )
        self._steps: Iterator[Progress] = self._trial.steps()

    def _finish(self) -> dict[str, object]:
        if self._trial is None or self._trial.result is None:
            return self._end("the trial ended without a measurement")
        measured = self._trial.result
        if self._number != BASELINE and self._is_non_dominated(measured):
            self._trial.save(child(self._spec.adapters, self._alias, trial_label(self._number)))
        self._trial.close()
        return {
            "finished": True,
            "done": True,
            "reason": "",
            "loss": measured.loss,
            "rouge_l": measured.rouge_l,
            "trainable_params": measured.trainable_params,
            "train_seconds": measured.train_seconds,
            "eval_seconds": measured.eval_seconds,
            "train_tokens": measured.train_tokens,
        }

    def _end(self, reason: str = "", fatal: MilpRayError | None = None) -> dict[str, object]:
        """End without a measurement: the trial failed, or (``fatal``) storage or model fail every trial."""
        if self._trial is not None:
            self._trial.close()
        ending: dict[str, object] = {"finished": True, "done": True, "reason": reason}
        # As text, since Tune takes nested values apart.
        return ending | ({"fatal": json.dumps(fatal.to_plain())} if fatal else {})

    def _is_non_dominated(self, measured: Measurement) -> bool:
        """Against what the user's event log holds now: trials that run at this moment may still beat it."""
        from milp_ray.search.events import told_values
        from milp_ray.search.pareto import dominated_by_any

        names = self._spec.study.objectives
        signs = [1.0 if name == "rouge_l" else -1.0 for name in names]
        values = [sign * float(getattr(measured, name)) for sign, name in zip(signs, names, strict=True)]
        others = [
            [sign * told[name] for sign, name in zip(signs, names, strict=True)]
            for number, told in told_values(child(self._spec.events, f"{self._alias}.jsonl"))
            if number != self._number
        ]
        return not dominated_by_any(values, others)
