from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from milp_ray.errors import SearchError, SpaceError
from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective, Plan
from milp_ray.search import engine as engine_module
from milp_ray.search.core.design import count_placements
from milp_ray.search.core.local_search import LocalSearch
from milp_ray.search.propose import propose
from tests.search.problems import LOSS_AND_ROUGE, REFERENCE, TINY_SAAS, measure, run, size, small_space

QUICK = LocalSearch(draws=32, climbers=2, rounds=3)


def engine(**changes: object) -> Engine:
    settings: dict[str, object] = {"initial": 4, "surrogate": "random", "search": QUICK, **changes}
    return Engine(settings.pop("space", small_space()), LOSS_AND_ROUGE, **settings)  # type: ignore[arg-type]


def test_the_documented_example_holds_for_the_initial_design() -> None:
    made = Engine(
        MemorySpace(num_layers=32, max_loras=32, ranks=(8, 16, 32, 64, 96)),
        objectives=(Objective("loss", "min"), Objective("rouge_l", "max")),
        initial=20,
        batch=4,
        surrogate="saas",
        seed=0,
        reference={"loss": 2.6, "rouge_l": 0.14},
        log=None,
    )
    for proposal in made.ask(4):
        assert proposal.config.num_loras >= 1
        assert any(proposal.config.gates)
        made.tell(proposal.id, {"loss": 2.31, "rouge_l": 0.18})
    assert {seen.id for seen in made.front()} == {0, 1, 2, 3}
    assert made.front()[0].values["loss"] == 2.31


