"""Where a study may differ from the run's, and where not."""

from __future__ import annotations

from pathlib import Path

from milp_ray.study.provenance import differences
from tests.study.test_run_folder import a_study


def test_the_files_of_data_may_move_and_how_they_are_read_may_not(tmp_path: Path) -> None:
    before = a_study(tmp_path, path="/a/q.json", format="amazonqa", files={"reviews": "/a/r.json"})
    moved = a_study(tmp_path, path="/b/q.json", format="amazonqa", files={"reviews": "/b/r.json"})
    assert differences(before, moved) == []
    others = a_study(tmp_path, path="/b/q.json", format="table", columns={"user": "who"})
    assert [found.where for found in differences(before, others)] == ["data.columns.user", "data.format"]
