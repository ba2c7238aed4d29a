"""Several ranks on one trial: how fast is each way to share it, and how much memory has a rank?

The model is a Llama with random weights (fp32, about 100 million parameters unless `--size` says
otherwise). It takes one placement and 20 optimizer steps of the same global batch, on CPU ranks of
one thread each, with gloo between them: alone, then with 2 ranks by ddp, zero1, zero2, zero3 and
fsdp. All run the product's `Trial` without Ray, each on fresh processes. The peer is plain PEFT in
PyTorch's DistributedDataParallel on the same ranks, batches and rates.

Tokens/s are those of steps 3 to 20, also per CPU second of all ranks, where other work on the
machine shows less. `held` counts the base's parameters that are on a rank between two calls. Memory
is the resident size of the worst rank: its peak in training and, apart from it, while loading.
While loading, a base that is not sharded is mapped from its file and hardly read; one that is
sharded is read part by part. Memory is taken in a short run of its own, in which malloc gives every
large block back at once. (A GPU's allocator has no such hidden stock, and here it doubles what a
sharded base seems to need.) Losses of all 20 steps are compared with those of a single rank.

    python benchmarks/parallelism.py                # ten minutes
    python benchmarks/parallelism.py --size tiny    # a quick look
    python benchmarks/parallelism.py --memory zero3 fsdp    # the memory of these rows anew

Writes results/parallelism.csv and results/parallelism.png. Exits with 1 when losses differ by more
than 1e-4.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import bases
import matplotlib.pyplot as plt
from tables import short, write_rows

RESULTS = Path(__file__).parent / "results"
STRATEGIES = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp")
PEER = "peft+ddp"
STEPS, WARM, MEMORY_STEPS, SEED = 20, 2, 4, 3
LIKE = 1e-4
MALLOC = "MALLOC_MMAP_THRESHOLD_"
MEMORY = ("training_mib", "loading_mib")
Row = dict[str, Any]


def study_of(folder: Path, batch: int, tokens: int) -> Any:
    """Training as a study would have it; nothing is generated."""
    from milp_ray.config.models import Study

    return Study.model_validate(
        {
            "name": "parallelism",
            "model": {"path": str(folder), "device": "cpu", "dtype": "float32"},
            "data": {"path": "none"},
            "prompts": {"max_length": tokens},
            "objectives": ("loss",),
            # A high rate, so that a wrong step would show in the losses after it.
            "optimizer": {"batch_size": batch, "learning_rate": 5e-3},
            "trial": {"epochs": 1, "eval_batch_size": batch},
        }
    )


def placement_of(layers: int) -> Any:
    """LoRAs of rank 8 and 16 on every third layer."""
    from milp_ray.memory.placement import Placement

    return Placement(tuple((layer, 16 if layer % 2 else 8) for layer in range(1, layers, 3)))


def steps_of_trial(base: Any, study: Any) -> Iterator[tuple[float, int]]:
    """Loss and tokens of every step of the product's own trial."""
    from milp_ray.data.records import Sample, UserSplit
    from milp_ray.trial.lifecycle import Trial

    count = STEPS * study.optimizer.batch_size
    history = bases.texts(count, study.prompts.max_length)
    person = UserSplit("u-" + "c" * 13, history, (), (Sample("a", "b", n_hist=count),), (), count, count)
    with Trial(base, person, placement_of(base.architecture.num_layers), study, seed=SEED) as trial:
        for progress in trial.steps():
            if progress.loss is not None:
                yield progress.loss, progress.tokens


