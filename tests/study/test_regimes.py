"""Both units and both regimes from the study file to the tables, on a real tiny model.

In one process without Ray (:mod:`tests.study.crashing`); what Ray adds is in test_population_runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

from milp_ray.config.loading import load_study
from milp_ray.errors import RunFolderError
from milp_ray.ids import POPULATION
from milp_ray.memory.adapter_notes import check_note
from milp_ray.model.base import BaseModel
from milp_ray.report.console import fronts_view, outcome_lines, outcome_view, user_view
from milp_ray.report.plots import draw_run
from milp_ray.study import driver, run_folder
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.users import load_users
from tests.study.conftest import CANARY, user_line, write_study
from tests.study.crashing import in_a_child, without_ray

KEY = b"k" * run_folder.KEY_BYTES
TRIALS = 3


@dataclass(frozen=True)
class Done:
    """A run that is done, and what was printed of it."""

    folder: RunFolder
    printed: str

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(f"{self.folder.layout.table(name)}.parquet")

    def events(self, alias: str = POPULATION) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.folder.layout.events(alias).read_text().splitlines()]

    def scores(self) -> dict[str, dict[str, object]]:
        return {path.stem: json.loads(path.read_text()) for path in (self.folder.root / "scores").iterdir()}

    def memories(self) -> set[str]:
        return {path.name for path in (self.folder.root / "memories").iterdir()}

    def parts(self) -> dict[str, list[str]]:
        found = load_users(self.folder.study, KEY, self.folder.fingerprint).parts
        return {part: [a for a, where in found.items() if where == part] for part in set(found.values())}


@pytest.fixture
def base(shallow_model: Path) -> BaseModel:
    from milp_ray.config.models import ModelSettings
    from milp_ray.model.base import load_base

    return load_base(ModelSettings(path=str(shallow_model), device="cpu"))


@pytest.fixture
def work(tmp_path: Path, shallow_model: Path, base: BaseModel) -> Callable[..., Done]:
    """Works on the study with changes, in a process of its own, to its end."""
    path = write_study(tmp_path, shallow_model)
    study = yaml.safe_load(path.read_text())
    study["search"] |= {"trials": TRIALS, "initial": TRIALS, "surrogate": "random", "users_per_trial": 2}
    study["trial"] |= {"max_new_tokens": 2}
    path.write_text(yaml.safe_dump(study))

    def done(*words: str, samples: int = 2, users: Sequence[int] = tuple(range(10))) -> Done:
        lines = [user_line(number, samples) for number in users]
        (tmp_path / "users.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        location = tmp_path / "runs" / "small"

        def child() -> list[object]:
            without_ray(base)
            driver.new_key = lambda: KEY
            console = Console(width=140, record=True, quiet=False, file=(tmp_path / "said").open("w"))
            if location.exists():
                outcome = driver.resume(
                    location, console, [w for w in words if w.startswith("search.trials")]
                )
            else:
                outcome = driver.start(load_study(path, words), console)
            console.print(outcome_view(outcome), outcome_lines(outcome), fronts_view(outcome.folder))
            return [outcome.exit_code, outcome.users, console.export_text()]

        code, found = in_a_child(child, [])
        assert code == 0 and found[0] == 0, found
        assert CANARY not in str(found[2])
        return Done(RunFolder.open(location), str(found[2]))

    return done


BY_USER = "data.split.regime=by_user"


def test_divided_users_are_searched_once_and_test_users_get_memories_from_a_shared_adapter(
    work: Callable[..., Done],
) -> None:
    done = work(BY_USER, "trial.stages=[inject, instruct]")
    parts = done.parts()
    assert {part: len(found) for part, found in parts.items()} == {"train": 7, "validation": 1, "test": 2}
    assert [path.stem for path in (done.folder.root / "events").iterdir()] == [POPULATION]
    told = [event for event in done.events() if event["event"] == "told"]
    assert len(told) == TRIALS and any(event["event"] == "reference" for event in done.events())

    assert done.memories() == {POPULATION, *parts["test"]}
    chosen = done.table("chosen")
    assert list(chosen.user) == [POPULATION]
    for alias in done.memories():
        check_note(done.folder.layout.memory(alias), placement=chosen.placement[0], user=alias)
    scores = done.scores()
    assert scores.keys() == set(parts["test"])
    for found in scores.values():
        models = found["models"]
        assert isinstance(models, dict) and list(models) == ["base", "shared", "own", "other"]
        assert len({model["loss"] for model in models.values()}) == 4, "models that are the same"
    table = done.table("scores")
    assert set(table.user) == set(parts["test"]) and set(table.model) == {"base", "shared", "own", "other"}
    trials = done.table("trials")
    assert set(trials.user) == {POPULATION} and sorted(trials.trial) == [-1, *range(TRIALS)]
    by_user = done.table("by_user")
    assert sorted(set(by_user.trial)) == [-1, *range(TRIALS)] and set(by_user.user) == set(
        parts["validation"]
    )
    mean = by_user.groupby("trial").loss.mean()
    assert list(mean) == pytest.approx(list(trials.set_index("trial").loss[mean.index]))
    assert not (done.folder.root / "adapters").exists() and not (done.folder.root / "checkpoints").exists()

    assert "final: the adapter that all memories start from is trained" in done.printed
    assert "memories trained 2/2" in done.printed and "users: 2 of 2 have a memory" in done.printed
    assert "front of population" in done.printed and "shared adapter" in done.printed
    assert {path.name for path in draw_run(done.folder)} == {"front-population.png", "hypervolume.png"}


def shown(folder: RunFolder, user: str) -> str:
    console = Console(width=140, record=True, file=(folder.root / "shown").open("w"))
    console.print(user_view(folder, user))
    return console.export_text()


def test_what_is_shown_of_the_population_of_a_user_and_of_nobody(work: Callable[..., Done]) -> None:
    done = work(BY_USER)  # trials inject alone; the final job has a shared stage 2 all the same
    assert POPULATION in done.memories()
    tested, trained = (done.parts()[part][0] for part in ("test", "train"))
    assert f"trials of {POPULATION}" in shown(done.folder, POPULATION)
    text = shown(done.folder, tested)
    assert "searched for the population" in text and "own memory" in text and tested in text
    for nobody in (trained, "someone else"):
        with pytest.raises(RunFolderError, match="no such user"):
            user_view(done.folder, nobody)


def test_users_with_samples_of_their_own_are_searched_together_and_all_get_a_memory(
    work: Callable[..., Done],
) -> None:
    done = work("search.unit=population", samples=14, users=range(3))
    aliases = set(dict(done.folder.fingerprint))  # type: ignore[arg-type]
    assert done.memories() == set(done.scores()) == aliases and len(aliases) == 3
    assert {found["placement"] for found in done.scores().values()} == {done.table("chosen").placement[0]}
    assert set(done.table("scores").model) == {"base", "own", "other"}
    assert set(done.table("trials").user) == {POPULATION}


def test_more_trials_that_choose_otherwise_have_the_shared_adapter_made_anew(
    work: Callable[..., Done],
) -> None:
    """Everything depends on the choice: what is of another one is made again, the rest is kept."""
    before = work(BY_USER)
    chosen, events = before.table("chosen"), before.events()
    shared = before.folder.layout.memory_config(POPULATION).stat().st_mtime_ns
    after = work(BY_USER, "search.trials=9")
    assert after.events()[: len(events)] == events
    assert sum(event["event"] == "told" for event in after.events()) == 9
    again = after.folder.layout.memory_config(POPULATION).stat().st_mtime_ns != shared
    now = after.table("chosen").placement[0]
    assert again is (now != chosen.placement[0])
    assert again, "the choice is the same: the test shows nothing"
    for alias in after.memories():
        check_note(after.folder.layout.memory(alias), placement=now, user=alias)
    assert {found["placement"] for found in after.scores().values()} == {now}


def test_a_finished_run_goes_on_without_users_who_left(work: Callable[..., Done]) -> None:
    before = work(BY_USER)
    parts = before.parts()
    gone, left = parts["validation"][0], parts["test"][0]
    kept = [n for n in range(10) if before.folder.alias(f"{CANARY}-{n}") != gone]
    assert len(kept) == 9
    with pytest.raises(AssertionError, match="no validation user"):
        work(BY_USER, users=kept)
    kept = [n for n in range(10) if before.folder.alias(f"{CANARY}-{n}") != left]
    after = work(BY_USER, users=kept)
    assert "left out from here on" in after.printed
    assert set(after.table("scores").user) == set(parts["test"]) - {left}
