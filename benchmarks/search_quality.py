r"""Hypervolume per evaluation: our search beside Optuna's, Ax's and chance.

    python benchmarks/search_quality.py                     # what is missing, then table and plot
    python benchmarks/search_quality.py --methods saas optuna-tpe --problems synthetic-34 --jobs 2
    python benchmarks/search_quality.py --only-report
    python benchmarks/search_quality.py --methods saas gp --problems synthetic-34 --seeds 6 \
        --initial 100 --evaluations 140    # half of the paper's 200 random trials: a table, no plot

Problems: `synthetic-34` and `synthetic-14` (milp_ray/search/synthetic.py with 32 and 12 layers; the
problem differs from seed to seed), and `real-<user>`: every value is measured by training
(benchmarks/make_table.py).

Score: the hypervolume of the evaluated placements' noise-free values above the no-memory point,
divided by the best known one, which hill climbing on the noise-free formula and all methods
together have found. For real users it is the hypervolume of the measured values, divided by that of
the whole table's front. There the point is below that front (milp_ray/search/core/reference.py,
`lowered`), since few placements beat no memory in both objectives. The searches are told the
no-memory point in both cases.

Runs are kept in results/search_quality.jsonl and not repeated; delete lines to repeat them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = HERE / "results" / "search_quality.jsonl"
INITIAL, EVALUATIONS, MARKS = 20, 100, (60, 100)
SEEDS = 8
SYNTHETIC = {"synthetic-34": 32, "synthetic-14": 12}


class Synthetic:
    """A synthetic user; the benchmark's seed is the user's."""

    def __init__(self, layers: int, seed: int) -> None:
        from milp_ray.search.synthetic import SyntheticProblem

        self._user = SyntheticProblem(layers, seed=seed)
        self.space, self.no_memory = self._user.space, self._user.no_memory
        self.measure, self.exact = self._user.measure, self._user.exact

    def best(self) -> list[dict[str, float]]:
        """The best known front."""
        return self._user.best_known()


class Measured:
    """A real user, by the table."""

    def __init__(self, user: str) -> None:
        import make_table

        self.space = make_table.space()
        found: dict[str, list[dict[str, str]]] = {}
        for row in make_table.rows():
            if row["user"] == user and row["repeat"] == "0":
                found.setdefault(row["placement"], []).append(row)
        missing = set(make_table.placements()) - set(found)
        if missing:
            raise SystemExit(f"the table lacks {len(missing)} placements of {user}: run make_table.py first")
        self._table = {
            key: {"loss": float(rows[0]["loss"]), "rouge_l": float(rows[0]["rouge_l"])}
            for key, rows in found.items()
        }
        self.no_memory = self._table[""]

    def measure(self, placement: Any) -> dict[str, float]:
        """What training measured."""
        return self._table[placement.key]

    exact = measure

    def best(self) -> list[dict[str, float]]:
        """Everything: the hypervolume takes the front of it."""
        return list(self._table.values())


def problem_of(name: str, seed: int) -> Synthetic | Measured:
    """The problem called ``name``."""
    return Synthetic(SYNTHETIC[name], seed) if name in SYNTHETIC else Measured(name.removeprefix("real-"))


def one(
    problem: str, method: str, seed: int, initial: int = INITIAL, evaluations: int = EVALUATIONS
) -> dict[str, Any]:
    """One search."""
    import peers
    import torch

    torch.set_num_threads(1)
    peers.INITIAL = initial
    made = problem_of(problem, seed)
    began = time.process_time()
    tried = peers.METHODS[method](made, seed, evaluations)
    seconds = time.process_time() - began
    values = [made.exact(placement) if len(placement) else made.no_memory for placement in tried]
    return {
        "problem": problem,
        "method": method,
        "seed": seed,
        **({"initial": initial} if initial != INITIAL else {}),
        "cpu_seconds": round(seconds, 1),
        "loss": [round(v["loss"], 6) for v in values],
        "rouge_l": [round(v["rouge_l"], 6) for v in values],
    }


def known_runs(initial: int = INITIAL) -> list[dict[str, Any]]:
    """All runs kept so far that began with so many random trials."""
    if not RUNS.exists():
        return []
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    return [run for run in runs if run.get("initial", INITIAL) == initial]


def run_missing(
    problems: Sequence[str], methods: Sequence[str], seeds: int, jobs: int, initial: int, evaluations: int
) -> None:
    """Run what is not there yet, seed by seed."""
    done = {(run["problem"], run["method"], run["seed"]) for run in known_runs(initial)}
    wanted = [(p, m, s) for s in range(seeds) for m in methods for p in problems if (p, m, s) not in done]
    RUNS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(one, *key, initial, evaluations) for key in wanted]):
            run = future.result()
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run, separators=(",", ":")) + "\n")
            print(run["problem"], run["method"], run["seed"], f"{run['cpu_seconds']} CPU s", flush=True)


def shares(runs: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[float]]:
    """Share of the best known hypervolume after each evaluation, by problem, method and seed."""
    from milp_ray.search.core.pareto import hypervolume, non_dominated

    best: dict[tuple[str, int], tuple[list[Any], tuple[float, float], float]] = {}
    for problem, seed in sorted({(run["problem"], run["seed"]) for run in runs}):
        floor, front = _best_front(problem, seed)
        front += [
            pair for run in runs if (run["problem"], run["seed"]) == (problem, seed) for pair in _gains(run)
        ]
        kept = [pair for pair, keep in zip(front, non_dominated(front), strict=True) if keep]
        best[problem, seed] = (kept, floor, hypervolume(kept, floor))
    result = {}
    for run in runs:
        _, floor, most = best[run["problem"], run["seed"]]
        found = _gains(run)
        curve = [hypervolume(found[:count], floor) / most for count in range(1, len(found) + 1)]
        result[run["problem"], run["method"], run["seed"]] = curve
    return result


@cache
def _best(problem: str, seed: int) -> tuple[tuple[float, float], tuple[tuple[float, float], ...]]:
    from milp_ray.config.objectives import maximized
    from milp_ray.search.core.reference import reference_point
    from milp_ray.search.synthetic import OBJECTIVES

    made = problem_of(problem, seed)
    floor, best = (
        maximized(OBJECTIVES, made.no_memory),
        [maximized(OBJECTIVES, values) for values in made.best()],
    )
    if isinstance(made, Measured):
        point = reference_point(best, floor, lowered=True)
        assert point is not None
        floor = (point[0], point[1])
    return pair(floor), tuple(pair(values) for values in best)


def pair(values: Sequence[float]) -> tuple[float, float]:
    """Two objectives' values as a pair."""
    first, second = values
    return float(first), float(second)


