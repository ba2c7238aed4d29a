"""What could not be served is told before a search."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from milp_ray.config.loading import load_study
from milp_ray.errors import StudyError
from milp_ray.serving.check import check_served
from tests.study.conftest import bare_model, call


def a_study(folder: Path, **memory: object) -> Path:
    study = {
        "name": "small",
        "model": {"path": str(bare_model(folder / "model", layers=8, width=1024))},
        "data": {"path": str(folder / "users.jsonl")},
        "memory": {"ranks": [8, 128]} | memory,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def test_a_rank_that_no_server_takes_is_told_before_the_search(tmp_path: Path) -> None:
    study = load_study(a_study(tmp_path))
    with pytest.raises(StudyError, match=r"rank can be 1024(.|\n)*memory\.max_rank: 512"):
        check_served(study, "vllm")
    assert "ranks up to 1024" in check_served(study, "sglang")
    bounded = load_study(a_study(tmp_path, max_rank=128))
    assert check_served(bounded, "vllm") == (
        "vLLM 0.33.0 serves every memory of this study, of ranks up to 128"
    )


def test_the_command_says_it_and_refuses(tmp_path: Path) -> None:
    code, output = call("check", str(a_study(tmp_path)), "--serve", "vllm")
    assert code == 2 and "memory.max_rank" in output
    code, output = call("check", str(a_study(tmp_path)), "--serve", "vlm")
    assert code == 2 and "one of peft, vllm" in output
