"""A simulated study is tracked from its command line, and a resume goes on with what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event

from tests.study.conftest import CANARY, Start, bare_model, user_line

pytestmark = pytest.mark.slow


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by tag, as TensorBoard shows them: later files take back what they repeat."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        for event in records(path.read_bytes()):
            if event.HasField("session_log"):
                found = {tag: [row for row in rows if row[0] < event.step] for tag, rows in found.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def records(data: bytes) -> Iterator[Event]:
    place = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += length + 16


def test_a_study_is_tracked_and_a_resume_goes_on_with_it(tmp_path: Path, start: Start) -> None:
    lines = [user_line(number) for number in range(3)]
    (tmp_path / "users.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    study = {
        "name": "dry",
        "model": {"path": str(bare_model(tmp_path / "model"))},
        "data": {"path": str(tmp_path / "users.jsonl")},
        "search": {"trials": 4, "initial": 4, "surrogate": "random"},
        "ray": {"cpus_per_worker": 0.5, "max_concurrent": 2},
        "storage": {"path": str(tmp_path / "runs")},
        "simulation": {"seconds": 0.01},
        "tracking": ["tensorboard"],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    process = start("search", str(path))
    output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    root = tmp_path / "runs" / "dry" / "tracking" / "tensorboard"
    users = sorted(log.stem for log in (tmp_path / "runs" / "dry" / "events").iterdir())
    assert sorted(place.name for place in root.iterdir()) == ["study", *users]
    assert scalars(root / "study")["trials_done"][-1] == (12, 12.0)
    assert [step for step, _ in scalars(root / users[0])["loss"]] == [1, 2, 3, 4]

    process = start("resume", str(tmp_path / "runs" / "dry"), "search.trials=6")
    output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    assert scalars(root / "study")["trials_done"][-1] == (18, 18.0)
    for alias in users:
        found = scalars(root / alias)
        assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 5, 6]
        assert sorted(value for _, value in found["trial"]) == [0, 1, 2, 3, 4, 5]
    for file in root.rglob("*"):
        assert file.is_dir() or CANARY.encode() not in file.read_bytes()
    assert (root.stat().st_mode & 0o77) == 0, "a run is its owner's alone"
