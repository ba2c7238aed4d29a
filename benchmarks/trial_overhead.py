"""What does a trial cost beside its training and its measurement? Resident workers and two peers.

Overhead is the wall time from one trial's end to the next one's, as Tune's driver sees them, less
the `train_seconds` and `eval_seconds` that the trial itself reports. One trial runs at a time. All
methods run the same placements for the same user with the same `Trial` class, and every loss is
compared with the first method's:

- `resident`: the product's way (worker, Tune settings, searcher, queue, event log, saved adapters);
- `function`: a Tune function trainable with Tune's defaults, which imports and loads all it needs
  in each trial;
- `function, reused`: the same, its actor kept by Tune: imports stay, the base is loaded per trial;
- `nested`: a Tune function trainable that calls `TorchTrainer.fit()`, whose 2 workers do the same
  work.

The base is `../shared/models/tiny-base` (or `--model`), else a random one of its size. Ray is a
private one.

    python benchmarks/trial_overhead.py                                 # a quarter of an hour
    python benchmarks/trial_overhead.py --methods resident/1 function/1 # a quick look

Writes results/trial_overhead.csv (one row per trial), results/trial_overhead_summary.csv (medians
without the first trial, which pays for the start) and results/trial_overhead.png. Exits with 1 when
losses differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import bases
import matplotlib.pyplot as plt
from tables import short, write_rows

from milp_ray.config.models import RaySettings, Study
from milp_ray.data.records import Sample, UserSplit
from milp_ray.tune.cluster.session import ray_session

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TINY = HERE.parents[1] / "shared" / "models" / "tiny-base"
ALIAS = "u-" + "b" * 13
LIKE = 1e-4  # by how much losses of the same placement may differ
METHODS = (
    "resident/1", "resident/2/ddp", "resident/2/zero3",
    "function/1", "function, reused/1", "nested/2/ddp", "nested/2/zero3",
)  # fmt: skip
GOALS = {"resident/1": 0.5, "resident/2/ddp": 2.0, "resident/2/zero3": 2.0}
TIMES = 10.0  # less than the function trainable, at 1 rank
COLUMNS = ("method", "number", "placement", "wall", "train", "eval", "overhead", "loss")
Row = dict[str, Any]


@dataclass
class Ended:
    """A trial that Tune's driver was told of."""

    at: float
    config: Mapping[str, Any]
    result: Mapping[str, Any]


def user() -> UserSplit:
    """Somebody who wrote a little about a dog."""
    phrase = "my old dog likes long walks but the cat would rather sleep near a warm stove all day"
    words = phrase.split()

    def text(seed: int, length: int) -> str:
        return " ".join(words[(seed * 5 + 3 * index) % len(words)] for index in range(length))

    history = tuple(text(seed, 10 + seed % 9) for seed in range(24))
    samples = tuple(Sample(text(seed, 8), text(2 * seed, 9), n_hist=20) for seed in range(12))
    return UserSplit(ALIAS, history, samples[:4], samples[4:], (), 20, 24)


def study_of(model: Path, method: str, trials: int) -> Study:
    """The study of a method; what is trained and measured is the same in all of them."""
    _, ranks, strategy = (*method.split("/"), "none")[:3]
    return Study.model_validate(
        {
            "name": "overhead",
            "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
            "data": {"path": "none"},
            "prompts": {"max_length": 64},
            "memory": {"ranks": (4, 8, 16)},
            "trial": {"epochs": 2, "max_new_tokens": 8, "eval_batch_size": 8},
            "search": {"trials": trials, "initial": trials, "sampler": "random"},
            "ray": {"workers_per_trial": int(ranks), "parallelism": strategy, "max_concurrent": 1},
        }
    )


def resident(study: Study, folder: Path) -> list[Ended]:
    """The product's own search, which tells when trials end."""
    import ray

    from milp_ray.memory.space import space_from
    from milp_ray.model.pretrained import load_architecture
    from milp_ray.search import Engine, Objective
    from milp_ray.trial.records import TrialCost, TrialRequest
    from milp_ray.trial.unit import SearchUnit
    from milp_ray.tune.search.run import run_search
    from milp_ray.tune.workers.trial_spec import TrialSpec

    ends: list[Ended] = []

    class Noting:
        def on_trial_started(self, request: TrialRequest) -> None: ...
        def on_trial_requeued(self, request: TrialRequest, is_charged: bool) -> None: ...

        def on_trial_completed(
            self, request: TrialRequest, values: Mapping[str, float], cost: TrialCost | None
        ) -> None:
            assert cost is not None
            self._end(request, train_seconds=cost.train_seconds, eval_seconds=cost.eval_seconds, **values)

        def on_trial_failed(self, request: TrialRequest, reason: str, cost: TrialCost | None) -> None:
            self._end(request, reason=reason)

        def _end(self, request: TrialRequest, **result: Any) -> None:
            ends.append(Ended(time.perf_counter(), request.to_config(), result))

    architecture = load_architecture(study.model)
    events = folder / "events"
    events.mkdir()
    (folder / "run.json").touch()  # what workers look for
    engine = Engine(
        space_from(study.memory, architecture.num_layers, architecture.width),
        (Objective("loss", "min"), Objective("rouge_l", "max")),
        initial=study.search.initial,
        batch=study.search.batch,
        surrogate=study.search.surrogate,
        trials=study.search.trials,
        log=events / f"{ALIAS}.jsonl",
    )
    spec = TrialSpec(study, {ALIAS: ray.put(SearchUnit.of_user(user()))}, folder)
    run_search(spec, {ALIAS: engine}, folder / "tune", lambda: False, (Noting(),))
    return ends


