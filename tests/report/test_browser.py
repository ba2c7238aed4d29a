"""A browser paints a report of 3,000 users within 3 s, draws all figures, and has no complaint.

Needs Chromium (Debian: `apt install chromium`); skipped where there is none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest

from milp_ray.report.html.command import report
from milp_ray.report.html.model_check import NOT_MADE, ModelCheck
from milp_ray.study.run_folder import RunFolder
from tests.report.runs import KEY, aliases, scores_of, study_of, timed, trials_of, write_run
from tests.report.test_model_check import diagnosis

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Numbers of what has been drawn, some seconds after the page was loaded.
PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const paint = performance.getEntriesByType("paint").map((entry) => Math.round(entry.startTime));
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = plots.filter((plot) => plot.querySelector("svg")).length;
  const rows = document.querySelectorAll("#rows tr").length;
  console.log(`PROBE paint=${Math.max(0, ...paint)} drawn=${drawn} of=${plots.length} rows=${rows}`);
}, SECONDS * 1000));
</script></body>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


def opened(
    page: Path, folder: Path, seconds: int, *, all_sections: bool = False
) -> tuple[dict[str, int], list[str]]:
    """What a browser says of a page: the probe's numbers, and its complaints."""
    text = page.read_text(encoding="utf-8")
    if all_sections:
        text = text.replace("<details ", "<details open ")
    probed = folder / "probed.html"
    before, _, after = text.rpartition("</body>")
    probed.write_text(before + PROBE.replace("SECONDS", str(seconds)) + after, encoding="utf-8")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={folder / 'profile'}", "--window-size=1280,20000", probed.as_uri()]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    timer = threading.Timer(120, process.kill)
    timer.start()
    complaints = []
    try:
        for line in process.stderr or ():
            if "PROBE" in line:
                return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}, complaints
            if "CONSOLE" in line:
                complaints.append(line)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    raise AssertionError("the browser said nothing")


def test_three_thousand_users_are_painted_within_three_seconds(tmp_path: Path) -> None:
    users = aliases(3_000)
    folder = RunFolder.create(study_of(tmp_path), dict.fromkeys(users, "f" * 32), KEY)
    kinds = [trials_of("x", seed) for seed in range(8)]
    trials = pd.concat(
        [kinds[index % 8].assign(user=alias) for index, alias in enumerate(users)], ignore_index=True
    )
    write_run(folder, timed(trials, workers=16), scores_of(users))
    found, complaints = opened(report(folder.root, model_check=NOT_MADE), tmp_path, 10)
    assert not complaints and 0 < found["paint"] <= 3_000, (found, complaints)
    assert found["drawn"] > 5 and found["rows"] == 21


def test_every_figure_is_drawn_without_a_complaint(tmp_path: Path) -> None:
    users = aliases(3)
    folder = RunFolder.create(study_of(tmp_path), dict.fromkeys(users, "f" * 32), KEY)
    trials = pd.concat([trials_of(alias, seed) for seed, alias in enumerate(users)], ignore_index=True)
    write_run(folder, timed(trials), scores_of(users))
    check = ModelCheck({alias: diagnosis() for alias in users}, 3, 1.0)
    found, complaints = opened(report(folder.root, model_check=check), tmp_path, 20, all_sections=True)
    assert not complaints and found["drawn"] == found["of"] >= 20, (found, complaints)
