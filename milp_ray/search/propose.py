"""The proposing: from a plan to candidates, by a pure function that can run anywhere.

:func:`propose` needs neither the engine nor its lock, so it can run in a thread or a Ray task while
trials are told. It is deterministic: the same plan gives the same candidates on the same machine.
What becomes of the candidates is the engine's business (``Engine.accept``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from milp_ray.memory.factors import MemoryConfig
from milp_ray.search.core.design import Design
from milp_ray.search.core.numerics import is_numerical
from milp_ray.search.core.pareto import non_dominated
from milp_ray.search.core.plan import Plan
from milp_ray.search.core.records import GIVEN, TRANSFER, Candidates
from milp_ray.search.core.threads import single_threaded
from milp_ray.search.surrogates import make_surrogate
from milp_ray.search.surrogates.base import (
    Fitted,
    ModelSurrogate,
    PlanSampler,
    Sampler,
    SurrogateFailed,
)
from milp_ray.search.transfer.warm_start import COLD, starts, warm_start

if TYPE_CHECKING:
    from milp_ray.memory.arrays import Floats
    from milp_ray.search.acquisition.log_nehvi import Acquisition
    from milp_ray.search.acquisition.outcome_transforms import PlanTensors
    from milp_ray.search.acquisition.posterior import Output

_AROUND = 4  # points of the front whose neighbours join the pool of starts
_FEW = 3  # of fewer measurements nothing is called constant


def propose(plan: Plan) -> Candidates:
    """Up to ``count`` candidates, distinct and not seen; none if the space has none left.

    Where arithmetic fails on this search's data, what stood on it is left out, with a note: other
    users' searches, or the model (``sobol`` proposes instead). So is an objective that is the same
    in every trial.

    Raises:
        SearchError: the surrogate is unknown, or an exact objective is not finite somewhere.
    """
    if plan.given:
        return Candidates(plan.given[: plan.count], GIVEN)
    warm, notes = COLD, tuple[str, ...]()
    if plan.transfer_data is not None:
        try:
            with single_threaded():
                warm = warm_start(plan)
        except Exception as error:
            if not is_numerical(error):
                raise
            notes = (f"transfer: {type(error).__name__}; proposed without other users' searches",)
    if warm.configs:
        return Candidates(warm.configs, TRANSFER)
    initial = plan.initial and not warm.design_over
    found = _cold(replace(plan, count=min(plan.count, warm.others), initial=initial))
    return Candidates(found, found.source, (*notes, *found.notes))


def _cold(plan: Plan) -> Candidates:
    if plan.initial:
        return Candidates(Design(plan.space, plan.design_seed).first(plan.count, plan.seen), "initial")
    kept, notes = varying(plan)
    found = _by_surrogate(kept) if kept is not None else _by_sobol(plan)
    return Candidates(found, found.source, (*notes, *found.notes))


def varying(plan: Plan) -> tuple[Plan | None, tuple[str, ...]]:
    """The plan by those objectives that differ between trials, None without a measured one; notes.

    A model of a constant says nothing, and beside it neither do hypervolumes.
    """
    columns = list(zip(*plan.maximized, strict=True)) if len(plan.maximized) >= _FEW else []
    constant = {
        o.name: o.maximized(column[0])
        for o, column in zip(plan.objectives, columns, strict=False)
        if o.exact is None and max(column) == min(column)
    }
    notes = tuple(
        f"{name} is {value:.4g} in every trial: left out of the search until that changes"
        for name, value in constant.items()
    )
    kept = [index for index, o in enumerate(plan.objectives) if o.name not in constant]
    rest = replace(
        plan,
        objectives=tuple(plan.objectives[index] for index in kept),
        maximized=tuple(tuple(row[index] for index in kept) for row in plan.maximized),
        reference=tuple(plan.reference[index] for index in kept) if plan.reference else (),
    )
    measured = any(o.exact is None for o in rest.objectives)
    return rest if measured else None, tuple(note for note in notes if note not in plan.noted)


def _by_sobol(plan: Plan, *notes: str) -> Candidates:
    sobol = make_surrogate("sobol")
    assert isinstance(sobol, Sampler)
    return _sampled(plan, sobol, "sobol", *notes)


def _by_surrogate(plan: Plan) -> Candidates:
    surrogate = make_surrogate(plan.surrogate, plan.options)
    if isinstance(surrogate, Sampler):
        return _sampled(plan, surrogate, plan.surrogate)
    try:
        with single_threaded():
            if isinstance(surrogate, PlanSampler):
                return surrogate.candidates(plan)
            return _by_model(plan, surrogate)
    except SurrogateFailed as failure:
        reason = str(failure)
    except Exception as error:  # a fit that succeeded may still be one that nothing can be computed from
        if not is_numerical(error):
            raise
        reason = f"{plan.surrogate}: {type(error).__name__}"
    return _by_sobol(plan, f"{reason}; sobol proposed instead")


def _sampled(plan: Plan, sampler: Sampler, source: str, *notes: str) -> Candidates:
    return Candidates(sampler.configs(plan.space, plan.seen, plan.count, plan.seed), source, notes)


@dataclass(frozen=True)
class Modelled:
    """A plan's model and acquisition.

    Attributes:
        data: the plan as tensors.
        fitted: models of the measured objectives, in order.
        outputs: of all objectives.
        acquisition: over rows of inputs.
    """

    data: PlanTensors
    fitted: Fitted
    outputs: list[Output]
    acquisition: Acquisition


def modelled(plan: Plan, surrogate: ModelSurrogate) -> Modelled:
    """Fit a plan's measured objectives anew.

    Raises:
        SurrogateFailed: no model could be fitted.
    """
    from milp_ray.search.acquisition.log_nehvi import Acquisition, with_exact
    from milp_ray.search.acquisition.outcome_transforms import PlanTensors

    # 1) placements as features, values on one scale; exact objectives are input columns instead
    data = PlanTensors(plan)
    measured = [index for index, o in enumerate(plan.objectives) if o.exact is None]
    exact = [index for index, o in enumerate(plan.objectives) if o.exact is not None]
    X_baseline = data.inputs(plan.observed)  # n x D, D = d + len(exact)
    d = plan.space.num_features
    # 2) a model of the measured objectives
    train_X, train_Y = (
        X_baseline[:, :d].contiguous(),
        data.Y[:, measured].contiguous(),
    )  # n x d, n x measured
    fitted: Fitted = surrogate.fit(train_X, train_Y, plan.seed)
    # 3) the acquisition, which takes exact objectives and pending trials into account
    outputs = with_exact(fitted, exact, len(plan.objectives), d)
    pending = data.inputs(plan.pending)  # p x D
    acquisition = Acquisition(outputs, data.ref_point, X_baseline, pending, seed=plan.seed)
    return Modelled(data, fitted, outputs, acquisition)


def _by_model(plan: Plan, surrogate: ModelSurrogate) -> Candidates:
    """Candidates of greatest acquisition value, by a model that is fitted anew."""
    from milp_ray.memory.arrays import Configs

    model = modelled(plan, surrogate)
    data, acquisition = model.data, model.acquisition
    taken, chosen = set(plan.seen), list[MemoryConfig]()
    near = around(plan)
    # Where other users' memories tend to be, if that is known.
    warm = Configs.of(starts(plan), plan.space)

    def values(rows: Floats) -> Floats:  # c x (L + E) -> c
        result: Floats = acquisition(data.of_rows(rows)).numpy()
        return result

    # One candidate after the other, each pending for the next
    while len(chosen) < plan.count:
        found = plan.search.search(
            data.arrays, values, seen=taken, around=near, seed=plan.seed + len(chosen), warm=warm
        )
        if found.best is None:
            chosen.extend(Design(plan.space, plan.seed).first(plan.count - len(chosen), taken))
            break
        warm = found.top
        chosen.append(found.best)
        taken.add(plan.space.placement(found.best).key)
        if len(chosen) < plan.count:
            acquisition.add_pending(data.inputs([found.best]))
    return Candidates(chosen, model.fitted.source, model.fitted.notes)


def around(plan: Plan) -> list[MemoryConfig]:
    """The newest points of the front: their neighbourhoods have been looked through least."""
    front = non_dominated(plan.maximized).nonzero()[0]
    return [plan.observed[index] for index in front[::-1][:_AROUND]]
