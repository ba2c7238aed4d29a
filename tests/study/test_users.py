"""Whose run it is: nothing visible follows the order of the file, and one user who leaves ends
nothing."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from milp_ray.config import Study
from milp_ray.config.loading import load_study, resolved
from milp_ray.errors import DataError, StudyError
from milp_ray.ids import alias_of, new_key, number_of
from milp_ray.memory.placement import Placement
from milp_ray.report.console import fronts_view
from milp_ray.search.core.events import EventLog
from milp_ray.study.check import check_study
from milp_ray.study.driver import _made, _opened
from milp_ray.study.inputs import Inputs, load_inputs
from milp_ray.study.population import Population
from milp_ray.study.results import write_tables
from milp_ray.study.run import Run
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.users import Users, load_users
from milp_ray.tune.cluster.processes import WorkerProcess
from milp_ray.tune.final.coordinator import Coordinator, FinalSpec, FinalTask
from milp_ray.tune.search.simulated import SimulatedSpec
from tests.study.conftest import bare_model, user_line

TRIALS = 3
NAMES = tuple(f"person-{number}" for number in range(6))
KEY = bytes(range(32))


def line_of(name: str) -> str:
    return user_line(NAMES.index(name) if name in NAMES else 9, user_id=name)


def write_users(folder: Path, names: Iterable[str]) -> None:
    (folder / "users.jsonl").write_text("".join(f"{line_of(name)}\n" for name in names), encoding="utf-8")


def study_in(folder: Path, names: Iterable[str] = NAMES, **changes: object) -> Study:
    """A simulated study of these users."""
    model = bare_model(folder / "model")
    write_users(folder, names)
    values: dict[str, object] = {
        "name": "dry",
        "model": {"path": str(model)},
        "data": {"path": str(folder / "users.jsonl")},
        "search": {"trials": TRIALS, "initial": TRIALS, "batch": 1, "surrogate": "random"},
        "simulation": {"failures": 0.3},
        "storage": {"path": str(folder / "runs")},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return resolved(load_study(folder / "study.yaml"))


def begun(study: Study, key: bytes | None = KEY) -> RunFolder:
    key = key or new_key()
    inputs = load_inputs(study, key)
    return RunFolder.create(study, inputs.users.fingerprint, key, inputs.base)


def users_of(folder: RunFolder) -> Users:
    return load_users(folder.study, folder.key, folder.fingerprint)


def aliases(*names: str, key: bytes = KEY) -> list[str]:
    return sorted(alias_of(name, key) for name in names)


def searched(folder: RunFolder, inputs: Inputs) -> None:
    """Search all users one after the other, in the run's order, by the simulation's values."""
    population, study = Population(folder, inputs), folder.study
    simulated = SimulatedSpec(
        study, inputs.architecture, {alias: inputs.users.number(alias) for alias in inputs.users.splits}
    )
    for cohort in population.cohorts():
        with population.opened(cohort) as engines:
            for alias, engine in engines.items():
                problem = simulated.problem(alias)
                engine.set_reference(problem.no_memory)
                for proposal in engine.ask(TRIALS):
                    if simulated.fails(alias, proposal.id):
                        engine.fail(proposal.id, "simulated failure")
                    else:
                        engine.tell(proposal.id, problem.measure(proposal.placement))
    write_tables(folder, population, inputs.architecture)


def without_times(content: bytes) -> bytes:
    """A file's content but for when things happened."""
    return re.sub(rb'"(time|created|seconds)": ?("[^"]*"|[\d.e+-]+)', b"", content)


def final_jobs(folder: RunFolder, inputs: Inputs) -> list[FinalTask]:
    """Who is trained when, and beside whose memory tested."""
    placements = {alias: Placement.from_key("1:8") for alias in Population(folder, inputs).chosen()}
    coordinator = Coordinator(FinalSpec(folder.study, {}, placements, folder.root), 0)
    coordinator.begin(1)
    coordinator.start(0, 0, WorkerProcess("node", 1))
    jobs = []
    while isinstance(job := coordinator.next(0), FinalTask):
        jobs.append(job)
        coordinator.end(0, "")
    assert len(jobs) == 2 * len(placements)
    return jobs


