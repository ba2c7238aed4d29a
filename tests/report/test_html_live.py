"""A run that goes on is reported by its event logs, is not touched, and is watched to its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from milp_ray.config.objectives import objectives_on
from milp_ray.errors import RunFolderError
from milp_ray.layout import LEASES, SCORES
from milp_ray.memory.space import MemorySpace
from milp_ray.report.html.command import report
from milp_ray.report.html.run_data import RunData, read_run
from milp_ray.report.html.user_table import is_complete, user_table
from milp_ray.report.html.verdict import verdict
from milp_ray.report.html.watch import watch
from milp_ray.search import Engine
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import read_table
from tests.report.runs import KEY, LAYERS, aliases, run_of, study_of
from tests.report.test_html import page_of

NAMES = ("loss", "rouge_l")


def begun(root: Path, users: int = 3, trials: int = 10, **sections: object) -> RunFolder:
    found = aliases(users)
    study = study_of(root, search={"trials": trials, "initial": 4, "surrogate": "random"}, **sections)
    return RunFolder.create(study, dict.fromkeys(found, "f" * 32), KEY)


def search(folder: RunFolder, alias: str, told: int, names: Sequence[str] = NAMES, fails: int = 0) -> None:
    """Go on with a user's search, as its driver does."""
    space = MemorySpace(LAYERS, LAYERS, (8, 16, 32))
    engine = Engine(
        space,
        objectives_on(SizedByRank(), names),
        initial=4,
        batch=1,
        surrogate="random",
        trials=folder.study.search.trials,
        reference={"loss": 2.6, "rouge_l": 0.1},
        log=folder.layout.events(alias),
    )
    for number, proposal in enumerate(engine.ask(told + fails)):
        if number < fails:
            engine.fail(proposal.id, "simulated failure")
        else:
            engine.tell(proposal.id, {"loss": 2.5 - 0.01 * proposal.id, "rouge_l": 0.2 + 0.01 * proposal.id})


class SizedByRank:
    """Stands for a base's architecture."""

    def trainable_params(self, placement: object) -> int:
        return 100


def held(folder: RunFolder, beat: int = 0) -> Path:
    claim = folder.root / LEASES / "by-0123456789abcdef"
    claim.parent.mkdir(exist_ok=True)
    claim.write_text(str(beat))
    return claim


