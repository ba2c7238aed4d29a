"""A thousand users through the real driver: its memory, and what a trial costs it.

Does its memory stay flat? A simulated study (docs/simulation.md) has tiny users on the
configuration of a 32-layer Llama. Driver, Ray Tune, searcher, queue, event logs and tables are
those of a real study; only the trials return at once. The study runs in a process of its own, which
is watched from outside: memory, CPU, and trials told in the event logs.

    python benchmarks/population.py                     # 1,000 users x 20 trials
    python benchmarks/population.py --users 100         # a quick look

Writes results/population.csv (one row per mark: trials done, wall seconds, driver CPU seconds and
memory) and results/population.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import psutil
import yaml

RESULTS = Path(__file__).parent / "results"
MARKS = (100, 1_000, 10_000, 20_000)
COLUMNS = ("trials", "seconds", "cpu_seconds", "rss_mib")
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip

Row = dict[str, float]


def write_inputs(folder: Path, users: int, search: dict[str, object], concurrent: int) -> Path:
    """Users, a model's configuration and a study of both; returns the study file."""
    with (folder / "users.jsonl").open("w", encoding="utf-8") as file:
        for number in range(users):
            samples = [{"query": f"q{i}", "response": f"r{i} {number}", "n_hist": i + 1} for i in range(10)]
            history = [f"text {i} of {number}" for i in range(10)]
            line = {"user_id": f"user-{number}", "profile": None, "history": history, "samples": samples}
            file.write(json.dumps(line) + "\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    cpus = max(1, os.cpu_count() or 1)
    study = {
        "name": "population",
        "model": {"path": str(folder / "model")},
        "data": {"path": str(folder / "users.jsonl")},
        "search": search,
        "ray": {"cpus_per_worker": cpus / concurrent},
        "storage": {"path": str(folder / "runs")},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def told(run: Path, known: dict[Path, tuple[int, int]]) -> int:
    """Trials told so far; ``known`` keeps each log's size and count, so only new lines are read."""
    for log in (run / "events").glob("*.jsonl"):
        size, count = known.get(log, (0, 0))
        if log.stat().st_size == size:
            continue
        with log.open("rb") as file:
            file.seek(size)
            new = file.read()
        known[log] = (size + len(new), count + new.count(b'"event":"told"'))
    return sum(count for _, count in known.values())


def watch(command: list[str], run: Path, every: float, output: Path) -> list[Row]:
    """Run a study, and look at its driver regularly; rows from just before its first trial on."""
    rows: list[Row] = []
    known: dict[Path, tuple[int, int]] = {}
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(every)
            try:
                times, memory = driver.cpu_times(), driver.memory_info().rss / 2**20
            except psutil.Error:
                break
            trials = told(run, known) if run.exists() else 0
            cpu = times.user + times.system
            rows.append(
                {"trials": trials, "seconds": time.monotonic(), "cpu_seconds": cpu, "rss_mib": memory}
            )
    print(output.read_text(encoding="utf-8")[-1500:])
    if process.wait() != 0:  # stopped, say: what was seen so far is still worth having
        print(f"the study ended with exit code {process.returncode}")
    rows = rows[max(0, sum(row["trials"] == 0 for row in rows) - 1) :]
    began = rows[0]["seconds"]
    last = next((index for index, row in enumerate(rows) if row["trials"] == rows[-1]["trials"]), 0)
    rows = rows[: last + 1]  # what follows is tables and plots
    return [row | {"seconds": row["seconds"] - began} for row in rows]


def at_marks(rows: list[Row], total: int) -> list[Row]:
    """The first row at or past each mark, with the cost of a trial since the mark before."""
    marks = [mark for mark in MARKS if mark < total] + [total]
    found, before = [], rows[0]
    for mark in marks:
        if mark > rows[-1]["trials"]:
            break
        row = next(row for row in rows if row["trials"] >= mark)
        count = max(1.0, row["trials"] - before["trials"])
        found.append(
            {"mark": float(mark)}
            | row
            | {
                "seconds_per_trial": (row["seconds"] - before["seconds"]) / count,
                "cpu_seconds_per_trial": (row["cpu_seconds"] - before["cpu_seconds"]) / count,
            }
        )
        before = row
    return found


def draw(rows: list[Row], title: str, path: Path, width: float) -> None:
    """Draw the driver's memory and its cost of a trial, over trials.

    The cost is a mean over ``width`` trials: a cohort's first and last ones pay for the start and
    the end of a Tune run.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    trials = [row["trials"] for row in rows]
    above.plot(trials, [row["rss_mib"] for row in rows], color="#0072B2")
    above.set(ylabel="driver's memory (MiB)", title=title, ylim=(0, None))
    points = [rows[0]]
    for row in rows:
        if row["trials"] - points[-1]["trials"] >= width:
            points.append(row)
    for name, label, colour in (
        ("seconds", "wall seconds", "#D55E00"),
        ("cpu_seconds", "driver CPU seconds", "#009E73"),
    ):
        pairs = [(a, b) for a, b in pairwise(points) if b["trials"] > a["trials"]]
        cost = [(b[name] - a[name]) / (b["trials"] - a["trials"]) for a, b in pairs]
        below.plot([b["trials"] for _, b in pairs], cost, color=colour, label=label)
    below.set(xlabel="trials done", ylabel="per trial (s), mean over a cohort", ylim=(0, None))
    below.legend(frameon=False)
    for axes in (above, below):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, then write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--surrogate", default="random")
    parser.add_argument("--cohort", type=int, default=100, help="users per Tune run")
    parser.add_argument("--concurrent", type=int, default=8, help="trials at once")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two looks")
    parser.add_argument("--name", default="population", help="of the result files")
    arguments = parser.parse_args()
    search: dict[str, object] = {
        "trials": arguments.trials,
        "initial": max(1, arguments.trials // 2),
        "surrogate": arguments.surrogate,
        "cohort": arguments.cohort,
    }
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="population-") as place:
        folder = Path(place)
        study = write_inputs(folder, arguments.users, search, arguments.concurrent)
        command = [sys.executable, "-m", "milp_ray", "search", str(study), "simulation.seconds=0"]
        rows = watch(command, folder / "runs" / "population", arguments.every, folder / "output.txt")
    marks = at_marks(rows, arguments.users * arguments.trials)
    with (RESULTS / f"{arguments.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["mark", *COLUMNS, "seconds_per_trial", "cpu_seconds_per_trial"])
        writer.writeheader()
        writer.writerows({key: round(value, 4) for key, value in row.items()} for row in marks)
    title = f"{arguments.users:,} users x {arguments.trials} simulated trials ({arguments.surrogate})"
    draw(rows, title, RESULTS / f"{arguments.name}.png", arguments.cohort * arguments.trials)
    for row in marks:
        print({key: round(value, 4) for key, value in row.items()})


if __name__ == "__main__":
    main()
