"""The demo's files: a study that loads, data that splits without loss, and a memory that helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from milp_ray.config.loading import load_study
from milp_ray.config.models import SplitSettings, Study
from milp_ray.data.personas import generate_personas
from milp_ray.data.prompts import Prompts
from milp_ray.data.readers import read_users
from milp_ray.data.splits import split_population, split_users
from milp_ray.evaluation.compare import evaluate
from milp_ray.memory.placement import Placement
from milp_ray.memory.space import space_from
from milp_ray.model.base import load_base
from milp_ray.model.demo_model import DemoModelSizes, background_texts
from milp_ray.model.pretrained import check_fits
from milp_ray.study.demo import demo_users, next_name, prepare_demo
from milp_ray.study.demo_studies import TINY
from milp_ray.trial.lifecycle import Trial
from milp_ray.trial.unit import SharedTrial, shared_user

# Small enough for a test, and just good enough that a memory shows; ranks stay below the demo's
# width.
SMALL = DemoModelSizes(layers=4, hidden=64, feed_forward=160, vocabulary=1000, personas=60, steps=250)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("a demo: 'quoted' #1")
    return prepare_demo(folder, sizes=SMALL, notify=lines.append), lines


@pytest.fixture(scope="module")
def study(prepared: tuple[Path, list[str]]) -> Study:
    return load_study(prepared[0])


def test_the_study_is_as_asked(study: Study, prepared: tuple[Path, list[str]]) -> None:
    assert (study.search.trials, study.search.initial, study.search.batch) == (12, 6, 3)
    assert study.search.surrogate == "saas"
    assert study.objectives == ("loss", "rouge_l")
    assert study.choose.policy == "knee"
    assert Path(study.storage.path) == prepared[0].parent / "runs"
    text = prepared[0].read_text(encoding="utf-8")
    assert f'milp-ray search "{prepared[0]}"' in text
    assert load_study(prepared[0], ["name=deeper", "search.trials=40"]).search.trials == 40


def test_progress_is_a_few_lines(prepared: tuple[Path, list[str]]) -> None:
    assert 4 <= len(prepared[1]) <= 6


def test_a_second_call_changes_nothing(prepared: tuple[Path, list[str]]) -> None:
    path = prepared[0]
    before = {p: p.read_bytes() for p in sorted(path.parent.rglob("*")) if p.is_file()}
    lines: list[str] = []
    assert prepare_demo(path.parent, sizes=SMALL, notify=lines.append) == path
    assert {p: p.read_bytes() for p in sorted(path.parent.rglob("*")) if p.is_file()} == before
    assert not lines


def test_all_data_is_used(study: Study) -> None:
    result = split_users(read_users(study.data).users, b"k" * 32, study.data)
    assert len(result.users) == TINY.users
    assert not result.skipped
    assert not result.dropped
    assert {(len(u.train), len(u.validation), len(u.test)) for u in result.users} == {(36, 12, 12)}


def test_the_own_memory_wins(study: Study) -> None:
    """On the model of the test, a smaller one than the demo's; the margin there is larger."""
    base = load_base(study.model)
    check_fits(base.architecture, study)
    space_from(study.memory, base.architecture.num_layers, base.architecture.width)
    users = split_users(read_users(study.data).users, b"k" * 32, study.data).users
    prompts, placement = Prompts(study.prompts), Placement.from_key("1:16,3:16")
    without = [evaluate(base, user, prompts, study, user.test) for user in users]
    trained = []
    for user in users:
        with Trial(base, user, placement, study, phase="final", seed=0) as trial:
            trial.run()
            trained.append([evaluate(base, other, prompts, study, other.test) for other in users])
    for index in range(TINY.users):
        own, other = trained[index][index], trained[(index + 1) % TINY.users][index]
        assert own.loss < without[index].loss - 0.1
        assert own.loss < other.loss - 0.1
        assert own.rouge_l > without[index].rouge_l


def test_of_divided_users_those_with_two_samples_gain_from_a_shared_stage_2_and_their_own_stage_1(
    study: Study,
) -> None:
    """Neither the samples of others nor another user's memory is worth what the own history is."""
    people = [replace(user, samples=user.samples[-2:]) for user in generate_personas(12, 1)]
    split = SplitSettings(regime="by_user")
    population = split_population(people, b"k" * 32, study.data.model_copy(update={"split": split}), 0)
    base, placement, prompts = load_base(study.model), Placement.from_key("1:16,3:16"), Prompts(study.prompts)
    shared = shared_user("population", population.train, population.validation)
    with SharedTrial(base, shared, placement, study, phase="final", seed=0) as trial:
        trial.run()
        weights = trial.adapter()
        start = [evaluate(base, user, prompts, study, user.test) for user in population.test]
    trained = []
    for user in population.test:
        with Trial(base, user, placement, study, phase="final", seed=0, start=weights) as trial:
            trial.run()
            trained.append([evaluate(base, one, prompts, study, one.test) for one in population.test])
    assert len(trained) == 2
    for index, user in enumerate(population.test):
        own, other = trained[index][index], trained[1 - index][index]
        without = evaluate(base, user, prompts, study, user.test)
        assert own.loss < min(without.loss, start[index].loss, other.loss) - 0.1


def test_the_people_are_strangers() -> None:
    users = demo_users()
    assert len({user.user_id for user in users}) == TINY.users
    first, second, third = ({*(user.profile or {}).values()} for user in users)
    assert not (first & second or first & third or second & third)
    openings = [{text.partition(",")[0] for text in (s.response for s in user.samples)} for user in users]
    assert not set.intersection(openings[0], openings[1]) | set.intersection(openings[1], openings[2])
    trained_on = set(background_texts(10, 0))
    for user in users:
        assert not trained_on & {f"User: {s.query}\nResponse: {s.response}" for s in user.samples}


def test_run_names_are_free(tmp_path: Path) -> None:
    assert next_name(tmp_path) == "demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert next_name(tmp_path) == "demo-2"
    (tmp_path / "runs" / "demo-2").mkdir()
    assert next_name(tmp_path) == "demo-3"
