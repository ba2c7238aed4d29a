"""A lock file tells whether the process that made it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from milp_ray.storage import LockFile, is_stale


def test_a_file_is_held_as_long_as_its_process_lives(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from milp_ray.storage import LockFile\n"
    code += "file = LockFile(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    path = tmp_path / "owner"
    assert not is_stale(path), "there is none"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"locked\n"
    assert not is_stale(path) and [p.name for p in tmp_path.iterdir()] == ["owner"]
    owner.kill()
    owner.communicate()
    assert is_stale(path)
    with LockFile(path, "12"):
        assert not is_stale(path) and path.read_text() == "12"
    assert is_stale(path)
