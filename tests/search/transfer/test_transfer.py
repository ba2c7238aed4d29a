"""What later users gain from finished ones, that none loses, and that a resume needs no sources."""

from __future__ import annotations

import json
import math
import pickle
import random
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from milp_ray.config.objectives import maximized
from milp_ray.errors import SearchError, StorageError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
from milp_ray.search.core.local_search import LocalSearch
from milp_ray.search.core.pareto import hypervolume_curve
from milp_ray.search.core.transfer_data import Mode, SourceTask, TransferData
from milp_ray.search.propose import propose
from milp_ray.search.source_pool import ROWS, SOURCES, SourcePool, source_of
from milp_ray.search.synthetic import OBJECTIVES, SyntheticProblem
from milp_ray.search.transfer.multitask_gp import SourceModel, UserModel
from milp_ray.search.transfer.prior import PlacementPrior
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, measure, run, size, small_space

LAYERS = 8
SPACE = SyntheticProblem(LAYERS).space


def user(seed: int, related: float, family: int = 0) -> SyntheticProblem:
    return SyntheticProblem(LAYERS, seed=seed, family=family, related=related)


def search(
    problem: SyntheticProblem, trials: int, data: TransferData | None = None, **changes: object
) -> Engine:
    """A search without a model after its design, so that only the transfer's effect is seen."""
    settings: dict[str, object] = {"initial": 12, "surrogate": "random", "seed": 3, **changes}
    engine = Engine(problem.space, problem.objectives, reference=problem.no_memory, **settings)  # type: ignore[arg-type]
    if data is not None:
        engine.transfer(data)
    while len(engine.proposals) < trials:
        for proposal in engine.ask(min(4, trials - len(engine.proposals))):
            engine.tell(proposal.id, problem.measure(proposal.placement))
    return engine


def gained(problem: SyntheticProblem, engine: Engine) -> float:
    """The noise-free hypervolume of what was tried."""
    points = [maximized(OBJECTIVES, problem.exact(seen.placement)) for seen in engine.observations]
    return hypervolume_curve(points, maximized(OBJECTIVES, problem.no_memory))[-1]


@pytest.fixture(scope="module")
def sources() -> list[Engine]:
    return [search(user(seed, 0.9), 48, seed=seed) for seed in range(4)]


def data_of(sources: list[Engine], mode: Mode = "prior") -> TransferData:
    population = SourcePool(SPACE, OBJECTIVES, mode)
    for source in sources:
        assert population.add(source)
    data = population.transfer_data(sources[0].reference)
    assert data is not None
    return data


@pytest.mark.parametrize("mode", ["seeds", "prior"])
def test_related_users_get_further_with_a_third_of_the_trials(sources: list[Engine], mode: Mode) -> None:
    data = data_of(sources, mode)
    ratios = []
    for seed in range(100, 106):
        problem = user(seed, 0.9)
        ratios.append(gained(problem, search(problem, 16, data)) / gained(problem, search(problem, 48)))
    assert statistics.median(ratios) > 1.0


@pytest.mark.parametrize("mode", ["seeds", "prior"])
def test_unrelated_users_lose_no_more_than_noise(sources: list[Engine], mode: Mode) -> None:
    data = data_of(sources, mode)
    ratios, warm = [], []
    for seed in range(200, 206):
        problem = user(seed, 0.0, family=seed)
        helped, cold = search(problem, 40, data), search(problem, 40)
        ratios.append(gained(problem, helped) / gained(problem, cold))
        warm.append(sum(proposal.source == "transfer" for proposal in helped.proposals))
    assert statistics.median(ratios) > 0.95
    assert statistics.median(warm) <= 8  # of the 20 that a related user would be given


def test_evidence_tells_kin_from_strangers(sources: list[Engine]) -> None:
    model = SourceModel(SPACE, (0, 1), [source_of(source) for source in sources])

    def evidence(problem: SyntheticProblem) -> float:
        told = search(problem, 12).observations
        values = [maximized(OBJECTIVES, seen.values) for seen in told]
        return UserModel(
            model, [s.config for s in told], values, maximized(OBJECTIVES, problem.no_memory)
        ).evidence

    kin = [evidence(user(seed, 0.9)) for seed in range(100, 106)]
    strangers = [evidence(user(seed, 0.0, family=seed)) for seed in range(200, 206)]
    assert statistics.median(kin) > 2.0 > 0.0 > statistics.median(strangers)