def files(folder: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


def ended(run: RunData) -> int:
    return int(run.trials.state.isin(["done", "failed"]).sum())


def test_a_run_that_goes_on_is_reported_by_its_event_logs_and_is_left_as_it_is(tmp_path: Path) -> None:
    folder, users = begun(tmp_path / "runs"), aliases(3)
    held(folder)
    search(folder, users[0], 8)
    search(folder, users[1], 2, fails=1)
    with folder.layout.events(users[1]).open("a") as log:
        log.write('{"event":"told","id":')  # the driver is writing
    before = files(folder)
    run = read_run(folder)
    table = user_table(run)
    assert ended(run) == 11 and run.held and run.from_logs == 2
    assert list(table.state[users]) == ["searching", "searching", "waiting"]
    assert not is_complete(run, table)
    assert table.chosen[users[0]] == 7 and table.front[users[0]] == 1
    assert table.hypervolume[users[0]] > 0
    page = page_of(folder)
    assert "not complete" in page.text and "A driver holds the run" in page.text
    assert "1 of 3 users of the run have no trial" in page.text and "simulated failure" in page.text
    assert page.rows.keys() == set(users)
    report(folder.root, tmp_path / "r.html")
    assert files(folder) == before


def test_tables_are_brought_up_to_the_event_logs_user_by_user(tmp_path: Path) -> None:
    folder, users = begun(tmp_path), aliases(3)
    finished = run_of(tmp_path / "other")
    (finished.root / "tables").rename(folder.root / "tables")
    assert ended(read_run(folder)) == 30
    search(folder, users[0], 4)  # fewer than the table has: an older log changes nothing
    assert read_run(folder).from_logs == 0
    folder.study = folder.study.model_copy(
        update={"search": folder.study.search.model_copy(update={"trials": 14})}
    )
    search(folder, users[0], 10)
    run = read_run(folder)
    assert run.from_logs == 1 and ended(run) == 34
    old = read_table(folder.layout.table("trials"))
    pd.testing.assert_frame_equal(
        run.trials[run.trials.user == users[1]][["trial", "loss"]].reset_index(drop=True),
        old[old.user == users[1]][["trial", "loss"]].reset_index(drop=True),
    )


def test_sizes_are_known_from_logs_where_they_are_an_objective(tmp_path: Path) -> None:
    folder = begun(tmp_path, objectives=("loss", "rouge_l", "trainable_params"))
    search(folder, aliases(3)[0], 8, (*NAMES, "trainable_params"))
    run = read_run(folder)
    assert set(run.trials[run.trials.state == "done"].trainable_params) == {100.0}
    assert len(run.hypervolume) == 8 and page_of(folder).figures


def test_scores_are_read_as_soon_as_a_user_is_tested(tmp_path: Path) -> None:
    folder, users = begun(tmp_path), aliases(3)
    for alias in users:
        search(folder, alias, 10)
    scores = {"loss": 2.0, "rouge_1": 0.1, "rouge_l": 0.1, "chrf": 0.1, "persona_f1": 0.1}
    found = {"samples": 3, "models": {"base": scores | {"loss": 2.2}, "own": scores}}
    (folder.root / SCORES).mkdir()
    folder.layout.scores(users[0]).write_text(json.dumps(found))
    held(folder)
    run = read_run(folder)
    table = user_table(run)
    assert list(table.state[users]) == ["tested", "searched", "searched"]
    assert table.gain[users[0]] == pytest.approx(0.2)
    facts = {fact.label: fact.value for fact in verdict(run, table)}
    assert facts["Users"] == "1 tested, 2 searched and not tested yet, 0 failed, of 3"


def test_a_damaged_log_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    folder, users = begun(tmp_path), aliases(3)
    search(folder, users[0], 8)
    folder.layout.events(users[1]).write_text("no event\n")
    assert f"The event log of {users[1]} could not be read" in page_of(folder).text


def test_notes_and_other_sources_of_proposals_are_told(tmp_path: Path) -> None:
    folder, users = begun(tmp_path), aliases(3)
    search(folder, users[0], 8)
    log = folder.layout.events(users[0])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [event for event in lines if event["event"] == "asked"]
    asked[-1] |= {"source": "sobol", "notes": ["saas failed after 12 s: sobol proposes"]}
    log.write_text("".join(json.dumps(event) + "\n" for event in lines))
    text = page_of(folder).text
    assert "saas failed after # s: sobol proposes" in text
    assert f"{len(asked[-1]['proposals'])} trials were proposed by sobol in place of random" in text


def test_a_used_up_space_is_told(tmp_path: Path) -> None:
    folder, alias = begun(tmp_path, users=1, simulation={}), aliases(1)[0]
    engine = Engine(
        MemorySpace(1, 2, (8,)), objectives_on(SizedByRank(), NAMES), initial=4, surrogate="random",
        reference={"loss": 2.6, "rouge_l": 0.1}, log=folder.layout.events(alias),
    )  # fmt: skip
    for proposal in engine.ask(10):
        engine.tell(proposal.id, {"loss": 2.0, "rouge_l": 0.2})
    run = read_run(folder)
    table = user_table(run)
    assert run.placements == 2 and is_complete(run, table)
    assert "The space is used up for 1 searches: all 2 placements" in page_of(folder).text


def test_watching_writes_again_until_the_run_is_done(tmp_path: Path) -> None:
    folder, users = begun(tmp_path, simulation={}), aliases(3)
    held(folder)
    lines: list[str] = []
    reports: list[int] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        assert seconds == 7
        clock[0] += seconds
        claim = held(folder, int(clock[0]))
        if clock[0] > 14:  # all is searched: the driver writes its tables, and ends
            claim.unlink()
        for alias in users if clock[0] <= 14 else ():
            search(folder, alias, 5)
        reports.append((folder.root / "report.html").exists())

    watch(folder.root, 7, None, lines.append, sleep, lambda: clock[0])
    assert lines[0] == "no trial yet"
    assert "trials 15 (0 failed); users: 3 searching" in lines[1]
    assert "trials 30 (0 failed); users: 3 searched" in lines[2]
    assert reports == [False, True, True] and lines[3:] == lines[2:3]
    assert "Everything is done." in (folder.root / "report.html").read_text(encoding="utf-8")


def test_watching_ends_where_no_driver_works_any_more(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    lines: list[str] = []
    with pytest.raises(RunFolderError, match="no trial in its event logs"):
        watch(folder.root, 7, None, lines.append)
    search(folder, aliases(3)[0], 5)
    watch(folder.root, 7, None, lines.append)
    assert "no driver works on the run; continue it with: milp-ray resume" in lines[-1]


def test_a_driver_whose_heartbeat_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    held(folder)
    search(folder, aliases(3)[0], 5)
    lines: list[str] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    watch(folder.root, 50, None, lines.append, sleep, lambda: clock[0])
    assert clock[0] == 150 and "no driver works on the run" in lines[-1]


@pytest.mark.usefixtures("own_mirrors")
def test_a_run_at_a_url_is_reported_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    folder, users = begun(tmp_path), aliases(3)
    search(folder, users[0], 8)
    for path, content in files(folder).items():
        name = path.relative_to(tmp_path)
        store.pipe(f"/reports/{name}", content)
    monkeypatch.chdir(tmp_path)
    url = "memory://reports/s"
    assert report(url) == tmp_path / "report-s.html"
    assert users[0] in (tmp_path / "report-s.html").read_text(encoding="utf-8")
    assert not store.exists("/reports/s/report.html")
    search(folder, users[0], 2)  # what has come to the URL since is seen by the same process
    store.pipe(f"/reports/s/events/{users[0]}.jsonl", folder.layout.events(users[0]).read_bytes())
    assert ended(read_run(RunFolder.open(url))) == 10
