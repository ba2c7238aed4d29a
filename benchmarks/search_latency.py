"""CPU seconds per proposal at n observations, for each surrogate, beside BoTorch's own NUTS fit.

    python benchmarks/search_latency.py [--sizes 20 50 100 200 500] [--only saas gp] [--no-peer]

34 dimensions (32 layers), two objectives, q = 4 proposals from one fit, one thread. Our programs
are compiled before the clock starts, as in a study (`milp_ray.search.warm_up`). BoTorch compiles
anew in every fit, which is part of its cost. `fit` rows compare like with like: the same NUTS
settings (128 warm-up steps, 64 draws, two outputs) by BoTorch's `fit_fully_bayesian_model_nuts` and
by ours. BoTorch at n = 500 is left out: it takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = (20, 50, 100, 200, 500)
SURROGATES: dict[str, tuple[str, dict[str, Any]]] = {
    "saas": ("saas", {}),
    "saas paper": ("saas", {"preset": "paper"}),
    "map_saas": ("map_saas", {}),
    "gp": ("gp", {}),
    "sobol": ("sobol", {}),
}
Q = 4


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of this process (all threads)."""
    began = time.process_time()
    work()
    return time.process_time() - began


def plan_with(n: int, surrogate: str, options: dict[str, Any]) -> Any:
    """A plan of an engine that was told n measurements of a synthetic user."""
    from milp_ray.search import Engine
    from milp_ray.search.synthetic import SyntheticProblem

    problem = SyntheticProblem(32, seed=0)
    engine = Engine(
        problem.space,
        problem.objectives,
        initial=n,
        batch=Q,
        surrogate=surrogate,
        surrogate_options=options,
        reference=problem.no_memory,
    )
    for proposal in engine.ask(n):
        engine.tell(proposal.id, problem.measure(proposal.placement))
    return engine.plan(Q)


def fits(n: int) -> dict[str, Callable[[], object]]:
    """Fits of two outputs to the same data with the same settings."""
    from botorch.fit import fit_fully_bayesian_model_nuts
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP

    from milp_ray.search.acquisition.outcome_transforms import PlanTensors
    from milp_ray.search.surrogates import make_surrogate

    plan = plan_with(n, "saas", {})
    data = PlanTensors(plan)
    X, Y = data.inputs(plan.observed), data.Y
    ours: Any = make_surrogate("saas", {"preset": "paper"})

    def theirs() -> None:
        for output in range(2):
            model = SaasFullyBayesianSingleTaskGP(X, Y[:, output : output + 1])
            fit_fully_bayesian_model_nuts(
                model, max_tree_depth=6, warmup_steps=128, num_samples=64, thinning=4, disable_progbar=True
            )

    return {"fit: ours 128/64": lambda: ours.fit(X, Y, 0), "fit: BoTorch 128/64": theirs}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--no-peer", action="store_true", help="leave BoTorch's own fit out")
    parser.add_argument("--only", nargs="*", default=list(SURROGATES), help="surrogates; other rows are kept")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    from milp_ray.search.core.threads import single_threaded
    from milp_ray.search.propose import propose
    from milp_ray.search.warm_up import use_cache

    use_cache()
    rows: list[tuple[str, int, float]] = []
    with single_threaded():
        for n in given.sizes:
            for name in given.only:
                surrogate, options = SURROGATES[name]
                plan = plan_with(n, surrogate, options)
                propose(plan)  # imports and compiles
                rows.append((name, n, seconds_of(partial(propose, plan)) / Q))
                print(f"n {n:4d}  {name:20s} {rows[-1][2]:8.3f} CPU s per proposal", flush=True)
            for name, work in fits(n).items():
                if "BoTorch" in name and (n > 200 or given.no_peer):
                    continue
                if "ours" in name:
                    work()
                rows.append((name, n, seconds_of(work)))
                print(f"n {n:4d}  {name:20s} {rows[-1][2]:8.3f} CPU s per fit", flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / "search_latency.csv"
    rows = _joined(path, rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "n", "cpu_seconds"])
        writer.writerows((name, n, round(value, 4)) for name, n, value in rows)
    _plot(rows)


def _joined(path: Path, rows: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """What was measured now, and before where not now, by n."""
    table = {(name, n): value for name, n, value in rows}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                table.setdefault((row["what"], int(row["n"])), float(row["cpu_seconds"]))
    return [(name, n, value) for (name, n), value in sorted(table.items(), key=lambda item: item[0][1])]


def _plot(rows: list[tuple[str, int, float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for name in dict.fromkeys(row[0] for row in rows):
        ax = axes[1 if name.startswith("fit") else 0]
        points = [(n, value) for what, n, value in rows if what == name]
        ax.loglog(*zip(*points, strict=True), "o-", label=name.removeprefix("fit: "))
    axes[0].set(title="CPU s per proposal (q = 4, d = 34)", xlabel="observations")
    axes[1].set(title="CPU s per NUTS fit of both objectives", xlabel="observations")
    for ax in axes:
        sizes = sorted({n for line in ax.get_lines() for n in line.get_xdata()})
        ax.set_xticks(sizes, [str(n) for n in sizes])
        ax.minorticks_off()
        ax.set_ylim(0.05, None)  # free ones cost next to nothing
        ax.grid(alpha=0.3)
        ax.legend()
    fig.tight_layout()
    fig.savefig(HERE / "results" / "search_latency.png", dpi=120)


if __name__ == "__main__":
    main()
