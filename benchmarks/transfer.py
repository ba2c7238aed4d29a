"""Does a later user need fewer trials than the first ones did? Does an unrelated one lose nothing?

A first batch of synthetic users is searched cold. Later users are then searched cold (``none``) and
with what the first batch hands on (``seeds``, ``prior``). Measured is, per later user, the number
of trials until 95 % of the noise-free hypervolume is reached that its own cold search ends with.
Goals: related users (kinship 0.9) take a third of the trials; unrelated ones take 1.05 times the
trials that the cold search itself needs for that level. A cold search sets its own level, which
luck raises: ``again``, a cold search with another seed, shows how much.

    python benchmarks/transfer.py                       # about an hour; the event logs let it go on
    python benchmarks/transfer.py --layers 12 --users 4 --quick

Writes <out>/transfer.csv (a row per later user and mode), transfer_curves.csv and transfer.png. No
model is trained: what a trial measures is a formula (milp_ray/search/synthetic.py).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from milp_ray.config.objectives import maximized
from milp_ray.search import Engine
from milp_ray.search.core.pareto import hypervolume_curve
from milp_ray.search.source_pool import SourcePool
from milp_ray.search.synthetic import OBJECTIVES, SyntheticProblem

MODES = ("none", "again", "seeds", "prior")
ADVISED: tuple[Literal["none", "seeds", "prior"], ...] = ("none", "seeds", "prior")  # all but again
LEVEL = 0.95
COLOURS = {"none": "#777777", "seeds": "#1b7837", "prior": "#762a83", "again": "#bbbbbb"}
Row = dict[str, Any]
Point = tuple[int, float, str, int, int, float]  # layers, kinship, mode, user, trial, part of cold's last


def searched(
    args: argparse.Namespace,
    layers: int,
    related: float,
    seed: int,
    mode: str,
    population: SourcePool | None = None,
) -> tuple[SyntheticProblem, Engine]:
    """The problem, and the engine after all trials; continued if its log is there."""
    problem = SyntheticProblem(layers, seed=seed, related=related)
    engine = Engine(
        problem.space,
        problem.objectives,
        initial=args.initial,
        batch=4,
        surrogate=args.surrogate,
        seed=seed + (1000 if mode == "again" else 0),
        reference=problem.no_memory,
        trials=args.trials,
        log=args.logs / f"{args.surrogate}-{layers}-{related}-{seed}-{mode}.jsonl",
    )
    if population is not None:
        population.give(engine)
    while True:
        for proposal in engine.pending:
            engine.tell(proposal.id, problem.measure(proposal.placement))
        if not engine.ask(4):
            return problem, engine


def curve_of(problem: SyntheticProblem, engine: Engine) -> list[float]:
    """Noise-free hypervolume after each trial."""
    points = [maximized(OBJECTIVES, problem.exact(seen.placement)) for seen in engine.observations]
    return hypervolume_curve(points, maximized(OBJECTIVES, problem.no_memory))


def reached(curve: Sequence[float], level: float, trials: int) -> int:
    """Trials until ``level``; one more than were made where it is not reached."""
    return next((index + 1 for index, value in enumerate(curve) if value >= level), trials + 1)


def scenario(args: argparse.Namespace, layers: int, related: float) -> tuple[list[Row], list[Point]]:
    """Rows of one number of layers and one kinship, and the curves relative to cold's end."""
    first = [searched(args, layers, related, seed, "none")[1] for seed in range(1, args.donors + 1)]
    populations: dict[str, SourcePool] = {
        mode: SourcePool(first[0].space, first[0].objectives, mode) for mode in ADVISED
    }
    for population in populations.values():
        for engine in first:
            population.add(engine)
    rows: list[Row] = []
    curves: list[Point] = []
    for seed in range(101, 101 + args.users):
        cold = None
        for mode in MODES:
            began = time.monotonic()
            problem, engine = searched(args, layers, related, seed, mode, populations.get(mode))
            curve = curve_of(problem, engine)
            cold = cold or curve
            need, base = (reached(c, LEVEL * cold[-1], args.trials) for c in (curve, cold))
            rows.append(
                {
                    "layers": layers,
                    "related": related,
                    "mode": mode,
                    "user": seed,
                    "trials_to_95": need,
                    "cold_trials_to_95": base,
                    "final_over_cold": round(curve[-1] / cold[-1], 4),
                    "advised": sum(p.source == "transfer" for p in engine.proposals),
                    "surrogate": args.surrogate,
                }
            )
            curves += [
                (layers, related, mode, seed, n + 1, round(v / cold[-1], 5)) for n, v in enumerate(curve)
            ]
            print(*rows[-1].values(), f"{time.monotonic() - began:.0f}s", flush=True)
    return rows, curves


def summary(rows: Sequence[Row], trials: int) -> None:
    """One line per scenario and mode."""
    for layers, related, mode in dict.fromkeys((r["layers"], r["related"], r["mode"]) for r in rows):
        part = [r for r in rows if (r["layers"], r["related"], r["mode"]) == (layers, related, mode)]
        need = [r["trials_to_95"] for r in part]
        base = statistics.mean(r["cold_trials_to_95"] for r in part)
        final = statistics.median(r["final_over_cold"] for r in part)
        print(
            f"layers {layers} kinship {related} {mode}: "
            f"median {statistics.median(need):g} of {trials} trials, "
            f"mean {statistics.mean(need) / base:.2f} of what cold needs, final hypervolume {final:.2f}, "
            f"advised {statistics.median(r['advised'] for r in part):g}"
        )


def draw(curves: Sequence[Point], path: Path) -> None:
    """Median curves, a panel per scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((layers, related) for layers, related, *_ in curves))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False, sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for mode in MODES:
            steps: dict[int, list[float]] = {}
            for layers, related, of, _, n, value in curves:
                if (layers, related, of) == (*panel, mode):
                    steps.setdefault(n, []).append(value)
            middle = [statistics.median(values) for values in steps.values()]
            axis.plot(list(steps), middle, color=COLOURS[mode], label=mode)
        axis.axhline(LEVEL, color="black", linewidth=0.6, linestyle=":")
        axis.set_title(f"{panel[0]} layers, kinship {panel[1]}")
        axis.set_xlabel("trials")
    axes[0][0].set_ylabel("hypervolume / cold's last (median)")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run every scenario; results are written after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 32])
    parser.add_argument("--related", type=float, nargs="+", default=[0.9, 0.0])
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--donors", type=int, default=8)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--initial", type=int, default=20)
    parser.add_argument("--surrogate", default="saas")
    parser.add_argument("--quick", action="store_true", help="30 trials, 10 initial, 3 sources")
    parser.add_argument("--logs", type=Path, default=Path("runs/benchmark-transfer"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.quick:
        args.trials, args.initial, args.donors = 30, 10, 3
        args.logs = args.logs / "quick"
    import torch

    torch.set_num_threads(1)
    rows: list[Row] = []
    curves: list[Point] = []
    args.out.mkdir(parents=True, exist_ok=True)
    for layers in args.layers:
        for related in args.related:
            more, drawn = scenario(args, layers, related)
            rows, curves = rows + more, curves + drawn
            write(args.out / "transfer.csv", list(rows[0]), [list(row.values()) for row in rows])
            names = ["layers", "related", "mode", "user", "trial", "hypervolume"]
            write(args.out / "transfer_curves.csv", names, curves)
            draw(curves, args.out / "transfer.png")
    summary(rows, args.trials)


def write(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