def peer(study: Study, folder: Path, kind: str, configs: Sequence[Mapping[str, Any]]) -> list[Ended]:
    """A function trainable for the same trials."""
    from ray import tune
    from ray.tune.search import Searcher

    ends: list[Ended] = []

    class Listed(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric="loss", mode="min")
            self.left = list(configs)
            self.given: dict[str, Mapping[str, Any]] = {}

        def suggest(self, trial_id: str) -> Any:
            if not self.left:
                return Searcher.FINISHED
            self.given[trial_id] = self.left.pop(0)
            return dict(self.given[trial_id])

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            ends.append(Ended(time.perf_counter(), self.given[trial_id], result or {}))

        def save(self, checkpoint_path: str) -> None: ...
        def restore(self, checkpoint_path: str) -> None: ...
        def __getstate__(self) -> dict[str, object]:
            return {}

    trial = nested_trial if kind == "nested" else function_trial
    trainable = tune.with_parameters(trial, study=study, person=user(), folder=folder)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=Listed(), num_samples=-1, max_concurrent_trials=1, reuse_actors="reused" in kind
        ),
        run_config=tune.RunConfig(name=kind.replace(", ", "-"), storage_path=str(folder / "tune"), verbose=0),
    )
    tuner.fit()
    return ends


def function_trial(config: Mapping[str, Any], study: Study, person: UserSplit, folder: Path) -> None:
    """A trial as one writes it first: everything in one function."""
    import torch
    from ray import tune

    from milp_ray.model.base import load_base

    torch.set_num_threads(1)
    tune.report(measured(load_base(study.model), config, study, person))


def nested_trial(config: Mapping[str, Any], study: Study, person: UserSplit, folder: Path) -> None:
    """A trial on several workers as Ray's documentation has it: a Train run inside the trial."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        nested_worker,
        train_loop_config={"config": dict(config), "study": study, "person": person},
        # The trial around it asks for a CPU; what Ray keeps account of limits nothing.
        scaling_config=train.ScalingConfig(
            num_workers=study.ray.workers_per_trial, resources_per_worker={"CPU": 0.5}
        ),
        run_config=train.RunConfig(storage_path=str(folder / "train"), name=f"trial-{config['trial']}"),
    )
    tune.report(trainer.fit().return_value)


def nested_worker(loop: Mapping[str, Any]) -> dict[str, Any]:
    """What each worker of a Train run does; Train has made the process group."""
    import torch
    from torch import distributed as dist

    from milp_ray.model.base import load_base
    from milp_ray.model.parallel.group import Ranks
    from milp_ray.model.parallel.sharding import Parallel

    class Joined(Ranks):
        def __init__(self) -> None:
            self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), torch.device("cpu")
            self._control = dist.new_group(backend="gloo")

    torch.set_num_threads(1)
    study: Study = loop["study"]
    parallel = Parallel(Joined(), study.ray.parallelism)
    return measured(load_base(study.model, parallel), loop["config"], study, loop["person"])


def measured(base: Any, config: Mapping[str, Any], study: Study, person: UserSplit) -> dict[str, Any]:
    """The trial of a config on a base."""
    from milp_ray.memory.placement import Placement
    from milp_ray.trial.lifecycle import Trial

    with Trial(base, person, Placement.from_key(config["placement"]), study, seed=study.seed) as trial:
        found = trial.run()
    assert found is not None
    return {
        "loss": found.loss,
        "rouge_l": found.scores["rouge_l"],
        "train_seconds": found.train_seconds,
        "eval_seconds": found.eval_seconds,
    }


def rows_of(method: str, began: float, ends: Sequence[Ended]) -> list[Row]:
    """One row per trial: wall seconds since the last one (or the start), and where they went."""
    rows, before = [], began
    for number, end in enumerate(ends):
        if "loss" not in end.result:
            raise RuntimeError(
                f"trial {number} of {method} failed: {end.result.get('reason', 'see its log')}"
            )
        wall, before = end.at - before, end.at
        train, evaluation = float(end.result["train_seconds"]), float(end.result["eval_seconds"])
        values = (method, number, end.config["placement"], wall, train, evaluation, wall - train - evaluation)
        rows.append(dict(zip(COLUMNS, (*values, float(end.result["loss"])), strict=True)))
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Medians per method, the first trial left out, beside the function trainable and the goal."""
    found: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        rest = mine[1:]
        middle: dict[str, float] = {
            name: statistics.median(row[name] for row in rest)
            for name in ("wall", "train", "eval", "overhead")
        }
        known = {row["placement"]: row["loss"] for row in rows if row["method"] == rows[0]["method"]}
        found.append(
            {
                "method": method,
                "trials": len(rest),
                **middle,
                "largest_overhead": max(row["overhead"] for row in rest),
                "first_wall": mine[0]["wall"],
                "loss_difference": max(abs(row["loss"] - known[row["placement"]]) for row in mine),
            }
        )
    peers = [row for row in found if row["method"] == "function/1"]
    for row in found:
        row["function_over_this"] = peers[0]["overhead"] / row["overhead"] if peers else ""
        goal = GOALS.get(row["method"])
        row["goal"] = goal or ""
        row["met"] = "" if goal is None else row["overhead"] <= goal
        if row["method"] == "resident/1" and peers:
            row["met"] = row["met"] and row["function_over_this"] >= TIMES
    return found