def steps_of_peer(study: Any, group: Any) -> Iterator[tuple[float, int]]:
    """The same by what PEFT and PyTorch offer: a PEFT model in DDP, its own loss, AdamW."""
    import torch
    from peft import get_peft_model
    from torch.nn.parallel import DistributedDataParallel
    from transformers import AutoModelForCausalLM

    from milp_ray.data.prompts import Prompts
    from milp_ray.memory.adapters import lora_config
    from milp_ray.memory.architectures import architecture_of
    from milp_ray.model.batches import shuffled
    from milp_ray.training.loop import lr_factor

    settings = study.optimizer
    model = AutoModelForCausalLM.from_pretrained(study.model.path, dtype=torch.float32)
    architecture = architecture_of(model.config)
    torch.manual_seed(SEED)
    adapted = get_peft_model(model, lora_config(placement_of(architecture.num_layers), architecture))
    wrapped = DistributedDataParallel(adapted)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=settings.weight_decay, fused=True)
    prompts, words = Prompts(study.prompts), bases.tokenizer()
    lines = bases.texts(STEPS * settings.batch_size, study.prompts.max_length)
    encoded = [prompts.encode_history(words, text) for text in lines]
    order = torch.Generator().manual_seed(2 * SEED)
    for done, indices in enumerate(shuffled([len(ids) for ids in encoded], settings.batch_size, order)):
        for part in optimizer.param_groups:
            part["lr"] = settings.learning_rate * lr_factor(done, STEPS, settings.warmup)
        mine = torch.tensor([encoded[index] for index in group.share(indices)])
        loss = wrapped(input_ids=mine, labels=mine, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield group.total([loss.item() / group.size])[0], sum(len(encoded[index]) for index in indices)


def memory(name: str) -> float:
    """A line of this process's status (VmRSS, VmHWM) in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def on_rank(strategy: str, rank: int, size: int, port: int, study: Any, most: int) -> Row:
    """So many of the 20 steps on one rank, and what they took."""
    import torch

    from milp_ray.model.base import load_base
    from milp_ray.model.parallel.group import SOLO, Ranks
    from milp_ray.model.parallel.rendezvous import Rendezvous
    from milp_ray.model.parallel.sharding import Parallel, local_numel

    torch.set_num_threads(1)
    rendezvous = Rendezvous(f"127.0.0.1:{port}", rank, size, timeout=300)
    group = Ranks(rendezvous, torch.device("cpu")) if size > 1 else SOLO
    found: Row = {}
    if strategy == PEER:
        steps = steps_of_peer(study, group)
    else:
        base = load_base(study.model, Parallel(group, strategy))  # type: ignore[arg-type]
        found["held"] = local_numel(base.model)
        found["loading_mib"] = memory("VmHWM")
        steps = steps_of_trial(base, study)
    losses, tokens, began, worked = [], 0, 0.0, 0.0
    for loss, count in steps:
        losses.append(loss)
        if len(losses) == 1:
            # The peak so far is that of loading; what follows is training's own.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        elif len(losses) == WARM:
            began, worked = time.perf_counter(), time.process_time()
        elif len(losses) > WARM:
            tokens += count
        if len(losses) == most:
            break  # what the product measures afterwards is not timed
    found |= {"losses": losses, "seconds": time.perf_counter() - began, "tokens": tokens}
    found["cpu_seconds"] = time.process_time() - worked
    found["training_mib"] = memory("VmHWM")
    # Ranks leave the trial together: one that drops it tells the others, as they do.
    steps.close()  # type: ignore[attr-defined]
    return found


def on_ranks(strategy: str, size: int, study: Any, most: int = STEPS) -> list[Row]:
    """What every rank found, each a fresh process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = [pool.submit(on_rank, strategy, rank, size, port, study, most) for rank in range(size)]
        return [one.result(timeout=3600) for one in work]


def memory_of(strategy: str, size: int, study: Any) -> list[Row]:
    """Every rank's memory, in a few steps."""
    os.environ[MALLOC] = str(2**18)  # read when a process starts
    try:
        lean = on_ranks(strategy, size, study, MEMORY_STEPS)
    finally:
        del os.environ[MALLOC]
    return [{name: rank[name] for name in MEMORY if name in rank} for rank in lean]


def with_memory(strategy: str, size: int, study: Any) -> list[Row]:
    """What every rank found in all steps, and its memory in a few of them."""
    ranks = on_ranks(strategy, size, study)
    return [rank | lean for rank, lean in zip(ranks, memory_of(strategy, size, study), strict=True)]


def memory_anew(names: Sequence[str], size: int, study: Any, path: Path) -> list[Row]:
    """The table that is there, with the worst rank's memory of some rows measured again."""
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        if row["strategy"] in names:
            lean = memory_of(row["strategy"], size, study)
            row |= {name: max(rank[name] for rank in lean) for name in MEMORY}
            print(row, flush=True)
    return rows


def row_of(strategy: str, ranks: Sequence[Row], alone: Sequence[float]) -> Row:
    """A line of the table: the slowest rank's time, the worst rank's memory."""
    differences = [
        abs(mine - other) for rank in ranks for mine, other in zip(rank["losses"], alone, strict=True)
    ]
    return {
        "strategy": strategy,
        "ranks": len(ranks),
        "tokens_per_second": ranks[0]["tokens"] / max(rank["seconds"] for rank in ranks),
        "tokens_per_cpu_second": ranks[0]["tokens"] / sum(rank["cpu_seconds"] for rank in ranks),
        "over_peer": "",
        "over_peer_cpu": "",
        "training_mib": max(rank["training_mib"] for rank in ranks),
        "loading_mib": max(rank.get("loading_mib", 0.0) for rank in ranks) or "",
        "held": max(rank.get("held", 0) for rank in ranks) or "",
        "first_loss": ranks[0]["losses"][0],
        "last_loss": ranks[0]["losses"][-1],
        "loss_difference": max(differences),
    }


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Speed and memory, side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = [f"{row['strategy']}\n{row['ranks']} rank{'s' * (row['ranks'] > 1)}" for row in rows]
    colours = ["#999999" if row["strategy"] == PEER else "#0072B2" for row in rows]
    for axes, column, label in (
        (left, "tokens_per_cpu_second", "tokens per CPU second of all ranks"),
        (right, "training_mib", "peak memory of a rank in training (MiB)"),
    ):
        bars = axes.bar(names, [row[column] for row in rows], color=colours)
        axes.bar_label(bars, fmt="%.0f")
        axes.set_ylabel(label)
        axes.tick_params(axis="x", labelsize=8)
        axes.margins(y=0.15)
        axes.grid(alpha=0.25, axis="y")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def write(rows: Sequence[Row], path: Path) -> None:
    """The table."""

    def shown(key: str, value: Any) -> object:
        return f"{value:.2g}" if key == "loss_difference" else short(value)

    write_rows(rows, path, shown)


def main() -> None:
    """Run, then write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=list(bases.SIZES), default="100m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="texts of a step, over all ranks")
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--name", default="parallelism", help="of the result files")
    parser.add_argument("--memory", nargs="+", choices=STRATEGIES, help="measure these rows' memory alone")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    table, picture = (RESULTS / f"{arguments.name}.{kind}" for kind in ("csv", "png"))
    title = f"Llama {arguments.size}, batches of {arguments.batch} x {arguments.tokens} tokens, CPU"
    rows: list[Row] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory(prefix="parallelism-") as place:
        study = study_of(bases.save_random(Path(place), arguments.size), arguments.batch, arguments.tokens)
        if arguments.memory:
            write(memory_anew(arguments.memory, arguments.ranks, study, table), table)
            return
        for strategy in ("none", PEER, *STRATEGIES[1:]):
            ranks = with_memory(strategy, 1 if strategy == "none" else arguments.ranks, study)
            alone = alone or ranks[0]["losses"]
            rows.append(row_of(strategy, ranks, alone))
            for row in rows[1:]:
                row["over_peer"] = row["tokens_per_second"] / rows[1]["tokens_per_second"]
                row["over_peer_cpu"] = row["tokens_per_cpu_second"] / rows[1]["tokens_per_cpu_second"]
            print(rows[-1], flush=True)
            write(rows, table)
            draw(rows, title, picture)
    if max(row["loss_difference"] for row in rows) > LIKE:
        sys.exit(f"losses differ by more than {LIKE:g}")


if __name__ == "__main__":
    main()