def test_proposals_before_the_first_model_import_nothing_heavy() -> None:
    code = """
import sys
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
for surrogate in ("random", "sobol", "saas", "gp"):
    engine = Engine(MemorySpace(6, 6, (8, 16)), [Objective("loss", "min")], initial=4, surrogate=surrogate)
    for p in engine.ask(4 if surrogate in ("saas", "gp") else 8):
        engine.tell(p.id, {"loss": 1.0 + p.id})
    engine.front()
print([name for name in ("torch", "botorch", "jax", "ax", "ray", "numpyro") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_ids_count_up_and_sources_say_who_proposed() -> None:
    made = engine(surrogate="gp")
    run(made, 6, k=3)
    assert [p.id for p in made.proposals] == list(range(6))
    assert [p.source for p in made.proposals] == ["initial"] * 4 + ["gp"] * 2


@pytest.mark.parametrize("surrogate", ["random", "sobol", "gp", "saas"])
def test_nothing_told_pending_or_failed_is_proposed_again(surrogate: str) -> None:
    made = engine(surrogate=surrogate, surrogate_options=TINY_SAAS if surrogate == "saas" else {})
    first = made.ask(4)
    made.tell(first[0].id, measure(first[0].placement))
    made.fail(first[1].id, "out of memory")
    made.tell(first[2].id, measure(first[2].placement))
    later = [*made.ask(4), *made.ask(1)]
    keys = [proposal.placement.key for proposal in (*first, *later)]
    assert len(set(keys)) == len(keys) == 9
    assert all(proposal.config.num_loras >= 1 and any(proposal.config.gates) for proposal in later)
    assert {proposal.source for proposal in later} == {surrogate}


def test_while_nothing_was_measured_the_design_goes_on() -> None:
    made = engine(surrogate="gp", initial=2)
    assert [p.source for p in made.ask(5)] == ["initial"] * 5


@pytest.mark.parametrize("surrogate", ["random", "sobol", "gp"])
def test_an_exhausted_space_gives_fewer_and_says_why(surrogate: str) -> None:
    space = MemorySpace(3, 3, (8,))
    count = count_placements(space)
    assert count is not None
    made = engine(space=space, surrogate=surrogate)
    assert not made.exhausted
    assert made.finished == ""
    proposals = []
    while batch := made.ask(4):
        proposals += batch
        for proposal in batch:
            made.tell(proposal.id, {"loss": float(proposal.id), "rouge_l": 0.0})
    assert len(proposals) == count
    assert made.exhausted
    assert made.finished == f"all {count} placements of the space were tried"
    assert made.ask(2) == []


def test_an_exhausted_space_is_known_after_a_resume(tmp_path: Path) -> None:
    space = MemorySpace(2, 2, (8,))
    run(engine(space=space, log=tmp_path / "u.jsonl"), 1000)
    assert engine(space=space, log=tmp_path / "u.jsonl").finished


def test_a_limit_of_trials_counts_failures() -> None:
    made = engine(trials=5)
    proposals = made.ask(9)
    assert len(proposals) == 5
    made.fail(0, "x")
    assert made.ask(1) == []
    assert made.finished == "the limit of 5 trials is reached"
    assert not made.exhausted
    assert len(made.pending) == 4


def test_told_twice_is_harmless_and_contradictions_are_errors() -> None:
    made = engine()
    a, b = made.ask(2)
    values = measure(a.placement)
    made.tell(a.id, values)
    made.tell(a.id, dict(values))
    assert len(made.observations) == 1
    with pytest.raises(SearchError, match="other values"):
        made.tell(a.id, {**values, "loss": 9.0})
    with pytest.raises(SearchError, match="told before"):
        made.fail(a.id, "x")
    made.fail(b.id, "first")
    made.fail(b.id, "second")
    assert [failure.reason for failure in made.failures] == ["first"]
    with pytest.raises(SearchError, match="failed before"):
        made.tell(b.id, values)
    assert made.observations[0].values == values


@pytest.mark.parametrize("id", [-1, 2, 10**30, True, "0", None, 0.0])
def test_unknown_ids(id: object) -> None:
    made = engine()
    made.ask(2)
    for act in (lambda: made.tell(id, REFERENCE), lambda: made.fail(id, "x")):  # type: ignore[arg-type]
        with pytest.raises(SearchError, match="unknown proposal id"):
            act()
    assert len(made.pending) == 2


@pytest.mark.parametrize(
    "values", [{}, {"loss": 1.0}, {"loss": 1.0, "rouge_l": float("nan")}, {"loss": 1.0, "rouge_l": 0, "x": 1}]
)
def test_bad_values_change_nothing(values: dict[str, float], tmp_path: Path) -> None:
    made = engine(log=tmp_path / "u.jsonl")
    made.ask(1)
    before = (tmp_path / "u.jsonl").read_bytes()
    with pytest.raises(SearchError):
        made.tell(0, values)
    assert (tmp_path / "u.jsonl").read_bytes() == before
    assert len(made.pending) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": -1},
        {"initial": True},
        {"batch": 0},
        {"seed": 1.5},
        {"trials": -1},
        {"surrogate": "sass"},
        {"surrogate": "gp", "surrogate_options": {"x": 1}},
        {"surrogate": "saas", "surrogate_options": {"warmup": 0}},
        {"reference": {"loss": 1.0}},
        {"reference": {"loss": 1.0, "rouge_l": float("nan")}},
        {"reference": {"loss": 1.0, "rouge_l": 1.0, "x": 1.0}},
    ],
    ids=repr,
)
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(SearchError):
        engine(**arguments)


@pytest.mark.parametrize("k", [0, -1, True, 1.0, "1"])
def test_bad_k(k: object) -> None:
    with pytest.raises(SearchError, match="k is not"):
        engine().ask(k)  # type: ignore[arg-type]


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(SearchError, match="did you mean 'saas'"):
        engine(surrogate="sass")


def test_ask_without_k_gives_a_batch() -> None:
    made = engine(batch=3, initial=0)
    assert len(made.ask()) == 3
    assert len(propose(made.plan(100))) == 3


def test_the_reference_is_given_once(tmp_path: Path) -> None:
    made = engine(log=tmp_path / "u.jsonl")
    assert made.reference is None
    assert made.reference_point() is None
    made.set_reference(REFERENCE)
    made.set_reference(REFERENCE)
    assert made.reference == REFERENCE
    assert made.reference_point() == REFERENCE
    with pytest.raises(SearchError, match="another reference"):
        made.set_reference({"loss": 1.0, "rouge_l": 1.0})
    resumed = engine(log=tmp_path / "u.jsonl")
    assert resumed.reference == REFERENCE
    assert engine(log=tmp_path / "u.jsonl", reference=REFERENCE).reference == REFERENCE
    with pytest.raises(SearchError, match="another reference"):
        engine(log=tmp_path / "u.jsonl", reference={"loss": 1.0, "rouge_l": 1.0})


def test_an_exact_objective_is_computed_and_found_in_the_front() -> None:
    objectives = (*LOSS_AND_ROUGE, Objective("size", "min", exact=size))
    made = Engine(small_space(), objectives, initial=5, batch=2, surrogate="gp", search=QUICK)
    made.set_reference({**REFERENCE, "size": 0.0})
    for proposal in made.ask(5):
        made.tell(proposal.id, measure(proposal.placement))
    for proposal in made.ask(2):
        assert proposal.source == "gp"
        made.tell(proposal.id, {**measure(proposal.placement), "size": size(proposal.placement)})
    assert all(seen.values["size"] == size(seen.placement) for seen in made.observations)
    smallest = min(seen.values["size"] for seen in made.observations)
    assert smallest in {seen.values["size"] for seen in made.front()}
    with pytest.raises(SearchError, match="by its definition"):
        made.tell(made.ask(1)[0].id, {**REFERENCE, "size": 1.0})


def test_one_objective_is_a_search_too() -> None:
    made = Engine(small_space(), LOSS_AND_ROUGE[:1], initial=4, surrogate="gp", search=QUICK)
    for _ in range(8):
        for proposal in made.ask(1):
            made.tell(proposal.id, {"loss": measure(proposal.placement)["loss"]})
    assert made.proposals[-1].source == "gp"
    assert len(made.front()) == 1
    assert made.front()[0].values["loss"] == min(seen.values["loss"] for seen in made.observations)


@pytest.mark.parametrize("scale", [1e-300, 1e150, 1e300])
def test_values_of_any_size_are_survived(scale: float) -> None:
    made = engine(surrogate="gp")
    for proposal in made.ask(4):
        found = measure(proposal.placement)
        made.tell(proposal.id, {"loss": found["loss"] * scale, "rouge_l": -found["rouge_l"] * scale})
    assert [p.source for p in made.ask(1)] == ["gp"]
    assert not made.notes


def test_constant_values_are_survived() -> None:
    made = engine(surrogate="gp")
    for proposal in made.ask(4):
        made.tell(proposal.id, {"loss": 2.5, "rouge_l": 0.0})
    assert [p.source for p in made.ask(1)] == ["sobol"]  # there is nothing to model


def test_hypervolume_never_decreases() -> None:
    made = run(engine(reference=REFERENCE), 12)
    curve = made.hypervolume_curve()
    assert len(curve) == 12
    assert curve == sorted(curve)
    assert curve[-1] > 0
    assert engine().hypervolume_curve() == []


def test_a_lowered_curve_gives_the_whole_front_volume() -> None:
    made = engine(reference={"loss": 0.0, "rouge_l": 1.0})  # nothing beats this
    for index, proposal in enumerate(made.ask(3)):
        made.tell(proposal.id, {"loss": 1.0 + index, "rouge_l": 0.2 + 0.1 * index})
    assert made.hypervolume_curve() == made.hypervolume_curve(lowered=True)
    tight = engine(reference={"loss": 2.5, "rouge_l": 0.25})
    for index, proposal in enumerate(tight.ask(3)):
        tight.tell(proposal.id, {"loss": 1.0 + index, "rouge_l": 0.2 + 0.1 * index})
    assert tight.hypervolume_curve()[0] == 0 < tight.hypervolume_curve(lowered=True)[0]
    curve = tight.hypervolume_curve(lowered=True)
    assert curve[0] < curve[1] < curve[2]  # every one of the three is on the front


def test_the_first_of_a_batch_does_not_depend_on_its_size() -> None:
    made = engine(surrogate="gp", batch=4)
    run(made, 4)
    assert propose(made.plan(4))[0] == propose(made.plan(1))[0]


def test_a_plan_pickles_and_is_a_pure_function() -> None:
    made = run(engine(surrogate="gp"), 4)
    plan = made.plan(2)
    copy = pickle.loads(pickle.dumps(plan))
    made.fail(made.ask(1)[0].id, "the engine goes on")
    assert propose(plan) == propose(copy) == propose(plan)


def test_accept_drops_what_was_seen_meanwhile() -> None:
    made = run(engine(surrogate="gp"), 4)
    plan = made.plan(2)
    candidates = propose(plan)
    assert [p.id for p in made.accept(plan, candidates)] == [4, 5]
    assert made.accept(plan, candidates) == []
    assert len(made.proposals) == 6
    with pytest.raises(SearchError, match="another search"):
        engine(seed=9).accept(plan, candidates)
    with pytest.raises(SpaceError):
        made.accept(plan, [MemoryConfig((True,) * 3, 1, 8)])
    assert made.accept(plan, [MemoryConfig((False,) * 4, 1, 8), MemoryConfig((True,) * 4, 0, 8)]) == []


def test_asking_and_telling_from_several_threads() -> None:
    made = engine(initial=10, trials=60)
    errors: list[BaseException] = []

    def asking() -> None:
        try:
            while made.ask(3):
                pass
        except BaseException as error:
            errors.append(error)

    def telling() -> None:
        try:
            while not made.finished or made.pending:
                for proposal in made.pending:
                    made.tell(proposal.id, measure(proposal.placement))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=target) for target in (asking, asking, telling, telling)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert len(made.observations) == 60
    assert len({seen.placement.key for seen in made.observations}) == 60


def test_telling_does_not_wait_for_a_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(engine(surrogate="gp"), 4)
    waiting = made.ask(1)[0]
    started, go_on = threading.Event(), threading.Event()

    def slow(plan: Plan) -> object:
        started.set()
        assert go_on.wait(30)
        return propose(plan)

    monkeypatch.setattr(engine_module, "propose", slow)
    thread = threading.Thread(target=made.ask, args=(1,))
    thread.start()
    assert started.wait(30)
    made.tell(waiting.id, measure(waiting.placement))
    assert len(made.observations) == 5
    go_on.set()
    thread.join(30)
    assert len(made.pending) == 1
