"""A population's trial: its users' own trials one after the other, their mean, and their costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from milp_ray.config.models import Study, TrialSettings
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.memory.placement import NO_MEMORY, Placement
from milp_ray.model.base import BaseModel
from milp_ray.model.limits import OutOfMemory
from milp_ray.trial.lifecycle import Trial
from milp_ray.trial.stages import training_stages
from milp_ray.trial.unit import PopulationTrial, SearchUnit, SharedTrial, shared_user
from tests.trial.common import PLACED, STUDY, Snapshot, changed, numbers, run

BOTH = changed(trial=TrialSettings(epochs=1, max_new_tokens=4, stages=("inject", "instruct")))


@pytest.fixture
def people(tiny_user: UserSplit) -> tuple[UserSplit, ...]:
    """Three users with a history and validation samples, as in a divided population."""
    return tuple(
        replace(
            tiny_user,
            alias=f"u-{letter * 13}",
            history=tiny_user.history[start:],
            train=(),
            validation=tiny_user.validation[start : start + 1],
            test=(),
            search_cut=6,
        )
        for start, letter in enumerate("bcd")
    )


@pytest.fixture
def shared_samples(tiny_user: UserSplit) -> UserSplit:
    return shared_user("population", [replace(tiny_user, validation=(), test=())], [])


def population_trial(
    base: BaseModel, unit: SearchUnit, study: Study = STUDY, placement: Placement = PLACED
) -> PopulationTrial:
    trial = unit.trial(base, placement, study, seed=5)
    assert isinstance(trial, PopulationTrial)
    for _ in trial.steps():
        pass
    return trial


def test_a_unit_of_one_user_is_that_users_own_trial(llama: BaseModel, tiny_user: UserSplit) -> None:
    trial = SearchUnit.of_user(tiny_user).trial(llama, PLACED, STUDY, seed=5)
    assert type(trial) is Trial and trial.keeps_adapter
    with trial:
        found = numbers(trial.run())
    assert found == run(llama, tiny_user)


def test_a_populations_values_are_the_mean_of_its_users_own_trials_and_costs_add_up(
    llama: BaseModel, people: tuple[UserSplit, ...]
) -> None:
    before = Snapshot(llama)
    trial = population_trial(llama, SearchUnit("population", people))
    before.check()
    alone = [run(llama, user) for user in people]
    assert [numbers(found) for found in trial.by_user.values()] == alone
    assert len({loss for loss, *_ in alone}) == len(people), "users do not differ"
    measured = trial.result
    assert measured is not None and measured.loss == pytest.approx(sum(one[0] for one in alone) / len(people))
    assert measured.scores["rouge_l"] == pytest.approx(sum(one[1] for one in alone) / len(people))
    assert {alias: found["loss"] for alias, found in measured.by_user.items()} == {
        user.alias: one[0] for user, one in zip(people, alone, strict=True)
    }
    assert measured.trainable_params == alone[0][2]
    assert measured.train_tokens == sum(one[3] for one in alone)
    assert measured.cost.eval_seconds > max(found.eval_seconds for found in trial.by_user.values())
    assert not trial.keeps_adapter
    with pytest.raises(RuntimeError, match="nothing to save"):
        trial.save(Path("nowhere"))


def test_every_user_starts_from_the_same_shared_stage_2(
    llama: BaseModel, people: tuple[UserSplit, ...], shared_samples: UserSplit
) -> None:
    trial = population_trial(llama, SearchUnit("population", people, shared_samples), BOTH)
    with SharedTrial(llama, shared_samples, PLACED, BOTH, seed=5) as shared:
        assert shared.run() is None
        weights, tokens = shared.adapter(), shared.cost().train_tokens
    assert any(float(weight.abs().sum()) > 0 for name, weight in weights.items() if "lora_B" in name)
    for user in people:
        with Trial(llama, user, PLACED, BOTH, seed=5, start=weights) as own:
            assert numbers(own.run()) == numbers(trial.by_user[user.alias])
        assert run(llama, user, study=BOTH)[0] != trial.by_user[user.alias].loss
    own_tokens = sum(found.train_tokens for found in trial.by_user.values())
    assert trial.cost().train_tokens == tokens + own_tokens


def test_a_training_with_steps_of_no_size_ends_with_the_weights_that_it_started_from(
    llama: BaseModel, people: tuple[UserSplit, ...], shared_samples: UserSplit
) -> None:
    with SharedTrial(llama, shared_samples, PLACED, BOTH, seed=5) as shared:
        shared.run()
        weights = shared.adapter()
    still = changed(optimizer=BOTH.optimizer.model_copy(update={"learning_rate": 1e-30, "weight_decay": 0.0}))
    with Trial(llama, people[0], PLACED, still, seed=5, start=weights) as own:
        own.run()
        assert all(torch.equal(weights[name], weight) for name, weight in own.adapter().items())


def test_no_memory_is_measured_without_any_training(
    llama: BaseModel, people: tuple[UserSplit, ...], shared_samples: UserSplit
) -> None:
    unit = SearchUnit("population", people, shared_samples)
    trial = population_trial(llama, unit, BOTH, NO_MEMORY)
    assert trial.cost().train_tokens == 0
    assert [found.loss for found in trial.by_user.values()] == [
        run(llama, user, NO_MEMORY, BOTH)[0] for user in people
    ]


def test_a_shared_user_has_the_samples_of_its_parts_and_no_history(tiny_user: UserSplit) -> None:
    teacher = replace(tiny_user, validation=(), test=())
    chooser = replace(tiny_user, train=(), test=())
    shared = shared_user("population", [teacher, teacher], [chooser])
    assert shared.train == teacher.train * 2 and shared.validation == chooser.validation
    assert not shared.history and not shared.test


def test_a_user_that_fails_fails_the_trial_with_its_alias_and_gives_the_base_back(
    llama: BaseModel, people: tuple[UserSplit, ...]
) -> None:
    before = Snapshot(llama)
    unit = SearchUnit("population", (people[0], replace(people[1], history=(), search_cut=0)))
    with pytest.raises(TrialFailed) as caught:
        population_trial(llama, unit)
    assert caught.value.reason == f"{people[1].alias}: the user has no history to inject"
    before.check()


def test_running_out_of_memory_stays_what_it_is(
    llama: BaseModel, people: tuple[UserSplit, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr("milp_ray.trial.lifecycle.training_stages", full)
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        population_trial(llama, SearchUnit("population", people))
    assert caught.value.reason.startswith(f"{people[0].alias}: out of memory with")


def test_a_trial_that_is_dropped_half_way_gives_the_base_back(
    llama: BaseModel, people: tuple[UserSplit, ...]
) -> None:
    before = Snapshot(llama)
    trial = PopulationTrial(llama, SearchUnit("population", people), PLACED, STUDY, seed=5)
    steps = trial.steps()
    while len(trial.by_user) < 1:
        next(steps)
    next(steps)
    steps.close()
    trial.close()
    before.check()
    assert trial.result is None and trial.cost().train_tokens > 0


def test_an_example_user_has_texts_for_both_stages(
    llama: BaseModel, people: tuple[UserSplit, ...], shared_samples: UserSplit
) -> None:
    example = SearchUnit("population", people, shared_samples).example()
    assert example.train == shared_samples.train[:1] and example.history == people[0].history
    stages = training_stages(llama, example, Prompts(BOTH.prompts), BOTH, "search")
    assert [stage.name for stage in stages] == ["inject", "instruct"]
