"""A run whose searches go on while a tracker follows; the trackers' clients, where they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tracked import begun_at, tracked_search
from milp_ray.tracking.interface import TrackedSearch

# Beside the environment (`make install-trackers`): nothing else here is to import them.
CLIENTS = Path(sys.prefix) / "trackers"


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The trackers' packages, importable; no variable and no file of a user counts."""
    if not CLIENTS.is_dir():
        pytest.skip(f"no clients of trackers at {CLIENTS}: make install-trackers puts them there")
    monkeypatch.setattr(sys, "path", [*sys.path, str(CLIENTS)])
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return CLIENTS


def search_now(folder: RunFolder, alias: str) -> TrackedSearch:
    """A search as trackers are told of it."""
    found = tracked_search(folder, alias, begun_at(folder))
    assert found is not None
    return found
