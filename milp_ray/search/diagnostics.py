"""What a search's surrogate is worth: leave-one-out predictions, importance of factors, next gain.

A pure function of a plan, as the proposing is, with the same model on the same data. It takes a
fit, and some ten thousand means of the posterior: about what one proposal takes. What other users'
searches said (:mod:`milp_ray.search.transfer`) is *not* in it.

Sizes in comments: n observations, L layers, E settings, F searched factors with a gate each, N
samples, d features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from milp_ray.config.objectives import OBJECTIVES, Objective, maximized
from milp_ray.memory.arrays import Configs, Floats, SpaceArrays
from milp_ray.search.core.design import Design
from milp_ray.search.core.local_search import LocalSearch
from milp_ray.search.core.numerics import is_numerical
from milp_ray.search.core.pareto import hypervolume
from milp_ray.search.core.plan import Plan
from milp_ray.search.core.reference import exact_ranges, given_point
from milp_ray.search.core.threads import single_threaded
from milp_ray.search.propose import around, modelled, varying
from milp_ray.search.surrogates import make_surrogate
from milp_ray.search.surrogates.base import ModelSurrogate, SurrogateFailed
from milp_ray.search.view import SearchView

if TYPE_CHECKING:
    from milp_ray.search.acquisition.posterior import Output
    from milp_ray.search.propose import Modelled

FEWEST = 5  # observations, of fewer nothing is said
_MEANS = 20_000  # of the posterior, for one objective's importance
_CHUNK = 2_048
_INTERVAL = 1.959964  # standard deviations of a 95 % interval


@dataclass(frozen=True)
class LeftOut:
    """Each trial of a search as predicted from all others, in one objective.

    Values are on the model's scale: more is better; with ``standardize`` a unit is a standard
    deviation of the trials.

    Attributes:
        name: of the objective.
        trials: numbers of the trials, oldest first.
        measured, mean, deviation: of each; the deviation counts the noise of a measurement.
    """

    name: str
    trials: tuple[int, ...]
    measured: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def residuals(self) -> tuple[float, ...]:
        """Measured less predicted, in predicted deviations."""
        rows = zip(self.measured, self.mean, self.deviation, strict=True)
        return tuple((y - mean) / deviation for y, mean, deviation in rows)

    @property
    def covered(self) -> int:
        """How many measurements lie in their 95 % interval."""
        return sum(abs(residual) <= _INTERVAL for residual in self.residuals)


@dataclass(frozen=True)
class Diagnosis:
    """What a surrogate says of one search.

    Attributes:
        source: the surrogate that was fitted.
        left_out: an entry a measured objective that varies.
        importance: by objective and factor: the total-effect index (docs/references.md: Jansen
            1999), the share of the posterior mean's variance that goes with the factor, alone or
            together with others, where all searched factors are drawn independently, each gate open
            half of the time. Indices add up to more than 1 where factors interact.
        gain: expected hypervolume improvement of the best next trial, as a share of today's
            hypervolume, both on the model's scale; NaN where nothing beats the reference point.
        seconds: that it took.
    """

    source: str
    left_out: tuple[LeftOut, ...]
    importance: Mapping[str, Mapping[str, float]]
    gain: float
    seconds: float


def plan_of(view: SearchView, surrogate: str, options: Mapping[str, object], outcome: str, seed: int) -> Plan:
    """The plan for a search's next trial, from what can be read of it.

    An exact objective that the view cannot compute is inferred from the trials' values where they
    are a multiple of the total rank, as numbers of parameters are where layers are alike; else it
    is left out.
    """
    seen = view.observations
    objectives = tuple(found for o in view.objectives if (found := _computed(o, view)) is not None)
    names = [o.name for o in objectives]
    space = view.space
    sample = [*Design(space, 0).first(128), *(space.from_unit([end] * space.unit_dim) for end in (0.0, 1.0))]
    ranges = exact_ranges(space, objectives, sample)
    reference = view.reference
    known = None if reference is None else {name: reference[name] for name in names if name in reference}
    return Plan(
        space=space,
        objectives=objectives,
        surrogate=surrogate,
        options=dict(options),
        search=LocalSearch(),
        count=1,
        initial=False,
        design_seed=seed,
        seed=seed,
        events=0,
        observed=tuple(one.config for one in seen),
        maximized=tuple(maximized(objectives, one.values) for one in seen),
        pending=tuple(proposal.config for proposal in view.pending),
        seen=frozenset(proposal.placement.key for proposal in view.proposals),
        reference=given_point(objectives, known, ranges),
        outcome=outcome,
    )


def diagnose(plan: Plan, trials: Sequence[int]) -> Diagnosis | None:
    """Fit a plan's surrogate, and ask it; None where there is nothing to fit, or it cannot be.

    A plan of a sampler, which has no model, is fitted by ``gp``.

    Example:
        >>> from milp_ray.memory.space import MemorySpace
        >>> from milp_ray.search import Engine, Objective
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> objectives = [Objective("loss", "min")]
        >>> engine = Engine(space, objectives, initial=8, surrogate="gp", reference={"loss": 3.0})
        >>> for proposal in engine.ask(8):  # of the layers only the first one helps
        ...     engine.tell(proposal.id, {"loss": 2.0 if proposal.config.gates[0] else 2.5})
        >>> plan = plan_of(engine, "gp", {}, "standardize", seed=0)
        >>> found = diagnose(plan, [seen.id for seen in engine.observations])
        >>> max(found.importance["loss"], key=found.importance["loss"].get)
        'layer 0'

    Args:
        plan: of a search.
        trials: numbers of its observations, in their order.
    """
    began = time.monotonic()
    kept, _ = varying(plan)
    if kept is None or len(plan.observed) < FEWEST:
        return None
    surrogate = make_surrogate(plan.surrogate, plan.options)
    if not isinstance(surrogate, ModelSurrogate):
        surrogate = make_surrogate("gp")
        assert isinstance(surrogate, ModelSurrogate)
    try:
        with single_threaded():
            model = modelled(kept, surrogate)
            measured = [index for index, o in enumerate(kept.objectives) if o.exact is None]
            return Diagnosis(
                model.fitted.source,
                tuple(_left_out(model, index, kept.objectives[index].name, trials) for index in measured),
                {kept.objectives[index].name: importance(kept, model.outputs[index]) for index in measured},
                _gain(kept, model),
                time.monotonic() - began,
            )
    except SurrogateFailed:
        return None
    except Exception as error:
        if not is_numerical(error):
            raise
        return None


def importance(plan: Plan, output: Output) -> dict[str, float]:
    """The total-effect index of every searched factor on an output's mean; 0 where it is constant.

    A layer's gate is a factor, called ``layer 3``. docs/references.md: Jansen 1999.
    """
    arrays = SpaceArrays(plan.space)
    names = _factors(plan)
    N = max(64, min(1_024, _MEANS // (len(names) + 1)))
    # 1) two independent samples of all factors
    base, other = (_independent(plan, N, np.random.default_rng((plan.seed, half))) for half in (0, 1))
    at_base = _means(arrays, output, base)  # N
    variance = float(at_base.var())
    if variance <= 1e-12:
        return dict.fromkeys(names, 0.0)
    # 2) of each factor, what changes where it alone comes from the other sample
    result = {}
    for name in names:
        changed = _means(arrays, output, _with(base, other, name, plan))  # N
        result[name] = float(np.square(at_base - changed).mean() / 2 / variance)
    return result


def _factors(plan: Plan) -> list[str]:
    space = plan.space
    layers = [f"layer {index}" for index in range(space.num_layers)] if space.layer_gates.searched else []
    numbers = [("n", space.lora_count), ("rank", space.lora_rank)]
    named = [name for name, factor in numbers if factor.searched]
    return [*layers, *named, *(setting.name for setting in space.settings)]


def _independent(plan: Plan, count: int, generator: np.random.Generator) -> Configs:
    """Configurations whose factors are drawn independently: each gate open half of the time."""
    space = plan.space
    drawn = SpaceArrays(space).sample(count, int(generator.integers(2**31)))
    if not space.layer_gates.searched:
        return drawn
    gates = generator.random((count, space.num_layers)) < 0.5  # N x L
    return _following(replace(drawn, gates=gates), plan)


def _with(base: Configs, other: Configs, name: str, plan: Plan) -> Configs:
    """``base`` with one factor of ``other``."""
    if name.startswith("layer "):
        gates, layer = base.gates.copy(), int(name.removeprefix("layer "))
        gates[:, layer] = other.gates[:, layer]
        return _following(replace(base, gates=gates), plan)
    if name == "n":
        return replace(base, nums=other.nums)
    if name == "rank":
        return replace(base, sizes=other.sizes)
    settings, column = base.settings.copy(), base.names.index(name)
    settings[:, column] = other.settings[:, column]
    return replace(base, settings=settings)


def _following(configs: Configs, plan: Plan) -> Configs:
    """n follows the gates where it is not searched."""
    count = plan.space.lora_count
    if count.searched:
        return configs
    nums = np.zeros_like(configs.nums) + count.fixed(configs.gates.sum(axis=1, dtype=np.int32))
    return replace(configs, nums=nums)


def _means(arrays: SpaceArrays, output: Output, configs: Configs) -> Floats:
    """Posterior means ``N``; no active layer is no memory, the features' origin."""
    import torch

    from milp_ray.search.acquisition.posterior import GaussianOutput

    assert isinstance(output, GaussianOutput)
    X = torch.as_tensor(arrays.features(arrays.rows(configs)))  # N x d
    with torch.no_grad():
        return torch.cat([output.means(part) for part in torch.split(X, _CHUNK)]).numpy()


