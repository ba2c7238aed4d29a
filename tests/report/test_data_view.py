"""`milp-ray data stats` on a file and on a study."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from milp_ray.cli import app

SECRET = "zq canary zq"


def lines(samples: int) -> str:
    exchange = {"query": f"what, {SECRET}", "response": "a b", "n_hist": 1}
    user = {"user_id": SECRET, "history": ["x"], "samples": [exchange] * samples}
    return json.dumps(user) + "\n" + json.dumps({"user_id": "b", "history": [], "samples": []}) + "\n"


def printed(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "stats", *words])
    assert SECRET not in done.output
    return done.exit_code, " ".join(done.output.split())


def test_a_file_is_told_in_numbers_with_its_licence_and_regime(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(lines(2))
    code, text = printed(str(path))
    assert code == 0
    assert "users 1 samples 2 samples a user, mean 2.0" in text and "words a response, mean 2.0" in text
    assert "licence your own" in text and "a user is one line is one user" in text
    assert "1 left out users with no history" in text
    assert "set data.split.regime: by_user (it is per_user)" in text
    assert "as is set" in printed(str(path), "data.split.regime=by_user")[1]


def test_a_study_says_how_its_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(f"who,query,response\n{SECRET},q,r\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: s\nmodel: {{path: none}}\ndata:\n  path: {tmp_path}/users.csv\n  format: table\n"
        "  columns: {user: who}\n"
    )
    code, text = printed(str(study))
    assert code == 0 and "users 1" in text and "format table" in text


def test_a_faulty_file_or_override_is_an_error(tmp_path: Path) -> None:
    assert printed(str(tmp_path / "none.jsonl"))[0] == 2
    (tmp_path / "u.jsonl").write_text(lines(1))
    assert printed(str(tmp_path / "u.jsonl"), "data.formt=table")[0] == 2
    assert printed(str(tmp_path / "u.jsonl"), "data.min_samples=1")[0] == 0