def test_nothing_that_is_written_follows_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one key, runs over the file and over the file in another order are the same, byte for
    byte."""
    logged: list[str] = []
    append = EventLog.append

    def noted(log: EventLog, *words: object) -> object:
        logged.append(Path(log.path or "").stem)
        return append(log, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(EventLog, "append", noted)
    runs = []
    for place, names in enumerate((NAMES, NAMES[::-1], NAMES[3:] + NAMES[:3])):
        folder = begun(study_in(tmp_path, names))
        logged.clear()
        inputs = load_inputs(folder.study, folder.key, folder.fingerprint)
        searched(folder, inputs)
        files = {
            str(path.relative_to(folder.root)): without_times(path.read_bytes())
            for path in sorted(folder.root.rglob("*"))
            if path.suffix in (".jsonl", ".csv", ".yaml", ".json") and "experiments" not in path.parts
        }
        console = Console(record=True, width=160, file=io.StringIO())
        console.print(fronts_view(folder))
        runs.append((files, list(logged), console.export_text(), final_jobs(folder, inputs)))
        assert len(files) >= len(NAMES) + 6
        assert list(dict.fromkeys(logged)) == aliases(*NAMES), "and so are the logs' times"
        assert list(json.loads((folder.root / "run.json").read_text())["data_fingerprint"]) == aliases(*NAMES)
        folder.root.rename(tmp_path / f"run-{place}")
    for other in runs[1:]:
        assert other[0].keys() == runs[0][0].keys()
        assert [name for name in other[0] if other[0][name] != runs[0][0][name]] == []
        assert other[1:] == runs[0][1:]
    by_file = [alias_of(name, KEY) for name in NAMES]
    assert aliases(*NAMES) not in (by_file, by_file[::-1]), "else the test shows nothing"


def test_seeds_follow_from_the_alias_and_no_file_holds_a_position(tmp_path: Path) -> None:
    folder = begun(study_in(tmp_path, seed=5))
    inputs = load_inputs(folder.study, folder.key, folder.fingerprint)
    searched(folder, inputs)
    seeds = {
        log.stem: json.loads(log.read_text().splitlines()[0])["seed"]
        for log in (folder.root / "events").glob("*.jsonl")
    }
    assert seeds == {alias: 5 * 1_000_003 + number_of(alias) for alias in inputs.users.splits}
    assert all(2**20 < seed < 2**53 for seed in seeds.values()), "whole in every reader of JSON"


def test_the_digest_of_a_users_data_cannot_be_made_without_the_key(tmp_path: Path) -> None:
    study = study_in(tmp_path, NAMES[:2])
    one, other = (dict(load_users(study, key).fingerprint) for key in (KEY, KEY[::-1]))  # type: ignore[arg-type]
    assert not set(one.values()) & set(other.values())
    text = (tmp_path / "users.jsonl").read_bytes()
    guesses = [text, *text.splitlines(), *text.splitlines(keepends=True)]
    digests = {hashlib.new(kind, guess).hexdigest() for kind in ("sha256", "md5") for guess in guesses}
    stored = (begun(study).root / "run.json").read_text()
    assert not any(digest[:32] in stored for digest in digests)
    same = "".join(f"{user_line(1, user_id=name)}\n" for name in ("ann", "bob"))
    (tmp_path / "users.jsonl").write_text(same)
    assert len(set(dict(load_users(study, KEY).fingerprint).values())) == 2, "equal texts do not show"


def test_a_user_whose_line_was_removed_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    study = study_in(
        tmp_path, search={"trials": TRIALS, "initial": TRIALS, "surrogate": "random", "cohort": 2}
    )
    folder = begun(study)
    inputs = load_inputs(folder.study, folder.key, folder.fingerprint)
    searched(folder, inputs)
    before = Population(folder, inputs)
    gone = alias_of(NAMES[2], KEY)
    write_users(tmp_path, [*NAMES[:2], *NAMES[3:]])
    again = load_inputs(folder.study, folder.key, folder.fingerprint)
    assert set(before.aliases) - set(again.users.splits) == {gone}
    (note,) = again.users.notes
    assert (
        note.startswith(f"1 user of the run is in the data no more ({gone})")
        and "until you delete it" in note
    )
    assert folder.layout.events(gone).exists(), "what is finished stays"
    after = Population(folder, again)
    without = [tuple(a for a in group if a != gone) for group in before.cohorts()]
    assert after.cohorts() == without and all(
        after.engine(alias).counts == before.engine(alias).counts for alias in after.aliases
    )
    write_tables(folder, after, again.architecture)
    for path in folder.root.glob(f"*/*{gone}*"):  # as docs/data.md has it
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    held = [
        path.name for path in folder.root.rglob("*") if path.is_file() and gone.encode() in path.read_bytes()
    ]
    assert held == ["run.json"], "of a user who is forgotten nothing is left but the bare alias"
    console = Console(record=True, width=200, file=io.StringIO())
    Run(folder, again, console)
    console.print(check_study(study))
    assert console.export_text().count("in the data no more") == 2
    write_users(tmp_path, NAMES)  # back again
    assert users_of(folder).splits == inputs.users.splits and not users_of(folder).notes


def test_users_whose_data_changed_are_named_by_alias(tmp_path: Path) -> None:
    folder = begun(study_in(tmp_path))
    text = (tmp_path / "users.jsonl").read_text()
    changed = [
        line.replace("plain tea", "green tea") if i in (1, 4) else line
        for i, line in enumerate(text.splitlines())
    ]
    (tmp_path / "users.jsonl").write_text("\n".join(changed) + "\n")
    with pytest.raises(DataError, match="2 problems") as caught:
        users_of(folder)
    assert [p.where for p in caught.value.problems] == aliases(NAMES[1], NAMES[4])
    assert (
        caught.value.exit_code == 2 and "person-" not in str(caught.value) and "tea" not in str(caught.value)
    )


def test_how_a_line_is_written_is_no_change(tmp_path: Path) -> None:
    folder = begun(study_in(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "users.jsonl").read_text().splitlines()]
    turned = [
        json.dumps(dict(reversed(line.items())), indent=None, separators=(" , ", " : ")) for line in lines
    ]
    (tmp_path / "users.jsonl").write_text("\n".join(turned[::-1]) + "\n\n")
    assert list(users_of(folder).splits) == aliases(*NAMES)


def test_new_users_are_told_and_not_searched(tmp_path: Path) -> None:
    study = study_in(tmp_path, NAMES[:3])
    folder = begun(study)
    write_users(tmp_path, ["zoe", *NAMES[:3]])
    users = users_of(folder)
    assert list(users.splits) == aliases(*NAMES[:3]) and "1 user came into the data" in users.notes[0]
    counted = begun(
        study.model_copy(update={"name": "two", "data": study.data.model_copy(update={"users": 2})})
    )
    first = list(users_of(counted).splits)
    write_users(tmp_path, [NAMES[2], "zoe", NAMES[1], *NAMES[3:], NAMES[0]])
    assert list(users_of(counted).splits) == first and not users_of(counted).notes, (
        "not the first two of today"
    )
    write_users(tmp_path, ["someone", "else"])
    with pytest.raises(DataError, match="none of the 2 users"):
        users_of(counted)


def test_who_is_taken_out_of_a_studys_list_is_left_out_too(tmp_path: Path) -> None:
    def study(*names: str) -> Study:
        return study_in(tmp_path, NAMES, data={"path": str(tmp_path / "users.jsonl"), "users": list(names)})

    folder = begun(study(NAMES[4], NAMES[0], NAMES[2]))
    assert folder.study.data.users == tuple(aliases(NAMES[0], NAMES[2], NAMES[4])), (
        "the list's order is not kept"
    )
    fewer = RunFolder.of(study(NAMES[2], NAMES[4]))
    assert fewer is not None and list(users_of(fewer).splits) == aliases(NAMES[2], NAMES[4])
    assert "1 user of the run is in the data no more" in users_of(fewer).notes[0]
    with pytest.raises(StudyError, match=r"data\.users"):
        RunFolder.of(study(NAMES[2], NAMES[5]))


# Runs of format 1, as earlier versions made them.


def of_format_1(study: Study) -> RunFolder:
    """A run of format 1: one digest of the whole file, and a list of users in the study's own
    order."""
    folder = begun(study)
    meta = json.loads((folder.root / "run.json").read_text())
    digest = hashlib.sha256(Path(study.data.path).read_bytes()).hexdigest()
    (folder.root / "run.json").write_text(json.dumps(meta | {"format": 1, "data_fingerprint": digest}))
    frozen = yaml.safe_load((folder.root / "study.yaml").read_text())
    if isinstance(study.data.users, tuple):
        frozen["data"]["users"] = [alias_of(user, folder.key) for user in study.data.users]
    del frozen["data"]["alias_key"]
    (folder.root / "study.yaml").write_text(yaml.safe_dump(frozen))
    return RunFolder.open(folder.root)


def test_a_run_of_format_1_goes_on_with_the_files_order_and_positions(tmp_path: Path) -> None:
    folder = of_format_1(study_in(tmp_path, seed=5))
    inputs = load_inputs(folder.study, folder.key, folder.fingerprint)
    order = [alias_of(name, KEY) for name in NAMES]
    assert list(inputs.users.splits) == order == list(Population(folder, inputs).aliases)
    assert [inputs.users.number(alias) for alias in order] == list(range(len(NAMES)))
    searched(folder, inputs)
    created = json.loads(folder.layout.events(order[3]).read_text().splitlines()[0])
    assert created["seed"] == 5 * 1_000_003 + 3
    write_users(tmp_path, NAMES[1:])
    with pytest.raises(DataError, match="the data file has changed"):
        users_of(folder)


def test_a_run_of_format_1_is_what_it_was_also_under_overrides(tmp_path: Path) -> None:
    folder = of_format_1(study_in(tmp_path))
    opened = _opened(folder.root, ["ray.max_concurrent=3"], "resume")
    assert opened.study.ray.max_concurrent == 3 and opened.study.data == folder.study.data
    assert opened.study.data.text_rules == 1


def test_a_run_of_format_1_with_a_list_of_users_is_still_of_its_study(tmp_path: Path) -> None:
    def study(*names: str) -> Study:
        return study_in(tmp_path, NAMES, data={"path": str(tmp_path / "users.jsonl"), "users": list(names)})

    of_format_1(study(NAMES[4], NAMES[0]))
    again = RunFolder.of(study(NAMES[4], NAMES[0]))
    assert again is not None
    assert list(users_of(again).splits) == [alias_of(NAMES[0], KEY), alias_of(NAMES[4], KEY)]
    with pytest.raises(StudyError, match=r"data\.users"):
        RunFolder.of(study(NAMES[4]))


# A key of one's own.


def key_file(folder: Path, content: bytes = KEY, mode: int = 0o600) -> str:
    file = folder / "alias.key"
    file.write_bytes(content)
    file.chmod(mode)
    return str(file)


def keyed(folder: Path, key: str, name: str = "dry") -> Study:
    return study_in(folder, data={"path": str(folder / "users.jsonl"), "alias_key": key}, name=name)


def test_runs_with_one_key_are_alike_and_with_keys_of_their_own_are_not(tmp_path: Path) -> None:
    key = key_file(tmp_path)
    runs = [_made(keyed(tmp_path, key, name))[0] for name in ("one", "two")]
    runs.append(_made(study_in(tmp_path, name="three"))[0])
    assert runs[0].key == runs[1].key == KEY != runs[2].key
    numbers = [{alias: users_of(run).number(alias) for alias in users_of(run).splits} for run in runs]
    assert numbers[0] == numbers[1] and not set(numbers[0].values()) & set(numbers[2].values())
    key_file(tmp_path, KEY[::-1])
    with pytest.raises(StudyError, match=r"alias_key: is another key than the run's"):
        RunFolder.of(keyed(tmp_path, key, "two"))
    assert RunFolder.of(study_in(tmp_path, name="two")) is not None, "the run has its key"


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (KEY, 0o640, "mode 0640"),
        (KEY[:-1], 0o600, "holds 31 bytes"),
        (KEY * 2, 0o600, "more than 32"),
        (b"", 0o600, "holds 0 bytes"),
        (None, 0, "No such file"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes | None, mode: int, told: str) -> None:
    key = str(tmp_path / "none") if content is None else key_file(tmp_path, content, mode)
    study = keyed(tmp_path, key)
    with pytest.raises(DataError, match=told) as caught:
        _made(study)
    assert caught.value.exit_code == 2 and "remedy: " in str(caught.value)
    with pytest.raises(StudyError, match=told):
        check_study(study)
    assert not (tmp_path / "runs").exists()
