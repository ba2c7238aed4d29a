"""Does our padded SAAS sampler give BoTorch's posterior? Means and variances at test points.

    python benchmarks/posterior_equivalence.py [--seeds 8]

Both fit the same data (20 observations of a 34-dimensional synthetic user, loss only, standardized)
with 512 warm-up steps and 256 draws, over several seeds. Two samplers of one posterior differ from
each other as two seeds of either do. So the table has the mean distance between every pair of
seeds, within and across samplers, in standard deviations of the outcome. `standard error` is the
Monte-Carlo error of the difference of the two grand means, from the spread over seeds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WARMUP, SAMPLES, POINTS, N = 512, 256, 100, 20


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    warnings.simplefilter("ignore")
    import torch
    from search_latency import plan_with

    from milp_ray.search.acquisition.outcome_transforms import PlanTensors
    from milp_ray.search.core.threads import single_threaded

    plan = plan_with(N, "saas", {})
    data = PlanTensors(plan)
    X, Y = data.inputs(plan.observed), data.Y[:, :1]
    at = data.of_rows(data.arrays.rows(data.arrays.sample(POINTS, 1)))
    with single_threaded(), torch.no_grad():
        found = {
            "ours": np.array([_ours(X, Y, at, seed) for seed in seeds]),
            "BoTorch": np.array([_theirs(X, Y, at, seed) for seed in seeds]),
        }
    rows = [*_distances(found), *_differences(found)]
    with (HERE / "results" / "posterior_equivalence.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("what", "mean", "standard deviation"), *rows])
    for what, mean, deviation in rows:
        print(f"{what:48s} {mean:9.4f} {deviation:9.4f}")


def _ours(X: object, Y: object, at: object, seed: int) -> np.ndarray:
    from milp_ray.search.surrogates import make_surrogate

    options = {"warmup": WARMUP, "samples": SAMPLES, "thinning": 1, "keep": SAMPLES}
    fitted = make_surrogate("saas", options).fit(X, Y, seed)  # type: ignore[union-attr,arg-type]
    posterior = fitted.model.models[0].posterior(at)
    return np.stack([posterior.mixture_mean.numpy().ravel(), posterior.mixture_variance.numpy().ravel()])


def _theirs(X: object, Y: object, at: object, seed: int) -> np.ndarray:
    import torch
    from botorch.fit import fit_fully_bayesian_model_nuts
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
    from botorch.models.transforms import Standardize

    torch.manual_seed(seed)
    model = SaasFullyBayesianSingleTaskGP(X, Y, outcome_transform=Standardize(1))
    with torch.enable_grad():
        fit_fully_bayesian_model_nuts(
            model, warmup_steps=WARMUP, num_samples=SAMPLES, thinning=1, seed=seed, disable_progbar=True
        )
    posterior = model.posterior(at)
    return np.stack([posterior.mixture_mean.numpy().ravel(), posterior.mixture_variance.numpy().ravel()])


def _distances(found: dict[str, np.ndarray]) -> list[tuple[str, float, float]]:
    rows = []
    for index, moment in enumerate(("mean", "variance")):
        ours, theirs = (found[name][:, index] for name in ("ours", "BoTorch"))
        pairs = {
            "ours ~ ours": [(a, b) for a, b in itertools.combinations(ours, 2)],
            "BoTorch ~ BoTorch": [(a, b) for a, b in itertools.combinations(theirs, 2)],
            "ours ~ BoTorch": list(itertools.product(ours, theirs)),
        }
        for name, members in pairs.items():
            apart = [float(np.abs(a - b).mean()) for a, b in members]
            rows.append((f"distance of the {moment}: {name}", float(np.mean(apart)), float(np.std(apart))))
    return rows


def _differences(found: dict[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """How many standard errors the grand means are apart; about 0.8 in the mean if they agree."""
    rows = []
    for index, moment in enumerate(("mean", "variance")):
        ours, theirs = (found[name][:, index] for name in ("ours", "BoTorch"))
        error = np.sqrt(ours.var(axis=0, ddof=1) / len(ours) + theirs.var(axis=0, ddof=1) / len(theirs))
        apart = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / error
        rows.append((f"grand {moment}s apart, in standard errors", float(apart.mean()), float(apart.std())))
    return rows


if __name__ == "__main__":
    main()
