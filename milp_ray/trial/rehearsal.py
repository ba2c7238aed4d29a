"""A worker's first steps, tried in a process of their own: load the base, train, measure.

A base that does not work at all (numbers that are not finite, modules that fail in the first step,
a library that crashes) is reported before Ray is started, and the driver's process stays clean. The
code is a trial's own, on the smallest work that goes through all of it: two texts, one sample.
Does *not* cover bases that this machine does not hold easily, whose headers
:mod:`milp_ray.model.verify` reads.

:func:`main` reads a :class:`Rehearsal` as JSON from its input; its last line is JSON, too.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import psutil
from pydantic import TypeAdapter

from milp_ray.config.models import Study
from milp_ray.data.records import UserSplit
from milp_ray.errors import MilpRayError, ModelError, TrialFailed, exception_site

GIB = 2**30
MOST_BYTES = 4 * GIB
"""The largest base that is tried: bytes, in the dtype it computes in."""

_ROOM = 3  # times the base: it is read, then moved, and a step needs memory beside it


@dataclass(frozen=True)
class Rehearsal:
    """A study, and the user whose trial is tried."""

    study: Study
    user: UserSplit

    def to_json(self) -> str:
        """JSON that :meth:`from_json` reads back equal."""
        return json.dumps({"study": self.study.model_dump(mode="json"), "user": asdict(self.user)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        # Whatever fields a user has: a list that was a tuple cannot be a key of a cache.
        user = TypeAdapter(UserSplit).validate_python(values["user"])
        return cls(Study.model_validate_json(json.dumps(values["study"])), user)


def too_large(study: Study, parameters: int) -> str:
    """Why no first step is tried on this machine; empty where one is.

    Args:
        study: whose base it is.
        parameters: of the base.
    """
    size = parameters * (2 if study.model.dtype == "bfloat16" else 4)
    if size > MOST_BYTES:
        return (
            f"a base of {size / GIB:.1f} GiB is larger than the {MOST_BYTES // GIB} GiB that are tried here"
        )
    if size * _ROOM > psutil.virtual_memory().available:
        return f"a base of {size / GIB:.1f} GiB is too large for this machine's free memory"
    return ""


def rehearse(rehearsal: Rehearsal) -> None:
    """Load the base as a worker does, train on two texts of the user, and measure one sample.

    Raises:
        MilpRayError: every worker would raise it, as far as a CPU can tell.
    """
    from milp_ray.memory.placement import Placement
    from milp_ray.model.base import load_base
    from milp_ray.trial.lifecycle import Trial

    study = rehearsal.study
    # On the CPU: a worker's GPU may be on another machine, or in another's use.
    model = study.model.model_copy(update={"device": "cpu"})
    trial = study.trial.model_copy(update={"epochs": 1, "instruct_epochs": 1, "max_new_tokens": 2})
    study = study.model_copy(update={"model": model, "trial": trial})
    base = load_base(model)
    smallest = Placement(((0, min(*study.memory.ranks, base.architecture.width)),))
    try:
        with Trial(base, _shortest(rehearsal.user), smallest, study, seed=study.seed) as tried:
            tried.run()
    except TrialFailed as failure:
        raise _unusable(f"a first step on it fails: {failure.reason}") from None
    except MilpRayError:
        raise
    except Exception as error:  # without its message, which may quote a text
        raise _unusable(f"a first step on it fails: {exception_site(error)}") from None


def _unusable(fact: str) -> ModelError:
    return ModelError(
        f"the base model can be loaded, and {fact}",
        where="model.path",
        expected="a base that can be trained and measured",
        remedy="try it with transformers alone (one forward and one backward pass), or fetch it again",
    )


def _shortest(user: UserSplit) -> UserSplit:
    """The user with two texts and two samples, short ones: what is wrong for all shows in them."""
    texts = tuple(sorted(user.search_history, key=len)[:2])
    samples = sorted(user.train, key=lambda sample: len(sample.query) + len(sample.response))[:1]
    one = min(user.validation, key=lambda sample: len(sample.query) + len(sample.response))
    return replace(
        user,
        history=texts,
        train=tuple(samples),
        validation=(one,),
        test=(),
        search_cut=len(texts),
        final_start=0,
        final_cut=len(texts),
    )


def main() -> None:
    """The process's work. The kernel ends it first when memory runs out; its last line answers."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    rehearsal = Rehearsal.from_json(sys.stdin.read())
    try:
        rehearse(rehearsal)
        answer: dict[str, object] = {"fault": None}
    except MilpRayError as error:
        answer = {"fault": error.to_plain()}
    except Exception as error:
        answer = {"broke": exception_site(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
