"""Whom a run searches: each user, or the population by a sample of its users."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from milp_ray.config import Study
from milp_ray.config.loading import load_study, resolved
from milp_ray.data.leaks import check_parts
from milp_ray.errors import DataError
from milp_ray.ids import POPULATION, alias_of
from milp_ray.study.check import check_study
from milp_ray.study.provenance import differences
from milp_ray.study.units import PopulationUnit, UserUnits, units_of
from milp_ray.study.users import Users, load_users
from tests.study.conftest import bare_model, call, user_line

KEY = bytes(range(32))
BY_USER = {"split": {"regime": "by_user"}}


def people(folder: Path, numbers: range, samples: int = 2) -> None:
    lines = [user_line(number, samples, user_id=f"person-{number}") for number in numbers]
    (folder / "users.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def study_in(folder: Path, users: int = 20, samples: int = 2, **sections: dict[str, object]) -> Study:
    """A simulated study of a population, divided by user unless the sections say otherwise."""
    people(folder, range(users), samples)
    values: dict[str, dict[str, object]] = {
        "model": {"path": str(bare_model(folder / "model"))},
        "data": {"path": str(folder / "users.jsonl"), **BY_USER},
        "search": {"trials": 3, "initial": 3, "surrogate": "random", "users_per_trial": 2},
        "simulation": {},
        "storage": {"path": str(folder / "runs")},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "dry", **values}), encoding="utf-8")
    return resolved(load_study(folder / "study.yaml"))


def units_in(study: Study, users: Users | None = None) -> PopulationUnit:
    found = units_of(study, users or load_users(study, KEY))
    assert isinstance(found, PopulationUnit)
    return found


def by_part(users: Users, part: str) -> list[str]:
    return [alias for alias, where in users.parts.items() if where == part]


def test_each_user_is_a_unit_of_its_own_unless_asked_otherwise(tmp_path: Path) -> None:
    study = study_in(tmp_path, 3, 14, data={"split": {"regime": "per_user"}})
    users = load_users(study, KEY)
    units = units_of(study, users)
    assert study.unit == "user" and isinstance(units, UserUnits)
    assert units.present == units.owners == units.begun == tuple(users.splits) == tuple(sorted(users.splits))
    for alias in units.present:
        assert units.of(alias) == alias and units.members(alias) == (alias,)
        assert units.unit(alias).users == (users.splits[alias],) and units.unit(alias).is_user
    assert not units.described() and units.shared is None
    units.check_searchable()


def test_a_population_of_users_with_samples_of_their_own_is_searched_once_and_all_get_a_memory(
    tmp_path: Path,
) -> None:
    study = study_in(tmp_path, 5, 14, data={"split": {"regime": "per_user"}}, search={"unit": "population"})
    users = load_users(study, KEY)
    units = units_in(study, users)
    assert units.present == (POPULATION,) and units.owners == tuple(users.splits)
    assert {units.of(alias) for alias in units.owners} == {POPULATION}
    unit = units.unit()
    assert len(unit.users) == 2 and unit.shared is None and not unit.is_user
    assert unit.users == tuple(users.splits[alias] for alias in units.members())


def test_divided_users_are_searched_on_validation_users_and_test_users_get_a_memory(tmp_path: Path) -> None:
    study = study_in(tmp_path, search={"users_per_trial": 1})
    users = load_users(study, KEY)
    units = units_in(study, users)
    train, validation, test = (by_part(users, part) for part in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (14, 2, 4)
    assert list(units.owners) == test and set(units.members()) < set(validation)
    assert units.unit().shared is None, "trials that inject alone train nothing shared"
    assert units.shared is not None
    assert units.shared.train == tuple(s for alias in train for s in users.splits[alias].train)
    assert units.shared.validation == tuple(s for alias in validation for s in users.splits[alias].validation)
    parts = ([users.splits[alias] for alias in part] for part in (train, validation, test))
    check_parts(*parts)


def test_trials_with_stage_2_train_it_on_the_train_users_samples(tmp_path: Path) -> None:
    units = units_in(study_in(tmp_path, trial={"stages": ["inject", "instruct"]}))
    assert units.unit().shared == units.shared


def test_the_sample_follows_from_seed_and_aliases_and_not_from_the_file(tmp_path: Path) -> None:
    study = study_in(tmp_path, 40, search={"users_per_trial": 2})
    sampled = units_in(study).members()
    people(tmp_path, range(39, -1, -1))
    assert units_in(study).members() == sampled
    others = {units_in(study.model_copy(update={"seed": seed})).members() for seed in range(1, 5)}
    assert len(others | {sampled}) > 1
    more = study.model_copy(update={"search": study.search.model_copy(update={"users_per_trial": 3})})
    assert set(sampled) < set(units_in(more).members())


def test_a_run_keeps_its_parts_when_users_go_or_come(tmp_path: Path) -> None:
    study = study_in(tmp_path, 20)
    before = load_users(study, KEY)
    gone = next(
        number for number in range(20) if alias_of(f"person-{number}", KEY) in by_part(before, "test")
    )
    kept = [number for number in range(20) if number != gone]
    lines = [user_line(number, 2, user_id=f"person-{number}") for number in [*kept, 30, 31]]
    (tmp_path / "users.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    after = load_users(study, KEY, before.fingerprint)
    assert after.parts == before.parts and set(before.splits) - set(after.splits) == {
        alias_of(f"person-{gone}", KEY)
    }
    assert all(after.splits[alias] == before.splits[alias] for alias in after.splits)
    assert any("left out from here on" in note for note in after.notes)
    assert any("2 users of the data are not of the run" in note for note in after.notes)
    units = units_in(study, after)
    units.check_searchable()
    assert units.members() == units_in(study, before).members() and len(units.owners) == 3


def test_a_user_whose_data_changed_is_refused_in_a_divided_population_too(tmp_path: Path) -> None:
    study = study_in(tmp_path, 20)
    before = load_users(study, KEY)
    text = (tmp_path / "users.jsonl").read_text()
    (tmp_path / "users.jsonl").write_text(text.replace("on day 0", "on day zero", 1), encoding="utf-8")
    with pytest.raises(DataError, match="data has changed since the run began"):
        load_users(study, KEY, before.fingerprint)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_search_goes_on_only_with_all_users_that_its_trials_train_and_measure(
    tmp_path: Path, part: str
) -> None:
    stages = ["inject", "instruct"]
    study = study_in(tmp_path, 20, trial={"stages": stages})
    before = load_users(study, KEY)
    gone = by_part(before, part)[0]
    left = replace(before, splits={alias: user for alias, user in before.splits.items() if alias != gone})
    with pytest.raises(DataError, match="users that trials train or measure are gone") as caught:
        units_in(study, left).check_searchable()
    assert gone in str(caught.value) and "person" not in str(caught.value)
    alone = study.model_copy(update={"trial": study.trial.model_copy(update={"stages": ("inject",)})})
    if part == "train":
        units_in(alone, left).check_searchable()


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    values = study_in(tmp_path).model_dump(mode="json")
    for search, reason in (
        ({"unit": "user"}, "search.unit is user, but with data.split.regime by_user no user has both"),
        ({"transfer": "seeds"}, "has no other to learn from"),
        ({"users_per_trial": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=reason):
            Study.model_validate_json(json.dumps(values | {"search": values["search"] | search}))


def test_auto_is_no_other_study_than_what_it_means(tmp_path: Path) -> None:
    auto = study_in(tmp_path)
    named = study_in(tmp_path, search={"unit": "population"})
    assert (auto.search.unit, auto.unit) == ("auto", named.unit) and not differences(auto, named)
    more = study_in(tmp_path, search={"users_per_trial": 4})
    assert [found.where for found in differences(auto, more)] == ["search.users_per_trial"]


def test_a_run_of_users_has_no_fingerprint_or_setting_that_earlier_ones_lack(tmp_path: Path) -> None:
    study = study_in(tmp_path, 3, 14, data={"split": {"regime": "per_user"}}, search={"users_per_trial": 8})
    users = load_users(study, KEY)
    assert not users.parts and not any(":" in digest for digest in dict(users.fingerprint).values())  # type: ignore[arg-type]
    values = study.model_dump(mode="json")
    del values["search"]["unit"], values["search"]["users_per_trial"]
    assert Study.model_validate_json(json.dumps(values)) == study


def test_check_tells_the_parts_the_sample_and_what_a_trial_costs(tmp_path: Path) -> None:
    study_in(tmp_path, 20, trial={"stages": ["inject", "instruct"], "epochs": 2}, optimizer={"batch_size": 4})
    code, output = call("check", str(tmp_path / "study.yaml"))
    assert code == 0, output
    lines = {line.split("  ")[0].strip(): " ".join(line.split()) for line in output.splitlines()}
    assert "14 train, 2 validation, 4 test: these get a memory" in lines["users by part"]
    told = " ".join(output.split())  # however wide a terminal is
    assert "one placement for the population; a trial injects for 2 of 2 validation users" in told
    assert "shared: 28 samples of train users" in told
    assert "3 a population, 3 of them initial; 3 in all" in lines["trials"]
    # Two users with one batch of texts for two epochs each, and 28 samples in 7 batches.
    assert lines["steps"] == "steps 11 a trial"
    assert check_study(load_study(tmp_path / "study.yaml")) is not None
