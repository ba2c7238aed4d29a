"""Measures every placement of a small space on real users, once: benchmarks/data/real_table.csv.

The space is small enough to be measured completely: a gate stands for a block of two of the 12
layers, n goes to 6, and r is 8 or 64. So every value that a search sees in `search_quality.py` is a
measured one, and the best front is known. A row is a placement of one user: numbers only, no text,
no user id.

Needs the folder of real data that the tests use (`MILP_RAY_SHARED`, or `../shared` beside the
checkout). Rows that are there are not measured again. Two processes of one thread:

    python benchmarks/make_table.py 0/2 & python benchmarks/make_table.py 1/2
"""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milp_ray.memory.placement import Placement
    from milp_ray.memory.space import MemorySpace

HERE = Path(__file__).parent
TABLE = HERE / "data" / "real_table.csv"
USERS = (("medical_dialogue", "med_07"), ("ubuntu_irc", "irc_acf61a07a3"), ("shakespeare", "shk_petruchio"))
FIELDS = ("user", "placement", "repeat", "loss", "rouge_l", "trainable_params", "seconds")
REPEATS = 3  # of every 25th placement, with other seeds: how much is noise
STUDY = """
name: table
model: {{path: {model}, device: cpu, dtype: float32}}
data:
  path: {data}
  users: [{user}]
  max_history: 80
  max_samples: 60
  split: {{train: 0.4, validation: 0.4, test: 0.2}}
prompts: {{max_length: 96}}
memory: {{ranks: [8, 64]}}
optimizer: {{learning_rate: 2.0e-3, batch_size: 8}}
trial: {{epochs: 2, max_new_tokens: 20, eval_batch_size: 24}}
"""


def space() -> MemorySpace:
    """Six blocks: gates, n and r as ever, over blocks instead of layers."""
    from milp_ray.memory.space import MemorySpace

    return MemorySpace(num_layers=6, max_loras=6, ranks=(8, 64), max_rank=128)


def placements() -> list[str]:
    """Every placement key of the space; the empty key is no memory."""
    blocks = space()
    return ["", *sorted({blocks.placement(config).key for config in blocks.every_config()} - {""})]


def on_layers(key: str) -> Placement:
    """A placement of blocks as one of layers: block b is layers 2b and 2b + 1."""
    from milp_ray.memory.placement import Placement

    blocks = Placement.from_key(key).ranks
    return Placement(tuple((2 * block + half, rank) for block, rank in blocks for half in (0, 1)))


def main(share: str) -> None:
    """Measure every placement whose turn is ``share``, such as ``0/2``."""
    import torch

    from milp_ray.config.loading import load_study
    from milp_ray.data.readers import read_users
    from milp_ray.data.splits import split_users
    from milp_ray.model.base import load_base
    from milp_ray.trial.lifecycle import Trial

    real = Path(os.environ.get("MILP_RAY_SHARED") or HERE.parents[1] / "shared")
    if not (real / "models" / "tiny-base" / "config.json").is_file():
        sys.exit(f"no real data at {real}: set MILP_RAY_SHARED")
    torch.set_num_threads(1)
    turn, of = (int(part) for part in share.split("/"))
    done = {(row["user"], row["placement"], row["repeat"]) for row in rows()}
    base = None
    for name, user in USERS:
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"table-{os.getpid()}.yaml"
        data = real / "data" / name / "bench.jsonl"
        path.write_text(STUDY.format(model=real / "models" / "tiny-base", data=data, user=user))
        study = load_study(path)
        path.unlink()
        base = base or load_base(study.model)
        split = split_users(read_users(study.data).users, b"table", study.data).users[0]
        for index, key in enumerate(placements()):
            for repeat in range(REPEATS if index % 25 == 1 else 1):
                if index % of != turn or (name, key, str(repeat)) in done:
                    continue
                began = time.perf_counter()
                with Trial(base, split, on_layers(key), study, phase="search", seed=repeat) as trial:
                    found = trial.run()
                assert found is not None  # None is a trial that somebody stopped
                row = (name, key, repeat, found.loss, found.scores["rouge_l"], found.trainable_params)
                _append([*row, round(time.perf_counter() - began, 2)])


def rows() -> list[dict[str, str]]:
    """What was measured so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def complete_users() -> list[str]:
    """Users all of whose placements are measured."""
    wanted = set(placements())
    measured = {name: {row["placement"] for row in rows() if row["user"] == name} for name, _ in USERS}
    return [name for name, keys in measured.items() if keys >= wanted]


def _append(row: list[object]) -> None:
    new = not TABLE.exists()
    with TABLE.open("a", newline="", encoding="utf-8") as file:  # one short write: processes do not mix
        if new:
            csv.writer(file).writerow(FIELDS)
        csv.writer(file).writerow(row)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "0/1")
