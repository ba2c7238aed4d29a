"""docs/errors.md, row by row, through the command line: one clear error, code 2, nothing
half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from milp_ray.config.loading import load_study, resolved
from milp_ray.errors import ClusterError, RunBusyError, StudyError
from milp_ray.ids import new_key
from milp_ray.storage import write_json
from milp_ray.study import creation, driver, run_folder
from milp_ray.study.inputs import Inputs, load_inputs
from tests.study.conftest import CANARY, Start, call, user_line


def unwrapped(output: str) -> str:
    """Lines are broken where the terminal ends, whose width others may set."""
    return " ".join(output.split())


def refused(study: Path, *overrides: str, exit_code: int = 2) -> str:
    """`search` refuses with this exit code and leaves nothing behind."""
    before = sorted(study.parent.rglob("*"))
    code, output = call("search", str(study), *overrides)
    assert code == exit_code, output
    assert "error:" in output and CANARY not in output and "Traceback" not in output
    assert sorted(study.parent.rglob("*")) == before, "something was left behind"
    return output


def data_with(study: Path, *lines: str) -> Path:
    (study.parent / "users.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return study


def test_missing_file(tmp_path: Path) -> None:
    code, output = call("search", str(tmp_path / "absent.yaml"))
    assert code == 2 and "no such file" in output and "milp-ray init" in output


def test_malformed_yaml(study_file: Path) -> None:
    study_file.write_text("name: [unclosed\n")
    assert "line 2" in refused(study_file)


def test_unknown_key_with_the_nearest(study_file: Path) -> None:
    study_file.write_text(study_file.read_text() + "serach: {}\n")
    assert "did you mean 'search'?" in refused(study_file)


def test_trials_below_initial(study_file: Path) -> None:
    assert "trials (3) is smaller than initial (4)" in refused(study_file, "search.trials=3")


def test_wrong_model_path(study_file: Path) -> None:
    assert "model.path" in refused(study_file, "model.path=/nowhere/at/all")


def test_unsupported_architecture(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(
        json.dumps({"model_type": "t5", "architectures": ["T5Model"]})
    )
    output = refused(study_file, f"model.path={tmp_path / 't5'}")
    assert "'t5' is not supported" in output and "llama" in output and "architectures.py" in output


def test_a_rank_above_the_layer_width(study_file: Path) -> None:
    output = refused(study_file, "memory.ranks=[8, 512]")
    assert "512" in output and "above the layer width of the model, 32" in output


def test_texts_longer_than_the_models_context(study_file: Path) -> None:
    assert "at most 128" in refused(study_file, "prompts.max_length=4096")


def test_empty_data(study_file: Path) -> None:
    assert "users.jsonl" in refused(data_with(study_file))


def test_only_users_with_too_few_samples(study_file: Path) -> None:
    output = refused(data_with(study_file, user_line(1, samples=3)))
    assert "fewer than 10 samples" in output and "data.split.regime: by_user" in output


def test_a_further_file_that_is_missing_is_named_with_its_setting(study_file: Path) -> None:
    questions = study_file.parent / "dev_questions.json"
    questions.write_text(f'[{{"id": "1", "input": "{CANARY}", "profile": []}}]', encoding="utf-8")
    output = refused(study_file, f"data.path={questions}", "data.format=lamp")
    assert "dev_outputs.json" in output and "data.files.outputs" in output


def test_a_table_whose_columns_are_called_otherwise(study_file: Path) -> None:
    table = study_file.parent / "t.csv"
    table.write_text(f"{CANARY},query,response\n{CANARY},q,r\n", encoding="utf-8")
    output = refused(study_file, f"data.path={table}", "data.format=table", "data.columns={user: who}")
    assert "none is called 'who'" in output and "data.columns" in output


def test_duplicate_ids_are_found_by_line(study_file: Path) -> None:
    output = refused(data_with(study_file, user_line(1), user_line(2), user_line(1)))
    assert "users.jsonl:3" in output


def test_damaged_data_is_reported_all_at_once_without_content(study_file: Path) -> None:
    bad = user_line(2).replace('"n_hist": 2', '"n_hist": NaN')
    output = refused(data_with(study_file, user_line(1), bad, '{"user_id": ', "[1, 2]"))
    assert all(f"users.jsonl:{line}" in output for line in (2, 3, 4))


def test_an_unknown_surrogate(study_file: Path) -> None:
    assert "saas" in refused(study_file, "search.surrogate=sass")


def test_a_storage_that_cannot_be_written(study_file: Path) -> None:
    (study_file.parent / "occupied").write_text("a file")
    assert "storage.path" in refused(
        study_file, f"storage.path={study_file.parent / 'occupied'}", exit_code=1
    )


def test_a_full_disk_when_the_run_folder_is_made(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study_file.parent / "runs").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(creation.os, "fdopen", full)
    assert "No space left" in refused(study_file, exit_code=1)


def test_a_cluster_that_cannot_be_had_leaves_the_name_free(study_file: Path) -> None:
    (study_file.parent / "runs").mkdir()
    output = refused(study_file, "ray.address=127.0.0.1:1", exit_code=1)
    assert "nothing answers at 127.0.0.1:1" in output and "milp-ray resume" not in output


def test_too_few_users_to_be_divided(study_file: Path) -> None:
    assert "at least 3, one in each part" in refused(study_file, "data.split.regime=by_user")


def test_check_says_everything_at_once_and_writes_nothing(study_file: Path) -> None:
    before = sorted(study_file.parent.rglob("*"))
    code, output = call(
        "check", str(study_file), "model.path=/nowhere/x", "data.path=/nowhere/y", "search.surrogate=sass"
    )
    assert code == 2 and "3 problems" in output
    code, output = call("check", str(study_file))
    assert code == 0, output
    for part in (
        "llama, 4 layers",
        "6 a user",
        "12 in all",
        "trainable parameters",
        "GiB",
        "the study is fine",
    ):
        assert part in output
    assert sorted(study_file.parent.rglob("*")) == before


def test_check_says_what_a_chat_template_asks_for(study_file: Path, shallow_model: Path) -> None:
    folder = own_model(study_file, shallow_model)
    (folder / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:"
        "{{ '<think>' if enable_thinking is not defined }}{% endif %}",
        encoding="utf-8",
    )
    asked = ("check", str(study_file), f"model.path={folder}", "prompts.style=chat")
    code, output = call(*asked)
    assert code == 2 and "opens a thinking block" in unwrapped(output)
    code, output = call(*asked, "prompts.thinking=off", "prompts.date=2026-01-02")
    assert code == 0, output
    for part in ("responses end with </s>", "2026-01-02 (UTC)", "{'enable_thinking': False}"):
        assert part in unwrapped(output)


def test_check_says_that_this_machine_has_no_gpu_for_it(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fault, since it may be submitted to where there is one; but no word would be
    misleading."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for asked in ("model.device=cuda", "ray.gpus_per_worker=0.5"):
        code, output = call("check", str(study_file), asked)
        assert code == 0, output
        assert f"{asked.partition('=')[0]} asks for a GPU, and this machine has none" in unwrapped(output)
    assert "asks for a GPU" not in unwrapped(call("check", str(study_file))[1])


def a_run(study_file: Path, *overrides: str) -> run_folder.RunFolder:
    """A run that was begun and has searched nothing, as of a job that was cut off early."""
    study = resolved(load_study(study_file, overrides))
    key = new_key()
    inputs = load_inputs(study, key)
    return run_folder.RunFolder.create(study, inputs.users.fingerprint, key, inputs.base)


def own_model(study_file: Path, shallow_model: Path) -> Path:
    return Path(shutil.copytree(shallow_model, study_file.parent / "model"))


def test_check_on_a_run_that_is_there_says_how_far_it_is(study_file: Path) -> None:
    folder = a_run(study_file)
    (folder.root / "events").mkdir()
    (folder.root / "scores").mkdir()
    users = list(load_inputs(folder.study, folder.key).users.splits)
    lines = [{"event": kind} for kind in ("created", "asked", "told", "failed", "told")]
    folder.layout.events(users[0]).write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"event":"to'
    )
    write_json(folder.layout.scores(users[1]), {})
    before = {path: path.stat().st_mtime_ns for path in study_file.parent.rglob("*")}
    code, output = call("check", str(study_file), "ray.max_concurrent=3")
    assert code == 0 and "the study is fine" in output, output
    assert "goes on with it: 3 of 12 trials ended, 1 of 2 users tested" in unwrapped(output)
    code, output = call("check", str(study_file), "search.trials=5", "seed=4")
    assert code == 2 and "2 problems" in output and "search.trials: is 5, and the run was given 6" in output
    assert {path: path.stat().st_mtime_ns for path in study_file.parent.rglob("*")} == before
    data_with(study_file, user_line(1, samples=15), user_line(3))
    code, output = call("check", str(study_file))
    assert code == 2 and "1 problem" in output and "data has changed since the run began" in output
    data_with(study_file, user_line(1), user_line(3))
    code, output = call("check", str(study_file))
    assert code == 0 and "1 user of the run is in the data no more" in unwrapped(output)


def test_check_ends_with_1_where_the_storage_alone_is_at_fault(study_file: Path) -> None:
    (study_file.parent / "occupied").write_text("a file")
    occupied = f"storage.path={study_file.parent / 'occupied'}"
    code, output = call("check", str(study_file), occupied)
    assert code == 1 and "occupied is a file" in output and "1 problem" in output
    code, output = call("check", str(study_file), occupied, "search.surrogate=sass")
    assert code == 2 and "2 problems" in output and "occupied is a file" in output


def test_a_resumed_run_refuses_other_data_and_other_settings(study_file: Path) -> None:
    folder = a_run(study_file)
    code, output = call("resume", str(folder.root), "search.trials=9", "seed=4")
    assert code == 2 and "keeps its study" in output
    data_with(study_file, user_line(1, samples=15), user_line(3))
    code, output = call("resume", str(folder.root))
    assert code == 2 and "data has changed since the run began" in output and CANARY not in output
    data_with(study_file, user_line(1), user_line(3))
    code, output = call("resume", str(folder.root), NOBODY)
    assert code == 1 and "nothing answers" in output, "without the other user it would go on"


NOBODY = "ray.address=127.0.0.1:1"  # where a resume that refused nothing ends, with 1


def test_a_resumed_run_refuses_another_base_model(study_file: Path, shallow_model: Path) -> None:
    model = own_model(study_file, shallow_model)
    folder = a_run(study_file, f"model.path={model}")
    code, output = call("resume", str(folder.root), NOBODY)
    assert code == 1 and "nothing answers" in output
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-400:] = bytes(400)  # trained further: the same names, shapes and sizes
    (model / "model.safetensors").write_bytes(weights)
    for words in (("resume", str(folder.root), NOBODY), ("check", str(study_file), f"model.path={model}")):
        code, output = call(*words)
        assert code == 2 and "the base model has changed since the run began (model.safetensors)" in output
    meta = folder.root / "run.json"
    meta.write_text(json.dumps({k: v for k, v in json.loads(meta.read_text()).items() if k != "base"}))
    code, output = call("resume", str(folder.root), NOBODY)
    assert code == 1 and "nothing answers" in output, "a run from before bases were told apart still resumes"


def test_a_simulated_run_needs_no_base(study_file: Path, shallow_model: Path) -> None:
    model = own_model(study_file, shallow_model)
    words = (f"model.path={model}", "simulation={}")
    folder = a_run(study_file, *words)
    (model / "model.safetensors").unlink()
    assert folder.base == {}
    code, output = call("check", str(study_file), *words)
    assert code == 0 and "0 of 12 trials ended" in unwrapped(output) and "tested" not in output


def test_other_packages_are_a_note(study_file: Path) -> None:
    folder = a_run(study_file)
    _, output = call("resume", str(folder.root), NOBODY)
    assert "note:" not in output
    meta = json.loads((folder.root / "run.json").read_text())
    meta["packages"] |= {"torch": "1.0", "gone": "2.0"}
    (folder.root / "run.json").write_text(json.dumps(meta))
    code, output = call("resume", str(folder.root), NOBODY)
    assert code == 1 and "begun with torch 1.0 (now " in output and "gone 2.0 (now absent)" in output


def test_a_job_that_begins_beside_another_of_its_study(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find no run; while this one reads data and model, the other one makes it."""
    study, console = load_study(study_file, [NOBODY]), Console(quiet=True)
    made: list[run_folder.RunFolder] = []
    overrides: list[str] = []

    def slow(*words: object) -> Inputs:
        if not made:
            made.append(a_run(study_file, *overrides))
        return load_inputs(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "load_inputs", slow)
    with pytest.raises(ClusterError, match="nothing answers"):
        driver.start_or_resume(study, console)
    assert made[0].key == run_folder.RunFolder.open(made[0].root).key, "it goes on with the other's run"

    shutil.rmtree(made[0].root)
    made.clear()

    def held(*words: object) -> Inputs:
        result = slow(*words)
        if not holding:
            holding.append(made[0].lock())
            holding[0].__enter__()
        return result

    holding: list[contextlib.AbstractContextManager[None]] = []
    monkeypatch.setattr(driver, "load_inputs", held)
    with pytest.raises(RunBusyError) as caught:
        driver.start_or_resume(study, console)
    assert caught.value.exit_code == 1
    holding[0].__exit__(None, None, None)

    shutil.rmtree(made[0].root)
    made.clear()
    overrides.append("seed=9")
    monkeypatch.setattr(driver, "load_inputs", slow)
    with pytest.raises(StudyError, match="is of another study"):
        driver.start_or_resume(study, console)