def test_the_warm_start_backs_off_when_the_user_measures_the_opposite(sources: list[Engine]) -> None:
    problem = user(100, 0.9)
    engine = Engine(SPACE, OBJECTIVES, initial=40, surrogate="random", reference=problem.no_memory)
    engine.transfer(data_of(sources))
    nothing = problem.no_memory
    while len(engine.proposals) < 40:
        for proposal in engine.ask(4):
            good = problem.measure(proposal.placement)
            engine.tell(proposal.id, {name: 2 * nothing[name] - good[name] for name in nothing})
    sources = [proposal.source for proposal in engine.proposals]
    assert sources[:4] == ["transfer"] * 2 + ["initial"] * 2
    assert set(sources[20:]) == {"initial"}


def test_at_least_half_of_the_design_fills_the_space_as_it_would_have(sources: list[Engine]) -> None:
    problem = user(100, 0.9)
    cold = Engine(SPACE, OBJECTIVES, initial=8, seed=3, surrogate="random")
    warm = search(problem, 8, data_of(sources), initial=8)
    filling = [p.placement for p in warm.proposals if p.source == "initial"]
    assert len(filling) >= 4
    expected = [p.placement for p in cold.ask(8)]
    assert filling == expected[: len(filling)]


def test_where_sources_are_right_the_design_ends_early(sources: list[Engine]) -> None:
    problem = user(100, 1.0)
    engine = search(problem, 20, data_of([search(problem, 48, seed=1)]), initial=20)
    assert "random" in {proposal.source for proposal in engine.proposals}


@pytest.mark.parametrize("initial", [12, 0])
def test_where_arithmetic_fails_on_sources_the_user_goes_without(
    sources: list[Engine], initial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr("milp_ray.search.transfer.warm_start.source_model", broken)
    engine = search(user(100, 0.9), 4, data_of(sources), initial=initial)
    cold = search(user(100, 0.9), 4, initial=initial)
    assert initial == 0 or [p.config for p in engine.proposals] == [p.config for p in cold.proposals]
    assert {p.source for p in engine.proposals} == {"initial" if initial else "random"}
    assert engine.notes == ("transfer: LinAlgError; proposed without other users' searches",)


def test_without_sources_nothing_changes(tmp_path: Path) -> None:
    population = SourcePool(SPACE, OBJECTIVES, "prior")
    logs = tmp_path / "cold.jsonl", tmp_path / "given.jsonl"
    for log in logs:
        engine = Engine(SPACE, OBJECTIVES, initial=4, surrogate="random", log=log)
        if log == logs[1]:
            assert not population.give(engine)
            assert engine.transferred is None
        for proposal in engine.ask(8):
            engine.tell(proposal.id, {"loss": 1.0 + proposal.id, "rouge_l": 0.1})
    assert logs[0].read_bytes() == logs[1].read_bytes()


def test_the_first_batch_and_mode_none_run_cold(sources: list[Engine]) -> None:
    few, off = SourcePool(SPACE, OBJECTIVES, "seeds", first=3), SourcePool(SPACE, OBJECTIVES, "none")
    for population in (few, off):
        population.add(sources[0])
        population.add(sources[1])
        assert population.transfer_data() is None
    few.add(sources[2])
    assert few.transfer_data() is not None


def resume(log: Path, surrogate: str) -> Engine:
    return Engine(
        SPACE,
        OBJECTIVES,
        initial=6,
        batch=2,
        surrogate=surrogate,
        search=LocalSearch(draws=8, climbers=1, rounds=1),
        seed=11,
        reference=user(100, 0.9).no_memory,
        log=log,
    )


def drive(engine: Engine, trials: int = 11) -> None:
    """A driver that can begin anywhere: it tells what is pending, then asks for one.

    Of two, the first might be warm and the second not, which are two events. A driver that was
    killed between them and tells the first would know more when it asks for the second.
    """
    problem = user(100, 0.9)
    while True:
        for proposal in engine.pending:
            if proposal.id % 5 == 3:
                engine.fail(proposal.id, "out of memory")
            else:
                engine.tell(proposal.id, problem.measure(proposal.placement))
        if len(engine.proposals) >= trials or not engine.ask(1):
            return


@pytest.mark.parametrize("surrogate", ["random", "gp"])
def test_killed_at_every_event_the_log_comes_out_the_same_without_sources(
    sources: list[Engine], tmp_path: Path, surrogate: str
) -> None:
    population = SourcePool(SPACE, OBJECTIVES, "prior")
    for source in sources:
        population.add(source)
    whole = tmp_path / "whole.jsonl"
    engine = resume(whole, surrogate)
    assert population.give(engine)
    drive(engine)
    lines = whole.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["event"] for line in lines]
    assert kinds[:4] == ["created", "reference", "transferred", "asked"]
    assert {p.source for p in engine.proposals} >= {"transfer", surrogate}
    # A fit takes a while: with a model one boundary, in the midst of the warm start, is enough.
    for count in [12] if surrogate == "gp" else range(len(lines) + 1):
        log = tmp_path / f"{count}.jsonl"
        log.write_bytes(b"".join(lines[:count]) + b'{"event":"tr')
        again = resume(log, surrogate)
        assert population.give(again) == (count < 3)  # afterwards the log has it
        drive(again)
        assert log.read_bytes() == whole.read_bytes(), f"killed after event {count}"


