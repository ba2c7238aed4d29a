"""The code in README.md runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.study.conftest import write_study

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block_with(text: str) -> str:
    found = [block for block in BLOCKS if text in block]
    assert len(found) == 1
    return found[0]


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_search_alone(tmp_path: Path) -> None:
    code = block_with("Engine(") + "\nimport sys\nassert len(engine.observations) == 4 and engine.front()\n"
    output = run(code + "assert not {'ray', 'transformers'} & set(sys.modules)\n", tmp_path)
    assert len(output.splitlines()) == 4


@pytest.mark.slow
def test_the_training_core_alone(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    write_study(tmp_path, tiny_models["llama"])  # as deep as the one in README
    code = block_with("Trial(") + "\nimport sys\nassert 'ray' not in sys.modules\n"
    assert "Measurement(loss=" in run(code, tmp_path)


def test_wherever_a_memory_is_loaded_what_roberta_needs_is_said() -> None:
    places = [README, (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf-8")]
    for text in places:
        assert 'from_pretrained("my-model")  # RoBERTa: ("my-model", is_decoder=True)' in text
    loading = [line for text in places for line in text.splitlines() if "AutoModelForCausalLM.from" in line]
    assert len(loading) == 2


def test_commands_that_readme_names_exist() -> None:
    from milp_ray.cli import app

    named = set(re.findall(r"milp-ray ([a-z]+)", README))
    there = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    } | {group.name for group in app.registered_groups}
    assert named and named <= there
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)) - {"a", "the"}:
        assert f"\n{target}:" in makefile, target
