"""docs/errors.md, row by row, through the command line: one clear error, code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milp_ray.cli import app
from milp_ray.study import run_folder

from .conftest import CANARY, Start, user_line


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


def refused(study: Path, *overrides: str, exit_code: int = 2) -> str:
    """`search` refuses with this exit code and leaves nothing behind."""
    before = sorted(study.parent.rglob("*"))
    code, output = run("search", str(study), *overrides)
    assert code == exit_code, output
    assert "error:" in output and CANARY not in output and "Traceback" not in output
    assert sorted(study.parent.rglob("*")) == before, "something was left behind"
    return output


def data_with(study: Path, *lines: str) -> Path:
    (study.parent / "users.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return study


def test_missing_file(tmp_path: Path) -> None:
    code, output = run("search", str(tmp_path / "absent.yaml"))
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
    assert "samples" in refused(data_with(study_file, user_line(1, samples=3)))


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

    monkeypatch.setattr(run_folder.os, "fdopen", full)
    assert "No space left" in refused(study_file, exit_code=1)


def test_a_cluster_that_cannot_be_had_leaves_the_name_free(study_file: Path) -> None:
    (study_file.parent / "runs").mkdir()
    output = refused(study_file, "ray.address=127.0.0.1:1", exit_code=1)
    assert "nothing answers at 127.0.0.1:1" in output and "milp-ray resume" not in output


def test_by_user_is_refused_honestly(study_file: Path) -> None:
    assert "not there yet" in refused(study_file, "data.split.regime=by_user")


def test_check_says_everything_at_once_and_writes_nothing(study_file: Path) -> None:
    before = sorted(study_file.parent.rglob("*"))
    code, output = run(
        "check", str(study_file), "model.path=/nowhere/x", "data.path=/nowhere/y", "search.surrogate=sass"
    )
    assert code == 2 and "3 problems" in output
    code, output = run("check", str(study_file))
    assert code == 0, output
    for part in (
        "llama, 12 layers",
        "6 a user",
        "12 in all",
        "trainable parameters",
        "GiB",
        "the study is fine",
    ):
        assert part in output
    assert sorted(study_file.parent.rglob("*")) == before


def test_a_resumed_run_refuses_other_data_and_other_settings(study_file: Path) -> None:
    from milp_ray.config.loading import load_study, resolved
    from milp_ray.study.inputs import load_users

    study = resolved(load_study(study_file))
    key = b"k" * 32
    folder = run_folder.RunFolder.create(study, load_users(study, key).fingerprint, key)
    code, output = run("resume", str(folder.root), "search.trials=9")
    assert code == 2 and "keeps its study" in output
    data_with(study_file, user_line(1), user_line(3))
    code, output = run("resume", str(folder.root))
    assert code == 2 and "has changed since the run began" in output


def _can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["mount", "--version"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_mount(), reason="needs the right to mount a small tmpfs")
def test_a_disk_that_fills_up_in_the_middle_loses_nothing(study_file: Path, start: Start) -> None:
    disk = study_file.parent / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        first = start("search", str(study_file), f"storage.path={disk}")
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