def _left_out(model: Modelled, index: int, name: str, trials: Sequence[int]) -> LeftOut:
    import torch

    from milp_ray.search.acquisition.posterior import GaussianOutput

    output = model.outputs[index]
    assert isinstance(output, GaussianOutput)
    with torch.no_grad():
        mean, deviation = output.leave_one_out()
    measured = model.data.Y[:, index]
    return LeftOut(
        name, tuple(trials), tuple(measured.tolist()), tuple(mean.tolist()), tuple(deviation.tolist())
    )


def _gain(plan: Plan, model: Modelled) -> float:
    """What the best next trial is expected to add to the hypervolume, as a share of it."""
    data = model.data
    volume = hypervolume(data.Y.numpy(), data.ref_point.tolist())
    if volume <= 0.0:
        return math.nan

    def values(rows: Floats) -> Floats:  # c x (L + E) -> c
        found: Floats = model.acquisition(data.of_rows(rows)).numpy()
        return found

    found = plan.search.search(data.arrays, values, seen=plan.seen, around=around(plan), seed=plan.seed)
    if found.best is None:
        return 0.0
    best = data.arrays.rows(Configs.of([found.best], plan.space))
    return math.exp(float(values(best)[0])) / volume


def _computed(objective: Objective, view: SearchView) -> Objective | None:
    """An objective with its function, where it is an exact one and its view has none."""
    if objective.exact is not None or OBJECTIVES[objective.name].exact is None:
        return objective
    found = [
        seen.values[objective.name] / sum(seen.placement.as_dict().values()) for seen in view.observations
    ]
    if not found or np.ptp(found) > 1e-9 * abs(found[0]):
        return None
    per_rank = found[0]
    return replace(objective, exact=lambda placement: per_rank * sum(placement.as_dict().values()))
