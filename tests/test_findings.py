"""The scripts of findings/ say what was seen with which versions. They are not run here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "findings").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_pins_what_it_installs_and_says_what_was_seen(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert "# Seen on 20" in text and "set -euo pipefail" in text
    assert "mktemp -d" in text and "trap " in text, "a temporary folder, which goes"
    assert "import milp_ray" not in text and "from milp_ray" not in text
    assert re.search(r"==\d|@\d+\.\d+", text), "pinned packages"


def test_scripts_pass_shellcheck() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, *SCRIPTS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