def draw(rows: Sequence[Row], found: Sequence[Row], path: Path) -> None:
    """Overhead of every trial by method, on a logarithmic scale."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names = [row["method"] for row in found]
    for place, row in enumerate(reversed(found)):
        values = [one["overhead"] for one in rows if one["method"] == row["method"]][1:]
        own = str(row["method"]).startswith("resident")
        axes.barh(place, row["overhead"], color="#0072B2" if own else "#999999", alpha=0.8)
        axes.plot(values, [place] * len(values), "o", color="black", markersize=3, alpha=0.6)
        axes.text(max(*values, row["overhead"]) * 1.15, place, f"{row['overhead']:.2g} s", va="center")
        if row["goal"]:
            axes.plot([row["goal"]] * 2, [place - 0.45, place + 0.45], color="#D55E00", linewidth=2)
    axes.plot([], [], color="#D55E00", linewidth=2, label="goal")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set(
        xscale="log",
        xlabel="seconds per trial beside training and measurement (dots: trials, bars: medians)",
        title="method / ranks / parallelism",
    )
    axes.margins(x=0.15)
    axes.legend(frameon=False, loc="upper right")
    axes.grid(alpha=0.25, axis="x")
    figure.savefig(path, dpi=130)


def write(rows: Sequence[Row], path: Path) -> None:
    """A table; seconds to the tenth of a millisecond."""
    write_rows(rows, path, lambda key, value: f"{value:.3g}" if key == "loss_difference" else short(value))


def run(method: str, model: Path, trials: int, configs: list[Mapping[str, Any]]) -> list[Row]:
    """All trials of one method; ``configs`` gets those of the first method, for the others."""
    kind = method.split("/")[0]
    study = study_of(model, method, trials)
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as place:
        began = time.perf_counter()
        work: Callable[[], list[Ended]] = (
            (lambda: resident(study, Path(place)))
            if kind == "resident"
            else (lambda: peer(study, Path(place), kind, configs))
        )
        ends = work()
    if not configs:
        configs += [end.config for end in ends]
    return rows_of(method, began, ends)


def main() -> None:
    """Run, then write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--trials", type=int, default=10, help="after the first, which measures no memory")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help=str(METHODS))
    parser.add_argument("--name", default="trial_overhead", help="of the result files")
    arguments = parser.parse_args()
    if not arguments.methods[0].startswith("resident") or set(arguments.methods) - set(METHODS):
        parser.error(f"methods are of {', '.join(METHODS)}; the first is a resident one, which proposes")
    RESULTS.mkdir(exist_ok=True)
    rows: list[Row] = []
    configs: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="overhead-model-") as place, ray_session(RaySettings()):
        there = (arguments.model / "config.json").is_file()
        model = arguments.model if there else bases.save_random(Path(place), "tiny")
        for method in arguments.methods:
            rows += run(method, model, arguments.trials, configs)
            found = summary(rows)
            print({key: short(value) for key, value in found[-1].items()}, flush=True)
            write(rows, RESULTS / f"{arguments.name}.csv")
            write(found, RESULTS / f"{arguments.name}_summary.csv")
            draw(rows, found, RESULTS / f"{arguments.name}.png")
    if max(row["loss_difference"] for row in found) > LIKE:
        sys.exit(f"losses of the same trial differ by more than {LIKE:g}: not the same work")


if __name__ == "__main__":
    main()
