"""What exporting many memories takes: seconds, memory, and what a killed export has left.

    python benchmarks/export_memories.py --memories 10000

A run with so many users' memories of a tiny Llama (random weights, two ranks each) is made in a
temporary folder. `milp-ray export --for vllm` is killed in the middle (SIGKILL), and resumed to its
end; then the same folders are copied file by file, by Python's shutil, for comparison.

Writes results/export_memories.csv: seconds and peak memory of both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tables import short, write_rows

HERE = Path(__file__).parent
PLACEMENTS = ("0:4,1:8", "1:2", "0:8,1:8", "0:2")


def make_run(folder: Path, memories: int) -> Path:
    """A run with memories, and nothing else of a run that has been searched."""
    import torch
    from bases import config_of, save_random

    from milp_ray.config.models import Study
    from milp_ray.ids import alias_of
    from milp_ray.memory.adapter_notes import NOTE, note_of
    from milp_ray.memory.adapters import lora_config, write_adapter
    from milp_ray.memory.architectures import architecture_of
    from milp_ray.memory.placement import Placement
    from milp_ray.study.run_folder import RunFolder

    key = b"k" * 32
    save_random(folder / "model", "tiny")
    study = Study.model_validate(
        {
            "name": "many",
            "model": {"path": str(folder / "model")},
            "data": {"path": str(folder / "users.jsonl")},
            "storage": {"path": str(folder / "runs")},
        }
    )
    run = RunFolder.create(study, "f" * 64, key)
    architecture = architecture_of(config_of("tiny"))
    generator = torch.Generator().manual_seed(0)
    for number in range(memories):
        placement = Placement.from_key(PLACEMENTS[number % len(PLACEMENTS)])
        alias = alias_of(f"user-{number}", key)
        weights = {}
        for layer, rank in placement.ranks:
            for module in architecture.modules(layer):
                name = f"base_model.model.{module.name}.lora"
                weights[f"{name}_A.weight"] = torch.randn(rank, module.in_features, generator=generator)
                weights[f"{name}_B.weight"] = torch.randn(module.out_features, rank, generator=generator)
        config = lora_config(placement, architecture, 1.0)
        config.base_model_name_or_path = str(folder / "model")
        target = run.layout.memory(alias)
        target.mkdir(parents=True)
        write_adapter(target, config, weights)
        (target / NOTE).write_bytes(note_of(target, placement.key, alias))
    return run.root


def watched(words: list[str], stop_at: int | None, place: Path) -> tuple[float, int, int]:
    """Seconds, peak bytes of memory and exit code of a command; killed at so many folders."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    watch = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watch.memory_info().rss)
        except psutil.Error:
            break
        if stop_at is not None and place.exists() and sum(1 for _ in place.iterdir()) >= stop_at:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    return time.perf_counter() - began, peak, process.wait()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--memories", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="export-") as name:
        folder = Path(name)
        run, place = make_run(folder, asked.memories), folder / "served"
        words = [sys.executable, "-m", "milp_ray", "export", str(run), str(place), "--for", "vllm"]
        rows: list[dict[str, object]] = []
        for what, stop_at in (("killed in the middle", asked.memories // 2), ("resumed", None)):
            seconds, peak, code = watched(words, stop_at, place)
            there = sum(1 for path in place.glob("u-*") if (path / "adapter_config.json").exists())
            rows.append(
                {"what": what, "seconds": seconds, "peak MiB": peak / 2**20, "exit": code, "memories": there}
            )
        began = time.perf_counter()
        for source in sorted((run / "memories").iterdir()):
            target = folder / "copies" / source.name
            target.mkdir(parents=True)
            for file in ("adapter_model.safetensors", "adapter_config.json"):
                shutil.copyfile(source / file, target / file)
                with (target / file).open("rb") as copied:
                    os.fsync(copied.fileno())
        seconds = time.perf_counter() - began
        rows.append(
            {
                "what": "shutil and fsync",
                "seconds": seconds,
                "peak MiB": "",
                "exit": "",
                "memories": asked.memories,
            }
        )
    write_rows(rows, HERE / "results" / "export_memories.csv", lambda _, value: short(value))
    for row in rows:
        print(*(short(value) for value in row.values()), sep="\t")


if __name__ == "__main__":
    main()
