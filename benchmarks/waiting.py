"""Do workers wait for proposals? SAAS-GP searches beside trials of five seconds, in a real driver.

A simulated study (docs/simulation.md) has 32 users on a 32-layer model, 30 trials each, 10 of them
initial, and eight trials at once. Trials sleep, so the cores are left to the proposals. So it is
measured whether proposals come fast enough, and not how both share a machine. The study runs once
per number of proposers (0: a thread of the driver).

    python benchmarks/waiting.py                              # proposers 0, 1 and 2: half an hour
    python benchmarks/waiting.py --users 8 --proposers 2      # a quick look

Writes results/waiting.csv (one row per run; milp_ray/tune/proposals/overhead.py says what counts as
waiting) and results/waiting.png. The goal is less than 5 % on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from population import RESULTS, write_inputs

GOAL = 0.05
Row = dict[str, float | int | str | None]


def measure(arguments: argparse.Namespace, proposers: int) -> Row:
    """One study with so many proposers."""
    search: dict[str, object] = {
        "trials": arguments.trials,
        "initial": arguments.initial,
        "surrogate": arguments.surrogate,
    }
    with tempfile.TemporaryDirectory(prefix="waiting-") as place:
        folder = Path(place)
        study = write_inputs(folder, arguments.users, search, arguments.concurrent)
        words = [f"simulation.seconds={arguments.seconds}", f"ray.proposers={proposers}"]
        command = [sys.executable, "-m", "milp_ray", "search", str(study), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        metrics = folder / "runs" / "population" / "tables" / "search_metrics.json"
        found: Row = json.loads(metrics.read_text())
    settings: Row = {"cores": os.cpu_count(), "proposers": proposers, "trial_seconds": arguments.seconds}
    settings |= {"users": arguments.users, "trials": arguments.trials, "initial": arguments.initial}
    return settings | {"surrogate": arguments.surrogate} | found


def draw(rows: list[Row], path: Path) -> None:
    """The share of waiting, by number of proposers."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    names = [str(row["proposers"]) if row["proposers"] else "driver's thread" for row in rows]
    bars = axes.bar(names, [100 * float(row["waiting_share"] or 0) for row in rows], color="#0072B2")
    labels = [
        f"{100 * float(row['waiting_share'] or 0):.1f} %\nmedian {float(row['proposal_median'] or 0):.1f} s"
        for row in rows
    ]
    axes.bar_label(bars, labels)
    axes.axhline(100 * GOAL, color="#D55E00", linestyle="--", label=f"goal: {100 * GOAL:.0f} %")
    first = rows[0]
    axes.set(
        xlabel="proposers",
        ylabel="share of worker time waiting (%)",
        title=f"{first['workers']} workers, trials of {first['trial_seconds']:g} s, "
        f"{first['users']} users, {first['cores']} cores",
    )
    axes.margins(y=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, then write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--initial", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a trial")
    parser.add_argument("--concurrent", type=int, default=8, help="trials at once")
    parser.add_argument("--surrogate", default="saas")
    parser.add_argument("--proposers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="waiting", help="of the result files")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    rows: list[Row] = []
    for proposers in arguments.proposers:
        rows.append(measure(arguments, proposers))
        print(rows[-1], flush=True)
        with (RESULTS / f"{arguments.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, RESULTS / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