def _can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["mount", "--version"], capture_output=True).returncode == 0


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not _can_mount(), reason="needs the right to mount a small tmpfs")
def test_a_disk_that_fills_up_in_the_middle_loses_nothing(study_file: Path, start: Start) -> None:
    disk = study_file.parent / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        first = start("search", str(study_file), f"storage.path={disk}", "final.automatic=false")
        output = first.communicate()[0]
        assert first.returncode == 1 and "No space left" in output and "milp-ray resume" in output, output
        assert "Traceback" not in output
        logs = sorted((disk / "small" / "events").glob("*.jsonl"))
        lines = [line for log in logs for line in log.read_text().splitlines()]
        told = [line for line in lines if json.loads(line)["event"] == "told"]
        assert told, "the disk was full before anything was measured: the test shows nothing"
        assert not [path for path in (disk / "small").rglob("*") if ".tmp" in path.name]

        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        again = start("resume", str(disk / "small"))
        output = again.communicate()[0]
        assert again.returncode == 0, output
        after = [line for log in logs for line in log.read_text().splitlines()]
        assert set(told) <= set(after) and sum(json.loads(line)["event"] == "told" for line in after) == 12
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_the_table_in_the_docs_names_what_is_tested_here() -> None:
    table = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    assert table.count("\n| ") >= 18
