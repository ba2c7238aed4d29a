from pathlib import Path

import pytest

from milp_ray.comparison.answers import AnswerStore
from milp_ray.comparison.data_table import statistics_table
from milp_ray.comparison.plan import ConditionPlan, MethodPlan
from milp_ray.comparison.win_rates import Judging
from milp_ray.config.judging import RougeProxySettings
from milp_ray.evaluation.judges import make_judge
from milp_ray.evaluation.judges.cache import AnswerCache
from milp_ray.tune.comparison.worker import Answer
from tests.comparison.test_plan import planned, write_comparison


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, shallow_model: Path) -> ConditionPlan:
    folder = tmp_path_factory.mktemp("comparison")
    return planned(write_comparison(folder, shallow_model, ["none", "tplp", "rag"]))


def judging(plan: ConditionPlan, folder: Path, cache: AnswerCache) -> Judging:
    """Of ``rag``, which answers as the user did, and ``tplp``; ``none`` is not finished."""

    def answered(plan: ConditionPlan, method: MethodPlan) -> AnswerStore:
        store = AnswerStore(folder / method.name)
        for alias, user in plan.users.items():
            gold = tuple(sample.response for sample in user.test)
            said = gold if method.name == "rag" else ("no idea",) * len(gold)
            if method.name != "none":
                store.add(Answer(method.name, alias, responses=said, scores={}, control={}))
        return store

    return Judging(make_judge(RougeProxySettings()), cache, "tplp", answered)


def test_who_answers_like_the_user_wins_by_the_proxy_which_is_called_one(
    plan: ConditionPlan, tmp_path: Path
) -> None:
    table = judging(plan, tmp_path, AnswerCache()).table([plan])
    [row] = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    tests = sum(len(user.test) for user in plan.users.values())
    assert row["method"] == "rag" and row["win rate"].startswith("100.0 %")
    assert row["won, tied, lost"] == f"{tests}, 0, 0" and row["without a score"] == "0"
    assert "proxy" in table.caption


def test_what_was_judged_is_not_asked_again(plan: ConditionPlan, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.jsonl", b"key")
    first = judging(plan, tmp_path, cache)
    assert first.estimate([plan]).calls > 0
    first.table([plan])
    again = judging(plan, tmp_path, AnswerCache(tmp_path / "answers.jsonl", b"key"))
    assert again.estimate([plan]).calls == 0


def test_statistics_are_of_the_users_that_are_compared(plan: ConditionPlan) -> None:
    table = statistics_table([plan])
    [numbers] = table.numbers.to_dict("records")
    assert (numbers["users"], numbers["background_users"]) == (3, 2)
    assert numbers["samples"] == 3 * 14 and numbers["test_samples"] < numbers["samples"]
    words = [len(sample.response.split()) for user in plan.users.values() for sample in user.train]
    assert min(words) <= numbers["words_per_response"] <= max(words) + 1
