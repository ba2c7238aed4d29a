from pathlib import Path

import pytest
import yaml

from milp_ray.comparison.cells import Condition
from milp_ray.comparison.plan import ConditionPlan, method_plans, plan_of
from milp_ray.config.comparison import Comparison
from milp_ray.config.loading import load_comparison
from milp_ray.errors import ModelError, StudyError
from milp_ray.evaluation.baselines import rag_dense
from tests.study.conftest import user_line

KEY = bytes(range(32))


def write_comparison(folder: Path, model: Path, methods: list[str], **sections: object) -> Path:
    """Three users to compare, and two others."""
    for name, numbers in (("users", (1, 2, 3)), ("others", (4, 5))):
        lines = [user_line(number) for number in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    comparison = {
        "name": "small",
        "datasets": {
            "canary": {"path": str(folder / "users.jsonl"), "background": str(folder / "others.jsonl")}
        },
        "models": {"tiny": {"path": str(model), "device": "cpu"}},
        "methods": methods,
        "prompts": {"max_length": 96},
        "memory": {"ranks": [2, 4], "defaults": {"size": 4}},
        "optimizer": {"learning_rate": 5e-3, "batch_size": 4},
        "trial": {"epochs": 1, "max_new_tokens": 8, "slice_seconds": 0.5},
        "search": {"trials": 2, "initial": 2, "batch": 2, "surrogate": "random"},
        "final": {"epochs": 1, "instruct_epochs": 1},
        "ray": {"max_concurrent": 1, "rehearse": False},
        "storage": {"path": str(folder / "comparisons")},
    } | sections
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(comparison), encoding="utf-8")
    return path


def divided(folder: Path, model: Path, methods: list[str]) -> Path:
    """Ten users with two samples each, of whom two are compared."""
    path = write_comparison(folder, model, methods)
    lines = [user_line(number, 2) for number in range(10)]
    (folder / "users.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    comparison = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = {"path": str(folder / "users.jsonl"), "split": {"regime": "by_user"}}
    comparison |= {"datasets": {"canary": data}}
    path.write_text(yaml.safe_dump(comparison), encoding="utf-8")
    return path


def planned(path: Path, *overrides: str) -> ConditionPlan:
    [plan] = plan_of(load_comparison(path, overrides), KEY)
    return plan


@pytest.fixture
def path(tmp_path: Path, shallow_model: Path) -> Path:
    return write_comparison(tmp_path, shallow_model, ["none", "rag", "milp", "milp_num", "milp_population"])


def test_a_plan_has_users_background_users_and_a_control_for_everyone(path: Path) -> None:
    plan = planned(path)
    assert plan.condition == Condition("canary", "tiny", 0)
    assert (len(plan.users), len(plan.background.splits)) == (3, 2)
    assert set(plan.others) == set(plan.users) == set(plan.others.values())


def test_a_cell_is_computed_anew_when_and_only_when_it_would_be_another(path: Path) -> None:
    def digests(*overrides: str) -> dict[str, str]:
        plan = planned(path, *overrides)
        return {method.name: plan.digest(method) for method in plan.methods}

    before = digests()
    assert len(set(before.values())) == 5
    assert digests("ray.max_concurrent=2", "storage.path=elsewhere", "name=other") == before
    trials = digests("search.trials=3")
    assert trials["none"] == before["none"] and trials["milp"] != before["milp"]
    assert not set(digests("trial.max_new_tokens=9").values()) & set(before.values())
    assert not set(digests("seeds=[1]").values()) & set(before.values())


def test_options_of_the_methods_are_part_of_a_cells_content(path: Path) -> None:
    before, after = planned(path), planned(path, "options.retrieved=2")
    assert after.options.retrieved == 2
    assert all(before.digest(method) != after.digest(method) for method in before.methods)
    names = [
        {
            method.name: plan.searched_study(method, path.parent, path.parent / "key").name
            for method in plan.methods
            if method.searched
        }
        for plan in (before, after, planned(path, "datasets.canary.background_users=1"))
    ]
    assert names[0] == names[1] == names[2], "no search is done again for what it does not use"
    with pytest.raises(StudyError, match=r"options\.retreived"):
        planned(path, "options.retreived=2")


def test_a_method_without_its_encoder_is_refused_before_anything_runs(
    path: Path, shallow_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rag_dense, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ModelError, match="no sentence encoder for the method 'rag_dense'"):
        planned(path, "methods=[none, rag_dense]")
    with pytest.raises(ModelError, match=r"options\.encoder: names no sentence encoder"):
        planned(path, "methods=[none, rag_dense]", "options.encoder=nowhere")
    plan = planned(path, "methods=[none, rag_dense]", f"options.encoder={shallow_model}")
    assert "config.json" in plan.encoder


def test_where_users_are_divided_test_users_are_compared_and_chance_searches_for_all(
    tmp_path: Path, shallow_model: Path
) -> None:
    plan = planned(divided(tmp_path, shallow_model, ["none", "multi_lora", "random_lora", "milp"]))
    assert (len(plan.users), len(plan.background.splits)) == (2, 8)
    assert all(user.test and not user.train for user in plan.users.values())
    assert {bool(user.train) for user in plan.background.splits.values()} == {True, False}
    studies = {m.name: plan.searched_study(m, tmp_path, tmp_path / "key") for m in plan.methods if m.searched}
    assert {name: study.unit for name, study in studies.items()} == dict.fromkeys(studies, "population")
    assert studies["random_lora"].search.surrogate == "random"
    assert [plan.searches(method) for method in plan.methods] == [0, 0, 1, 1]


def test_other_texts_make_other_cells(path: Path) -> None:
    before = planned(path)
    users = path.parent / "users.jsonl"
    users.write_text(users.read_text(encoding="utf-8").replace("plain tea", "green tea"), encoding="utf-8")
    after = planned(path)
    assert all(before.digest(method) != after.digest(method) for method in before.methods)


def test_searches_of_other_factors_are_other_runs(path: Path, tmp_path: Path) -> None:
    plan = planned(path)
    studies = {m.name: plan.searched_study(m, tmp_path, tmp_path / "key") for m in plan.methods if m.searched}
    assert studies["milp"].memory.factors == "num+size+layer" and studies["milp_num"].memory.factors == "num"
    assert [studies[name].unit for name in ("milp", "milp_population")] == ["user", "population"]
    assert len({study.name for study in studies.values()}) == 3
    assert all(len(study.name) <= 40 for study in studies.values())


def test_unknown_methods_are_told_all_at_once_with_the_nearest() -> None:
    with pytest.raises(StudyError) as error:
        method_plans(["none", "rog", "miip"])
    assert "methods[1]: no method is named 'rog'" in str(error.value)
    assert "did you mean 'rag'?" in str(error.value) and "methods[2]" in str(error.value)


def test_a_background_user_is_no_compared_user(path: Path) -> None:
    others = path.parent / "others.jsonl"
    others.write_text((path.parent / "users.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(StudyError, match="3 of the background users are compared users"):
        planned(path)


def test_bases_divided_over_workers_are_refused(path: Path) -> None:
    comparison: Comparison = load_comparison(path, ["ray.workers_per_trial=2", "ray.parallelism=ddp"])
    with pytest.raises(StudyError, match="compared on whole bases"):
        plan_of(comparison, KEY)