def test_a_plan_is_a_pure_snapshot(sources: list[Engine]) -> None:
    problem = user(100, 0.9)
    engine = search(problem, 8, data_of(sources))
    plan = engine.plan(4)
    first = propose(plan)
    assert first.source == "transfer"
    again = propose(pickle.loads(pickle.dumps(plan)))
    assert list(again) == list(first) == list(propose(plan))


def test_giving_again_is_harmless_and_giving_late_or_other_is_an_error(sources: list[Engine]) -> None:
    engine = Engine(SPACE, OBJECTIVES, surrogate="random")
    data = data_of(sources)
    engine.transfer(data)
    engine.transfer(data)
    assert engine.transferred is not None
    engine.transfer(engine.transferred)
    with pytest.raises(SearchError, match="other transfer data"):
        engine.transfer(data_of(sources[:1]))
    late = Engine(SPACE, OBJECTIVES, surrogate="random")
    late.ask(1)
    with pytest.raises(SearchError, match="begun"):
        late.transfer(data)


def test_sources_from_elsewhere_are_refused(sources: list[Engine]) -> None:
    data = data_of(sources)
    elsewhere = Engine(small_space(), LOSS_AND_ROUGE, surrogate="random")
    with pytest.raises(SearchError, match="another space"):
        elsewhere.transfer(data)
    other = Engine(SPACE, (Objective("loss", "max"), OBJECTIVES[1]), surrogate="random")
    with pytest.raises(SearchError, match="other objectives"):
        other.transfer(data)
    with pytest.raises(SearchError, match="another space"):
        SourcePool(small_space(), LOSS_AND_ROUGE).add(sources[0])
    with pytest.raises(SearchError, match="other objectives"):
        SourcePool(SPACE, (Objective("loss", "max"), OBJECTIVES[1])).add(sources[0])
    with pytest.raises(SearchError, match="nothing to transfer"):
        Engine(SPACE, OBJECTIVES).transfer(replace(data, sources=()))
    with pytest.raises(SearchError, match="do not fit"):
        SourcePool(SPACE, OBJECTIVES).add(SourceTask(((SPACE.largest(), (1.0,)),)))


def test_damage_in_the_event_is_told_with_its_line(sources: list[Engine], tmp_path: Path) -> None:
    log = tmp_path / "u.jsonl"
    engine = Engine(SPACE, OBJECTIVES, surrogate="random", log=log)
    engine.transfer(data_of(sources))
    created, event = log.read_text().splitlines()
    for broken in (
        event.replace('"prior"', '"other"'),
        event.replace('"told":[[', '"told":[["x",'),
        event.replace("loss:min", "loss:max"),
        event + "\n" + event,
    ):
        log.write_text(f"{created}\n{broken}\n")
        with pytest.raises(StorageError, match=r"line [23]"):
            Engine(SPACE, OBJECTIVES, surrogate="random", log=log)


