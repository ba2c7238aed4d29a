"""Other people's optimisers on a placement problem, each as it is used today, and ours beside them.

A peer sees gates, n and r as plain parameters. All methods get the same 20 initial configurations
(ours, from a Sobol sequence), so that only the search differs. Optuna is asked for one proposal at
a time, Ax and ours for four. A method that proposes no active layer is given the no-memory values,
and the evaluation counts.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine
from milp_ray.search.core.design import Design
from milp_ray.search.synthetic import OBJECTIVES

INITIAL, BATCH = 20, 4

Values = Mapping[str, float]
Method = Callable[["Problem", int, int], list[Placement]]


class Problem(Protocol):
    """What is searched."""

    space: MemorySpace

    @property
    def no_memory(self) -> Values: ...

    def measure(self, placement: Placement) -> Values: ...


def ours(surrogate: str, **options: Any) -> Method:
    """Our engine with one of its surrogates."""

    def method(problem: Problem, seed: int, count: int) -> list[Placement]:
        engine = Engine(
            problem.space,
            OBJECTIVES,
            initial=INITIAL,
            batch=BATCH,
            surrogate=surrogate,
            seed=seed,
            reference=problem.no_memory,
            **options,
        )
        _replace_design(engine, problem, seed)
        while len(engine.observations) < count:
            for proposal in engine.ask(min(BATCH, count - len(engine.observations))):
                engine.tell(proposal.id, problem.measure(proposal.placement))
        return [seen.placement for seen in engine.observations]

    return method


def with_raw_features(method: Method) -> Method:
    """The same method, whose model sees features close to (α, n, r).

    They are which layers carry a LoRA, and the total rank. How the rank is spread over the layers
    is left out.
    """

    def patched(problem: Problem, seed: int, count: int) -> list[Placement]:
        from unittest.mock import patch

        import numpy as np

        from milp_ray.memory.arrays import SpaceArrays

        ours = SpaceArrays.features

        def raw(self: SpaceArrays, ranks: Any) -> Any:
            found = ours(self, ranks)
            return np.concatenate([(ranks > 0).astype(float), found[:, -1:]], axis=1)

        with patch.object(SpaceArrays, "features", raw):
            return method(problem, seed, count)

    return patched


def initial_design(space: MemorySpace, seed: int) -> list[MemoryConfig]:
    """The configurations that every method starts from."""
    return Design(space, seed).first(INITIAL)


def optuna_sampler(make: Callable[[int], Any]) -> Method:
    """One of Optuna's samplers, through ask and tell."""

    def method(problem: Problem, seed: int, count: int) -> list[Placement]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=make(seed))
        space = problem.space
        for config in initial_design(space, seed):
            study.enqueue_trial(_to_optuna(space, config))
        tried = []
        for _ in range(count):
            trial = study.ask()
            gates = tuple(bool(trial.suggest_int(f"gate_{i:02d}", 0, 1)) for i in range(space.num_layers))
            num = trial.suggest_int("num_loras", 1, space.max_loras)
            rank = space.ranks[trial.suggest_int("rank", 0, len(space.ranks) - 1)]
            placement = space.placement(MemoryConfig(gates, num, rank))
            values = problem.measure(placement) if len(placement) else problem.no_memory
            study.tell(trial, [values["loss"], values["rouge_l"]])
            tried.append(placement)
        return tried

    return method


def ax_method(name: str) -> Method:
    """Ax through its public client; at least one active layer is a constraint of its experiment."""

    def method(problem: Problem, seed: int, count: int) -> list[Placement]:
        warnings.simplefilter("ignore")
        from milp_ray.search.ax.export import config_of, new_client, parameters_of
        from milp_ray.search.warm_up import warm_up

        warm_up(extension=True)  # Ax would build it inside its first proposal
        space = problem.space
        client = new_client("peer", space, OBJECTIVES, seed=seed)
        client.configure_generation_strategy(
            method=name, initialization_budget=0, allow_exceeding_initialization_budget=True
        )
        tried = []

        def told(index: int, config: MemoryConfig) -> None:
            placement = space.placement(config)
            client.complete_trial(index, raw_data=dict(problem.measure(placement)))
            tried.append(placement)

        for config in initial_design(space, seed):
            told(client.attach_trial(dict(parameters_of(space, config))), config)
        while len(tried) < count:
            for index, parameters in client.get_next_trials(max_trials=BATCH).items():
                told(index, config_of(space, parameters))
        return tried[:count]

    return method


def chance(problem: Problem, seed: int, count: int) -> list[Placement]:
    """Random configurations after the common design."""
    rng = random.Random(seed)
    drawn = [problem.space.sample(rng) for _ in range(count - INITIAL)]
    return [problem.space.placement(config) for config in [*initial_design(problem.space, seed), *drawn]]


def _replace_design(engine: Engine, problem: Problem, seed: int) -> None:
    """Nothing but the common design as the engine's own initial proposals."""
    plan = engine.plan(INITIAL)
    for proposal in engine.accept(plan, initial_design(problem.space, seed)):
        engine.tell(proposal.id, problem.measure(proposal.placement))


def _to_optuna(space: MemorySpace, config: MemoryConfig) -> dict[str, int]:
    gates = {f"gate_{layer:02d}": int(gate) for layer, gate in enumerate(config.gates)}
    return {**gates, "num_loras": config.num_loras, "rank": space.ranks.index(config.rank)}


def _tpe(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=INITIAL)


def _nsga(seed: int) -> Any:
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed, population_size=INITIAL)


def _gp(seed: int) -> Any:
    import optuna

    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=INITIAL, deterministic_objective=False)


METHODS: dict[str, Method] = {
    "saas": ours("saas"),
    "saas-paper": ours("saas", surrogate_options={"preset": "paper"}),
    "saas-copula": ours("saas", outcome="copula"),
    "saas-raw": with_raw_features(ours("saas")),
    "map_saas": ours("map_saas"),
    "gp": ours("gp"),
    "random": chance,
    "optuna-tpe": optuna_sampler(_tpe),
    "optuna-nsga2": optuna_sampler(_nsga),
    "optuna-gp": optuna_sampler(_gp),
    "ax": ax_method("fast"),
}
OURS = ("saas", "saas-paper", "saas-copula", "saas-raw", "map_saas", "gp")
