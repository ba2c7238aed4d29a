from pathlib import Path

import pytest

from milp_ray.config.loading import load_comparison
from milp_ray.errors import StudyError

SMALL = """
name: first
datasets:
  forum: {path: a.jsonl, users: 10, background: b.jsonl, background_users: 20}
  shop: {path: c.jsonl}
models:
  tiny: {path: ./model}
methods: [none, milp]
seeds: [0, 1]
trial: {epochs: 2}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "comparison.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(StudyError) as error:
        load_comparison(written(folder, text))
    return str(error.value)


def test_each_combination_is_a_study_of_its_own(tmp_path: Path) -> None:
    comparison = load_comparison(written(tmp_path, SMALL), ["trial.instruct_epochs=4"])
    study = comparison.study("forum", "tiny", 1)
    assert (study.name, study.seed, study.data.path, study.data.users) == ("forum-tiny-s1", 1, "a.jsonl", 10)
    assert (study.trial.epochs, study.trial.instruct_epochs) == (2, 4)
    background = comparison.datasets["forum"].data(background=True)
    assert (background.path, background.users) == ("b.jsonl", 20)


def test_all_problems_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = SMALL.replace("background_users: 20", "backgrond_users: 20").replace("shop:", "The-Shop:")
    told = refused(tmp_path, text.replace("epochs: 2", "epochs: 0").replace("[0, 1]", "[0, 0]"))
    assert "line 4, datasets.forum.backgrond_users: unknown key" in told
    assert "did you mean 'background_users'?" in told
    assert 'line 5, datasets.The-Shop: got "The-Shop"' in told
    assert "line 9, seeds: got [0, 0]" in told and "names one of them twice" in told
    assert "line 10, trial.epochs: got 0" in told


def test_what_a_study_refuses_a_comparison_refuses(tmp_path: Path) -> None:
    assert "objectives has no 'chrf'" in refused(tmp_path, SMALL + "choose: {policy: 'best:chrf'}\n")


def test_where_users_are_divided_the_background_is_in_the_same_file(tmp_path: Path) -> None:
    text = SMALL.replace("{path: c.jsonl}", "{path: c.jsonl, background: d.jsonl, split: {regime: by_user}}")
    assert "train and validation users of the file" in refused(tmp_path, text)


def test_one_key_stands_beside_the_data_sets(tmp_path: Path) -> None:
    text = SMALL.replace("{path: c.jsonl}", "{path: c.jsonl, alias_key: k}")
    assert "give it as alias_key, beside datasets" in refused(tmp_path, text)
