"""A search as an Ax experiment: the record that people open with Ax's own tools.

Built from an engine when it is needed, through Ax's public client only (``ax.api.client.Client``).
What Ax sees of a factor says the factor (:attr:`milp_ray.memory.factors.Factor.parameters`): gates
are whole numbers 0 and 1 with at least one of them 1, n a whole number, r an ordered choice;
factors that are not searched, or have one value only, are left out. Proposals do *not* come from
Ax: trials are attached with what was proposed and told elsewhere. Importing this module is cheap,
calling it imports Ax (several seconds).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from milp_ray.config.objectives import Objective, in_units
from milp_ray.errors import SearchError
from milp_ray.memory.factors import MemoryConfig, Parameter
from milp_ray.memory.space import MemorySpace
from milp_ray.search.engine import Engine
from milp_ray.storage import atomic_write

if TYPE_CHECKING:
    from ax.api.client import Client
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    from milp_ray.search.core.plan import Plan


def build_client(name: str, engine: Engine) -> Client:
    """An Ax client with every trial of an engine: completed, failed (with the reason) or running.

    Trial indices are the proposals' ids. The reference point, where there is one and there are
    several objectives, becomes the objectives' thresholds. Ax's analyses work on the client right
    away; ``predict`` does once one of them, or ``get_next_trials``, has fitted the model: Ax
    neither saves a fitted one nor fits one to predict.

    Args:
        name: of the experiment; an alias, never a raw user id.
        engine: whose search it is.

    Raises:
        SearchError: the space has a single configuration, which is no search space to Ax.
    """
    client = new_client(name, engine.space, engine.objectives, _thresholds(engine))
    # Ax's front, predictions and analyses come from a strategy, whose proposals are never asked
    # for. One without a model (random_search) refuses to predict, and half of the analyses are
    # missing.
    _use_model(client, "fast")
    _attach(client, engine)
    return client


def client_of_plan(plan: Plan, method: Literal["fast", "quality"]) -> Client:
    """A client that knows what a plan knows, and proposes by Ax's own ``method``.

    Raises:
        SearchError: the space has a single configuration.
    """
    client = new_client("plan", plan.space, plan.objectives, seed=plan.seed % 2**31)
    _use_model(client, method)
    for config, values in zip(plan.observed, plan.maximized, strict=True):
        index = client.attach_trial(dict(parameters_of(plan.space, config)))
        client.complete_trial(index, raw_data=in_units(plan.objectives, values))
    for config in plan.pending:
        client.attach_trial(dict(parameters_of(plan.space, config)))
    return client


def config_of(space: MemorySpace, parameters: Mapping[str, object]) -> MemoryConfig:
    """The configuration that Ax's parameters stand for."""
    config = space.smallest()
    for factor in space.factors:
        if own := factor.parameters:
            value = factor.from_parameters([parameters[parameter.name] for parameter in own])
            config = space.changed(config, factor, value)
    return config


def has_parameters(space: MemorySpace) -> bool:
    """Whether a space is one to Ax, without importing it: a single configuration is none."""
    return any(factor.parameters for factor in space.factors)  # without Ax


def new_client(
    name: str,
    space: MemorySpace,
    objectives: Sequence[Objective],
    thresholds: list[str] | None = None,
    *,
    seed: int = 0,
) -> Client:
    """A client with the space and the objectives, without trials or a generation strategy.

    Raises:
        SearchError: the space has a single configuration, which is no search space to Ax.
    """
    for chatty in ("ax.api.client", "ax.storage.sqa_store.with_db_settings_base"):
        logging.getLogger(chatty).addFilter(_no_chatter)  # Ax sets its loggers' levels itself, on import
    from ax.api.client import Client

    parameters = _parameters(space)
    if not parameters:
        raise SearchError(
            "a space with one configuration makes no Ax experiment",
            remedy="search at least one factor with two values",
        )
    client = Client(random_seed=seed)
    client.configure_experiment(
        parameters=parameters,
        parameter_constraints=[line for factor in space.factors for line in factor.constraints],
        name=name,
    )
    client.configure_optimization(
        ", ".join(("-" if o.direction == "min" else "") + o.name for o in objectives),
        outcome_constraints=thresholds,
    )
    return client


def save_client(client: Client, path: Path) -> None:
    """Save a client as JSON, atomically; ``Client.load_from_json_file`` opens it.

    Raises:
        StorageError: the file cannot be written.
    """
    atomic_write(path, lambda draft: client.save_to_json_file(str(draft)))


def parameters_of(space: MemorySpace, config: MemoryConfig) -> dict[str, float]:
    """``config`` in the parameters of the space's Ax experiment."""
    return {
        parameter.name: value
        for factor in space.factors
        for parameter, value in zip(factor.parameters, factor.to_parameters(config), strict=True)
    }


def _use_model(client: Client, method: Literal["fast", "quality"]) -> None:
    """Ax's own strategy, without an initial design: the attached trials are enough."""
    client.configure_generation_strategy(
        method=method, initialization_budget=0, allow_exceeding_initialization_budget=True
    )


def _attach(client: Client, engine: Engine) -> None:
    values = {seen.id: seen.values for seen in engine.observations}
    reasons = {failure.id: failure.reason for failure in engine.failures}
    for proposal in engine.proposals:
        parameters = parameters_of(engine.space, proposal.config)
        index = client.attach_trial(dict(parameters), arm_name=f"t{proposal.id:04d}")
        if proposal.id in values:
            client.complete_trial(index, raw_data=dict(values[proposal.id]))
        elif proposal.id in reasons:
            client.mark_trial_failed(index, failed_reason=reasons[proposal.id])


def _parameters(space: MemorySpace) -> list[RangeParameterConfig | ChoiceParameterConfig]:
    return [_parameter(parameter) for factor in space.factors for parameter in factor.parameters]


def _parameter(parameter: Parameter) -> RangeParameterConfig | ChoiceParameterConfig:
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    name, values = parameter.name, parameter.values
    if isinstance(values, range):
        return RangeParameterConfig(name=name, bounds=(values[0], values[-1]), parameter_type="int")
    kind: Literal["int", "float"] = "int" if isinstance(values[0], int) else "float"
    return ChoiceParameterConfig(name=name, values=list(values), parameter_type=kind, is_ordered=True)


def _thresholds(engine: Engine) -> list[str] | None:
    point = engine.reference_point()
    if engine.reference is None or point is None or len(engine.objectives) < 2:
        return None
    return [
        f"{o.name} {'<=' if o.direction == 'min' else '>='} {_plain(point[o.name])}"
        for o in engine.objectives
    ]


def _no_chatter(record: logging.LogRecord) -> bool:
    """Drops Ax's line per trial, keeps its warnings."""
    return record.levelno >= logging.WARNING


def _plain(value: float) -> str:
    """Digits without an exponent, which Ax's expressions do not read."""
    return f"{value:.12f}".rstrip("0").rstrip(".")