def test_sources_of_nothing_of_nan_of_one_value_and_twins_do_no_harm(sources: list[Engine]) -> None:
    good = source_of(sources[0])
    population = SourcePool(SPACE, OBJECTIVES)
    assert not population.add(Engine(SPACE, OBJECTIVES))
    nothing = MemoryConfig((False,) * LAYERS, 0, 8)
    assert not population.add(SourceTask(((nothing, (1.0, 1.0)), (SPACE.largest(), (math.nan, 1.0)))))
    flat = SourceTask(tuple((config, (1.0, 0.5)) for config, _ in good.observations))
    odd = [flat, good, good, SourceTask(((SPACE.largest(), (-2.0, 0.2)),), (math.nan, 0.1))]
    assert all(map(population.add, odd))
    data = population.transfer_data()
    assert data is not None
    for source_set in (data.sources, (flat,), (flat, replace(flat, no_memory=(-9e9, 0.0)))):
        engine = search(user(100, 0.9), 12, replace(data, sources=source_set))
        assert len({proposal.placement for proposal in engine.proposals}) == 12
    empty = search(user(100, 0.9), 4, TransferData("prior", data.objectives, (SourceTask(()),)))
    assert {proposal.source for proposal in empty.proposals} == {"initial"}


def test_a_source_keeps_its_front_and_the_rest_evenly(sources: list[Engine]) -> None:
    engine = search(user(5, 0.9), 60)
    source = source_of(engine, rows=20)
    assert len(source.observations) == 20
    assert {seen.config for seen in engine.front()} <= {config for config, _ in source.observations}
    assert set(source.front()) == {seen.config for seen in engine.front()}
    assert len(source_of(engine).observations) == ROWS


def test_the_prior_favours_what_fronts_use_and_rules_nothing_out() -> None:
    def gates(*active: int) -> tuple[bool, ...]:
        return tuple(layer in active for layer in range(LAYERS))

    fronts = [[MemoryConfig(gates(1, 5), 2, 16)]] * 6
    prior, generator = PlacementPrior(SPACE, fronts), random.Random(0)
    drawn = [prior.sample(generator) for _ in range(400)]
    for config in drawn:
        SPACE.validate(config)
        assert config.num_loras and any(config.gates)
    assert prior.layers[1] > 0.9 > 0.1 > prior.layers[0] > 0
    share = [statistics.mean(config.gates[layer] for config in drawn) for layer in range(LAYERS)]
    assert min(share[1], share[5]) > 0.75
    assert max(share[0], share[7]) < 0.35
    assert {config.rank for config in drawn} == set(SPACE.ranks)
    plain, cold = PlacementPrior(SPACE, []), random.Random(1)
    assert plain.sample(random.Random(1)) == SPACE.sample(cold)


def test_the_nearest_by_no_memory_are_taken_and_no_more_than_fit() -> None:
    population = SourcePool(SPACE, OBJECTIVES)
    for index in range(SOURCES + 4):
        population.add(SourceTask(((SPACE.largest(), (float(index), 0.0)),), (-2.0 - index / 10, 0.1)))
    data = population.transfer_data({"loss": 2.0, "rouge_l": 0.1})
    assert data is not None
    assert [source.observations[0][1][0] for source in data.sources] == [float(i) for i in range(SOURCES)]


def test_exact_objectives_and_fixed_factors_are_kept() -> None:
    objectives = (*LOSS_AND_ROUGE, Objective("size", "min", exact=size))
    space = MemorySpace(4, 4, (8, 16, 32), factors="size+layer")

    def made(seed: int) -> Engine:
        return Engine(space, objectives, initial=6, seed=seed, surrogate="random", reference=REFERENCE)

    population = SourcePool(space, objectives, "prior")
    population.add(run(made(1), 12, k=4))
    engine = made(2)
    assert population.give(engine)
    while len(engine.proposals) < 12:
        for proposal in engine.ask(4):
            space.validate(proposal.config)
            engine.tell(proposal.id, measure(proposal.placement))
    assert "transfer" in {proposal.source for proposal in engine.proposals}
