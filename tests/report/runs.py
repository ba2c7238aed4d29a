"""Runs made of tables alone, for tests of what is reported of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from milp_ray.config import Study
from milp_ray.ids import POPULATION, alias_of
from milp_ray.memory.placement import Placement
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import write_table

LAYERS = 12
KEY = b"k" * 32


def aliases(count: int) -> list[str]:
    return sorted(alias_of(f"person {number}", KEY) for number in range(count))


def study_of(root: Path, **sections: Any) -> Study:
    plain: dict[str, Any] = {
        "name": "s",
        "model": {"path": "m"},
        "data": {"path": "d"},
        "storage": {"path": str(root)},
        "search": {"trials": 10, "initial": 4},
    }
    return Study.model_validate(plain | sections)


def trials_of(alias: str, seed: int, trials: int = 10, failed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    loss = 2.0 + rng.random(trials)
    rouge = 0.4 - 0.1 * loss + 0.02 * rng.standard_normal(trials)
    for number in range(-1, trials):
        gates = rng.random(LAYERS) < 0.5
        gates[0] = True
        rank = int(rng.choice([8, 16, 32]))
        place = Placement(tuple((layer, rank) for layer in range(LAYERS) if gates[layer]))
        state = "no memory" if number < 0 else "failed" if number < failed else "done"
        done = state == "done"
        dominated = any(
            (loss[i] <= loss[number] and rouge[i] >= rouge[number]) and i != number
            for i in range(failed, trials)
        )
        rows.append(
            {
                "user": alias, "trial": number, "state": state,
                "loss": 2.6 if number < 0 else loss[number] if done else float("nan"),
                "rouge_l": 0.1 if number < 0 else rouge[number] if done else float("nan"),
                "gates": "" if number < 0 else "".join("01"[int(gate)] for gate in gates),
                "num_loras": 0 if number < 0 else int(gates.sum()), "rank": 0 if number < 0 else rank,
                "placement": "" if number < 0 else place.key,
                "trainable_params": 0 if number < 0 else 8 * rank,
                "on_front": done and not dominated,
                "reason": "out of memory at 12 GiB" if state == "failed" else "",
                "inject_seconds": 3.0, "instruct_seconds": 2.0, "eval_seconds": 1.0, "train_tokens": 1000.0,
                "gpu_memory": 0.0, "node": "0a1b2c3d", "attempts": 1.0,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def timed(trials: pd.DataFrame, workers: int = 2, seconds: float = 10.0) -> pd.DataFrame:
    """Trials that so many workers ran one after the other, of which the stages took 6 s each."""
    order = np.arange(len(trials))
    started = 1_700_000_000.0 + seconds * (order // workers)
    return trials.assign(
        started_at=started, ended_at=started + seconds, lost_seconds=0.0,
        worker=[f"{index % workers:08x}" for index in order],
    )  # fmt: skip


def chosen_of(trials: pd.DataFrame) -> pd.DataFrame:
    front = trials[trials.on_front].drop_duplicates("user")
    columns = [
        "user",
        "trial",
        "loss",
        "rouge_l",
        "gates",
        "num_loras",
        "rank",
        "placement",
        "trainable_params",
    ]
    chosen = front[columns].copy()
    chosen.insert(1, "policy", "knee")
    return chosen


def hypervolume_of(trials: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for alias, found in trials[trials.state == "done"].groupby("user", sort=False):
        rows += [
            {"user": alias, "finished": count, "hypervolume": 1.0 - 1.0 / (1 + count)}
            for count in range(1, len(found) + 1)
        ]
    return pd.DataFrame(rows, columns=["user", "finished", "hypervolume"])


def scores_of(users: Sequence[str], losses: Mapping[str, Sequence[float]] | None = None) -> pd.DataFrame:
    """Test losses of base, own and other; each user gains 0.1 and another's memory nothing."""
    rows = []
    for index, alias in enumerate(users):
        base, own, other = (losses or {}).get(
            alias, (2.5 + index / 1000, 2.4 + index / 1000, 2.5 + index / 1000)
        )
        rows += [
            {"user": alias, "model": model, "samples": 9, "loss": loss, "rouge_1": 0.2, "rouge_l": 0.2,
             "chrf": 0.3, "persona_f1": 0.1}
            for model, loss in (("base", base), ("own", own), ("other", other))
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["user", "model", "samples", "loss", "rouge_1", "rouge_l", "chrf",
                                       "persona_f1"])  # fmt: skip


def write_run(folder: RunFolder, trials: pd.DataFrame, scores: pd.DataFrame | None = None) -> RunFolder:
    layout = folder.layout
    write_table(trials, layout.table("trials"))
    write_table(trials[trials.on_front], layout.table("fronts"))
    write_table(chosen_of(trials), layout.table("chosen"))
    write_table(hypervolume_of(trials), layout.table("hypervolume"))
    write_table(scores if scores is not None else scores_of([]), layout.table("scores"))
    return folder


def run_of(root: Path, count: int = 3, *, tested: bool = True, **sections: Any) -> RunFolder:
    """A finished run of so many users."""
    users = aliases(count)
    folder = RunFolder.create(study_of(root, **sections), dict.fromkeys(users, "f" * 32), KEY)
    trials = pd.concat([trials_of(alias, seed) for seed, alias in enumerate(users)], ignore_index=True)
    return write_run(folder, trials, scores_of(users) if tested else None)


def population_of(root: Path, count: int = 8) -> RunFolder:
    """A finished run that searched one placement for everybody."""
    users = aliases(count)
    study = study_of(root, search={"trials": 10, "initial": 4, "unit": "population", "users_per_trial": 4})
    folder = write_run(
        RunFolder.create(study, dict.fromkeys(users, "f" * 32), KEY),
        trials_of(POPULATION, 0),
        scores_of(users),
    )
    rows = [
        {"trial": trial, "user": alias, "loss": 2.6 - 0.01 * (trial + 1), "rouge_l": 0.1}
        for trial in range(-1, 10)
        for alias in users[:4]
    ]
    write_table(pd.DataFrame(rows), folder.layout.table("by_user"))
    return folder