def _best_front(problem: str, seed: int) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    floor, front = _best(problem, 0 if problem.startswith("real-") else seed)
    return floor, list(front)


def _gains(run: dict[str, Any]) -> list[tuple[float, float]]:
    return [(-loss, rouge) for loss, rouge in zip(run["loss"], run["rouge_l"], strict=True)]


def report_growth(runs: list[dict[str, Any]], initial: int) -> None:
    """Print and write the mean share every few evaluations after the initial ones.

    Beside it stands that of the runs with :data:`INITIAL` initial trials, as far as these go.
    """
    import pandas as pd

    methods = {run["method"] for run in runs}
    keys = {(run["problem"], run["seed"]) for run in runs}
    usual = [
        run for run in known_runs() if (run["problem"], run["seed"]) in keys and run["method"] in methods
    ]
    named = [run | {"method": f"{run['method']}, {initial} initial"} for run in runs]
    found = shares(usual + named)  # one best front for both
    rows = []
    for problem, method in sorted({key[:2] for key in found}):
        curves = [curve for key, curve in found.items() if key[:2] == (problem, method)]
        row: dict[str, Any] = {"problem": problem, "method": method, "seeds": len(curves)}
        for mark in sorted({60, 80, initial, *(initial + more for more in (4, 8, 20, 40))}):
            row[f"mean@{mark}"] = (
                statistics.mean(curve[mark - 1] for curve in curves)
                if all(len(curve) >= mark for curve in curves)
                else None
            )
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "results" / "search_quality_initial.csv", index=False, float_format="%.3f")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def report(runs: list[dict[str, Any]]) -> None:
    """Print the table, write the CSV and the plot."""
    import pandas as pd

    found = shares(runs)
    seconds: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        seconds.setdefault((run["problem"], run["method"]), []).append(run["cpu_seconds"])
    rows = []
    for problem, method in sorted({key[:2] for key in found}):
        curves = [curve for key, curve in found.items() if key[:2] == (problem, method)]
        row: dict[str, Any] = {"problem": problem, "method": method, "seeds": len(curves)}
        for mark in MARKS:
            at = [curve[mark - 1] for curve in curves]
            row |= {f"median@{mark}": statistics.median(at), f"worst@{mark}": min(at)}
        row["CPU s / 100"] = statistics.median(seconds[problem, method])
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(["problem", "median@60"], ascending=[True, False])
    table.to_csv(HERE / "results" / "search_quality.csv", index=False, float_format="%.3f")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    _plot(found)


