"""Where the files under test are, and the tools that check them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


def tool(name: str) -> str:
    """A command that was installed beside this Python, as `make install` does."""
    return str(Path(sys.executable).with_name(name))


def run(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output, whatever its exit code."""
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=120,
        **options,  # type: ignore[call-overload]
    )
