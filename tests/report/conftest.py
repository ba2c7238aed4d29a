"""A run that is made of event logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.study.run_folder import RunFolder
from tests.report.runs import aliases
from tests.report.test_html_live import begun, search


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three users' searches, of eight trials each."""
    made = begun(tmp_path)
    for alias in aliases(3):
        search(made, alias, 8)
    return made
