"""The command line tells a faulty study file without loading what would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from typer.testing import CliRunner
from milp_ray.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
print(result.exit_code, *{"torch", "ray"} & set(sys.modules))
print(result.output)
"""


@pytest.mark.parametrize("command", ["check", "search"])
def test_a_faulty_study_file_is_told_before_torch_is_loaded(command: str, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("modell: {}\n")
    done = subprocess.run([sys.executable, "-c", CODE, command, str(study)], capture_output=True, text=True)
    assert done.stdout.startswith("2\n") and "did you mean 'model'" in done.stdout, done.stderr