def _plot(found: dict[tuple[str, str, int], list[float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from peers import METHODS, OURS

    problems = sorted({key[0] for key in found})
    size = (4.8 * len(problems) + 1.6, 4.4)
    fig, axes = plt.subplots(1, len(problems), figsize=size, squeeze=False, layout="constrained")
    colours = dict(zip(METHODS, plt.get_cmap("tab20").colors, strict=False))
    for ax, problem in zip(axes[0], problems, strict=True):
        for method in METHODS:
            curves = [curve for key, curve in found.items() if key[:2] == (problem, method)]
            if not curves:
                continue
            low, mid, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
            x, style = np.arange(1, len(mid) + 1), "-" if method in OURS else "--"
            ax.plot(x, mid, style, color=colours[method], label=method, lw=1.8)
            ax.fill_between(x, low, high, color=colours[method], alpha=0.12, lw=0)
        ax.set(title=problem, xlabel="evaluations", ylim=(0, 1.02), xlim=(1, EVALUATIONS))
        ax.axvline(20, color="0.8", lw=0.8, zorder=0)
        ax.grid(alpha=0.25)
    axes[0][0].set_ylabel("share of the best known hypervolume")
    # One legend of all panels: not every method was run on every problem, nor as often.
    lines = {
        line.get_label(): line for ax in axes[0] for line in ax.get_lines() if line.get_label() in METHODS
    }
    labels = [f"{name}{_seeds(found, name)}" for name in lines]
    fig.legend(list(lines.values()), labels, fontsize=8, loc="outside right center", frameon=False)
    fig.savefig(HERE / "results" / "search_quality.png", dpi=120)


def _seeds(found: dict[tuple[str, str, int], list[float]], method: str) -> str:
    """How often a method was run, where that is less than it should be."""
    problems = {key[0] for key in found if key[1] == method}
    fewest = min(sum(key[:2] == (problem, method) for key in found) for problem in problems)
    return f" ({fewest} seed{'s' * (fewest > 1)})" if fewest < SEEDS else ""


def main() -> None:
    """The command line."""
    from peers import METHODS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--problems", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--initial", type=int, default=INITIAL, help="random trials, the same for all methods"
    )
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    parser.add_argument("--only-report", action="store_true")
    given = parser.parse_args()
    if not given.only_report:
        import make_table

        real = [f"real-{name}" for name in make_table.complete_users()]
        problems = given.problems or [*SYNTHETIC, *real]
        run_missing(problems, given.methods, given.seeds, given.jobs, given.initial, given.evaluations)
    if given.initial == INITIAL:
        report(known_runs())
    else:
        report_growth(known_runs(given.initial), given.initial)


if __name__ == "__main__":
    main()
