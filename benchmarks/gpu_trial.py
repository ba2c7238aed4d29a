"""Seconds of one trial on a GPU, beside Hugging Face's Trainer with PEFT on the same work.

The model has LLaMA2-7B's shape and random weights in bf16, made on the device without files. One
user has 300 texts of 128 tokens, for 3 epochs in batches of 8. LoRAs have rank 8; the search space
spreads 4, 16 and 32 of them over all layers, and 4 over the upper half. The peer trains the same
model on the same batches in the same order, with the same initial LoRA weights, rates, optimizer
and dtype. It has a model of its own, since the product fuses its own (milp_ray/model/fused.py).
Each placement is trained once to warm up, and `--repeats` times by both in turn; medians are kept.
`train` is the training alone. `whole` also attaches the adapter, measures the loss of 48 validation
samples, and detaches the adapter.

Responses, which ROUGE-L needs, are timed apart: greedy tokens for those samples in batches of 16,
with 16 LoRAs, beside `generate` of transformers on a PEFT model. Random weights hardly ever end a
response, so both make all tokens.

FLOPs are those that the algorithm needs, per text of T positions, with hidden size h, feed-forward
size i, vocabulary v and L layers, the lowest LoRA in layer l (from 0):

- forward: 2 T (L (4 h^2 + 3 h i) + h v) for the weights, 2 T (T + 1) h L for causal attention;
- backward, gradients of activations only, as the weights are frozen: 2 T h v for the logits,
  2 T (4 h^2 + 3 h i) and 4 T (T + 1) h for each of the L - 1 - l layers above l, and 2 T h i for
  the last projection of layer l;
- LoRA: 6 T times its parameters, forward and backward.

`mfu` is these FLOPs over time and the device's dense bf16 peak (989 TFLOP/s for H100 and H200).
`matmul_share` is the same over what one large matrix product reaches here. Neither Ray nor
DeepSpeed is needed. Where there are several GPUs, hide all but one (CUDA_VISIBLE_DEVICES=0), as the
Trainer would take them all:

    PYTHONPATH=. python benchmarks/gpu_trial.py                # a GPU with 40 GB or more: 5 minutes
    PYTHONPATH=. python benchmarks/gpu_trial.py --size 100m    # smaller

Writes results/gpu_trial.csv, gpu_generation.csv and, where matplotlib is there, gpu_trial.png.
Without a GPU the tiny size runs on one CPU thread. That shows that both do the same work, and
nothing of a GPU's speed; the files are called gpu_trial_cpu and so on. Exits with 1 when fp32
losses differ by more than 1e-3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bases
from tables import write_rows

if TYPE_CHECKING:
    from milp_ray.memory.placement import Placement
    from milp_ray.model.base import BaseModel

RESULTS = Path(__file__).parent / "results"
ALIAS = "u-" + "d" * 13
RANK, SEED = 8, 3
PLACEMENTS = {
    "4 LoRAs": (4, 0.0),
    "16 LoRAs": (16, 0.0),
    "32 LoRAs": (32, 0.0),
    "4 LoRAs, upper half": (4, 0.5),
}
PEAKS = {"H100": 989e12, "H200": 989e12}
LIKE = 1e-3
GOAL_SECONDS, GOAL_RATIO = 8.0, 1.5
OURS, PEER = "milp_ray", "Trainer + PEFT"
Row = dict[str, Any]


def placement_of(layers: int, count: int, above: float) -> Placement:
    """The placement of so many LoRAs over the layers from ``above`` (a share of them) on."""
    from milp_ray.memory.factors import MemoryConfig
    from milp_ray.memory.space import MemorySpace

    space = MemorySpace(num_layers=layers, max_loras=count, ranks=(RANK,))
    return space.placement(
        MemoryConfig(tuple(layer >= above * layers for layer in range(layers)), count, RANK)
    )


def flops(config: Any, placement: Placement, positions: int) -> float:
    """Of training on one text once; see the module."""
    h, i, T = config.hidden_size, config.intermediate_size, positions
    layers = config.num_hidden_layers
    weights, attention = 4 * h * h + 3 * h * i, (T + 1) * h
    lowest = placement.ranks[0][0]
    above = layers - 1 - lowest
    forward = 2 * T * (layers * weights + h * config.vocab_size) + 2 * T * attention * layers
    backward = 2 * T * (h * config.vocab_size + above * weights + h * i) + 4 * T * attention * above
    trained = sum(rank for _, rank in placement.ranks) * 3 * (h + i)
    return float(forward + backward + 6 * T * trained)


def study_of(arguments: argparse.Namespace) -> Any:
    """Training as a study would have it, validation loss only."""
    from milp_ray.config.models import Study

    return Study.model_validate(
        {
            "name": "gpu-trial",
            "model": {"path": f"random-{arguments.size}"},
            "data": {"path": "none"},
            "prompts": {"max_length": arguments.tokens},
            "objectives": ("loss",),
            "optimizer": {"batch_size": arguments.batch},
            "trial": {"epochs": arguments.epochs, "eval_batch_size": 16},
        }
    )


def user(texts: int, tokens: int) -> Any:
    """Texts that fill ``tokens`` tokens, and 48 samples of one length."""
    from milp_ray.data.records import Sample, UserSplit

    queries, responses = bases.texts(48, tokens // 3, 1), bases.texts(48, tokens // 3, 2)
    samples = tuple(Sample(q, r, n_hist=texts) for q, r in zip(queries, responses, strict=True))
    return UserSplit(ALIAS, bases.texts(texts, tokens), (), samples, (), texts, texts)


def ours(base: BaseModel, placement: Placement, study: Any, person: Any) -> Row:
    """A trial of the product's."""
    from milp_ray.trial.lifecycle import Trial

    began = time.perf_counter()
    with Trial(base, person, placement, study, seed=SEED) as trial:
        losses = [progress.loss for progress in trial.steps() if progress.loss is not None]
        found = trial.result
    whole = time.perf_counter() - began
    assert found is not None
    return {
        "train_seconds": found.train_seconds,
        "whole_seconds": whole,
        "tokens": found.train_tokens,
        "train_loss": statistics.fmean(losses),
        "validation_loss": found.loss,
    }


def peers_data(base: BaseModel, study: Any, person: Any) -> tuple[list[Row], list[Row], list[list[int]]]:
    """Encoded texts, encoded samples, and the batches of all epochs in the product's order."""
    import torch

    from milp_ray.data.prompts import Prompts
    from milp_ray.model.batches import history_examples, sample_examples, shuffled

    def encoded(examples: Sequence[Any]) -> list[Row]:
        rows = []
        for example in examples:
            ids = torch.tensor(example.ids)
            rows.append(
                {
                    "input_ids": ids,
                    "labels": ids.clone().index_fill_(0, torch.arange(example.prompt_length), -100),
                }
            )
        return rows

    prompts = Prompts(study.prompts)
    texts = history_examples(base, prompts, person.search_history)
    order = torch.Generator().manual_seed(2 * SEED)
    lengths, size = [len(text.ids) for text in texts], study.optimizer.batch_size
    batches = [one for _ in range(study.trial.epochs) for one in shuffled(lengths, size, order)]
    return encoded(texts), encoded(sample_examples(base, prompts, person.validation)), batches


def peer(base: BaseModel, placement: Placement, study: Any, data: Any, folder: Path) -> Row:
    """The same work by Hugging Face's Trainer on a PEFT model."""
    import torch
    from peft import get_peft_model
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

    from milp_ray.memory.adapters import lora_config
    from milp_ray.training.loop import lr_factor

    texts, samples, batches = data

    class InOrder(Trainer):  # type: ignore[misc]
        """Its batches in a given order; everything else is its own."""

        def get_train_dataloader(self) -> Any:
            return DataLoader(
                texts,
                batch_sampler=batches,
                collate_fn=default_data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )

    settings, gpu = study.optimizer, base.device.type == "cuda"
    began = time.perf_counter()
    torch.manual_seed(SEED)
    model = get_peft_model(base.model, lora_config(placement, base.architecture))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(min(step, len(batches) - 1), len(batches), settings.warmup)
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=study.trial.eval_batch_size,
        num_train_epochs=1,  # of all epochs' batches in a row
        max_grad_norm=settings.max_grad_norm,
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = InOrder(model, arguments, eval_dataset=samples, optimizers=(optimizer, schedule))
    trainer.remove_callback(PrinterCallback)
    before = time.perf_counter()
    result = trainer.train()
    train = time.perf_counter() - before
    validation = trainer.evaluate()["eval_loss"]
    restore(base, model)
    return {
        "train_seconds": train,
        "whole_seconds": time.perf_counter() - began,
        "tokens": sum(len(texts[index]["input_ids"]) for batch in batches for index in batch),
        "train_loss": result.training_loss,
        "validation_loss": validation,
    }


def responses(
    base: BaseModel, plain: BaseModel, study: Any, person: Any, arguments: argparse.Namespace
) -> list[Row]:
    """Rows of both ways to make the responses of one placement's validation."""
    import torch
    from peft import get_peft_model

    from milp_ray.data.prompts import Prompts
    from milp_ray.evaluation.measure import encode_prompts, measure_responses, run_through
    from milp_ray.memory.adapters import lora_config

    size, longest = study.trial.eval_batch_size, arguments.new_tokens
    config = lora_config(
        placement_of(base.architecture.num_layers, *PLACEMENTS["16 LoRAs"]), base.architecture
    )
    chat = Prompts(study.prompts)
    prompts = encode_prompts(base, person.validation, chat, longest)
    base.attach(config)
    model = get_peft_model(plain.model, config)

    def mine() -> None:
        run_through(measure_responses(base, prompts, chat, longest, size))

    def theirs() -> None:
        for first in range(0, len(prompts), size):
            rows = {"input_ids": [list(ids) for ids in prompts[first : first + size]]}
            batch = plain.tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(plain.device)
            with torch.inference_mode(), plain.autocast():
                model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    do_sample=False,
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                    pad_token_id=0,
                )

    rows: list[Row] = []
    for method, work in ((OURS, mine), ("generate() + PEFT", theirs)):
        use_rotation(method == OURS)
        seconds = []
        for _ in range(1 + arguments.repeats):
            began = time.perf_counter()
            work()
            _settle(base.device.type)
            seconds.append(time.perf_counter() - began)
        middle = statistics.median(seconds[1:])
        made = len(prompts) * longest
        rows.append(
            {"method": method, "responses": len(prompts), "new_tokens": longest, "seconds": middle}
            | {"tokens_per_second": made / middle}
        )
    base.detach()
    restore(plain, model)
    for row in rows:
        row["over_peer"] = rows[1]["seconds"] / row["seconds"]
    return rows


def restore(base: BaseModel, model: Any) -> None:
    """Take PEFT off a base that it was put on without the product."""
    model.unload()
    for mark in ("peft_config", "active_adapter", "peft_type"):
        if mark in vars(base.model):
            delattr(base.model, mark)
    base.model.requires_grad_(False)
    base.model.eval()


def matmul_speed(device: str, dtype: Any) -> float:
    """FLOP/s of a large square matrix product, the best of a few."""
    import torch

    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _settle(device)
        began = time.perf_counter()
        left @ right
        _settle(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _settle(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def restart_peak(device: str) -> None:
    """Forget how much memory was in use at most."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


_ROTATIONS: list[Any] = []  # transformers' own, and what the product puts in its place for all models


def use_rotation(fused: bool) -> None:
    """Give the models of this process one of the two."""
    from transformers.models.llama import modeling_llama

    modeling_llama.apply_rotary_pos_emb = _ROTATIONS[fused]


def fuse(base: BaseModel) -> None:
    """As the product does where it loads a base."""
    from transformers.models.llama import modeling_llama

    own = modeling_llama.apply_rotary_pos_emb
    base.fuse()
    _ROTATIONS[:] = own, modeling_llama.apply_rotary_pos_emb


def peak_mib(device: str) -> float:
    """Most memory in use since: allocated on the GPU, or resident."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def compare(
    base: BaseModel, plain: BaseModel, name: str, study: Any, person: Any, arguments: argparse.Namespace
) -> list[Row]:
    """Both on one placement, in turn: a row of medians each."""
    device = base.device.type
    placement = placement_of(base.architecture.num_layers, *PLACEMENTS[name])
    data = peers_data(base, study, person)
    runs: dict[str, list[Row]] = {OURS: [], PEER: []}
    with tempfile.TemporaryDirectory(prefix="gpu-trial-") as place:
        for _ in range(1 + arguments.repeats):
            for method, found in runs.items():
                restart_peak(device)
                use_rotation(method == OURS)
                row = (
                    ours(base, placement, study, person)
                    if method == OURS
                    else peer(plain, placement, study, data, Path(place))
                )
                found.append(row | {"peak_mib": peak_mib(device)})
    epochs, positions = study.trial.epochs, len(data[0][0]["input_ids"]) - 1
    work = flops(base.model.config, placement, positions) * len(data[0]) * epochs
    rows = []
    for method, found in runs.items():
        middle = {key: statistics.median(row[key] for row in found[1:]) for key in found[0]}
        speed = {"tokens_per_second": middle["tokens"] / middle["train_seconds"], "flop": work}
        rows.append({"placement": name, "method": method, **middle, **speed})
    return rows


def finish(rows: Sequence[Row], machine: Row, peak: float | None, matmul: float) -> list[Row]:
    """Rows with shares of what the device could do, and the ratio to the peer's time."""
    found = []
    for row in rows:
        other = next(one for one in rows if one["placement"] == row["placement"] and one["method"] == PEER)
        speed = row["flop"] / row["train_seconds"]
        shares = {"mfu": speed / peak if peak else "", "matmul_share": speed / matmul}
        ratios = {
            f"{part}_over_peer": other[f"{part}_seconds"] / row[f"{part}_seconds"]
            for part in ("train", "whole")
        }
        found.append({**machine, **row, **shares, **ratios})
    return found


def write(rows: Sequence[Row], path: Path) -> None:
    """The table."""
    write_rows(rows, path, lambda _, value: f"{value:.6g}" if isinstance(value, float) else value)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Seconds of training by placement; nothing where matplotlib is not there."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    names = list(dict.fromkeys(row["placement"] for row in rows))
    for shift, (method, colour) in enumerate(((OURS, "#0072B2"), (PEER, "#999999"))):
        values = [row["train_seconds"] for row in rows if row["method"] == method]
        bars = axes.bar(
            [at + 0.4 * shift for at in range(len(names))], values, 0.38, color=colour, label=method
        )
        axes.bar_label(bars, fmt="%.1f")
    first = rows[0]
    if first["device"] != "cpu" and first["size"] == "7b":
        axes.axhline(GOAL_SECONDS, color="#D55E00", linestyle="--", label=f"goal: {GOAL_SECONDS:g} s")
    axes.set_xticks([at + 0.2 for at in range(len(names))], names)
    axes.set(
        ylabel="seconds of training",
        title=f"{first['texts']} texts x {first['epochs']} epochs, Llama {first['size']}, {first['device']}",
    )
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25, axis="y")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, then write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--size", choices=["auto", *bases.SIZES], default="auto", help="auto: 7b, tiny on a CPU"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=128, help="of a text")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="texts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--placements", nargs="+", choices=list(PLACEMENTS), default=list(PLACEMENTS))
    parser.add_argument("--new-tokens", type=int, default=64, help="of a response")
    parser.add_argument("--name", default="gpu", help="beginning of the result files' names")
    arguments = parser.parse_args()
    import torch

    there = torch.cuda.is_available()
    device = arguments.device if arguments.device != "auto" else "cuda" if there else "cpu"
    if arguments.size == "auto":
        arguments.size = "7b" if device == "cuda" else "tiny"
    end = "" if device == "cuda" else "_cpu"
    path = RESULTS / f"{arguments.name}_trial{end}"
    path.parent.mkdir(exist_ok=True)
    if device == "cpu":
        torch.set_num_threads(1)
    base, plain = (bases.random_base(arguments.size, device) for _ in range(2))
    fuse(base)
    study, person = study_of(arguments), user(arguments.texts, arguments.tokens)
    label = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    peak = next((value for key, value in PEAKS.items() if key in label), None)
    matmul = matmul_speed(device, base.dtype)
    machine: Row = {
        "device": label,
        "size": arguments.size,
        "texts": arguments.texts,
        "epochs": arguments.epochs,
    }
    rows: list[Row] = []
    for name in arguments.placements:
        rows += compare(base, plain, name, study, person, arguments)
        found = finish(rows, machine, peak, matmul)
        for new in found[-2:]:
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in new.items()}, flush=True)
        write(found, path.with_suffix(".csv"))
        draw(found, path.with_suffix(".png"))
    made = [machine | row for row in responses(base, plain, study, person, arguments)]
    print(*made, sep="\n")
    write(made, RESULTS / f"{arguments.name}_generation{end}.csv")
    if arguments.size == "7b" and device == "cuda":
        mine = [row for row in found if row["method"] == OURS]
        slowest = max(row["train_seconds"] for row in mine)
        ratio = min(row["train_over_peer"] for row in mine)
        for text, met in (
            (f"at most {GOAL_SECONDS:g} s per trial: {slowest:.1f} s", slowest <= GOAL_SECONDS),
            (f"at least {GOAL_RATIO:g} times the peer: {ratio:.2f}", ratio >= GOAL_RATIO),
        ):
            print(("met: " if met else "NOT met: ") + text)
    for own, peer in zip(found[::2], found[1::2], strict=True):
        gap = max(abs(own[key] - peer[key]) for key in ("train_loss", "validation_loss"))
        if own["tokens"] != peer["tokens"] or (base.dtype == torch.float32 and gap > LIKE):
            sys.exit(f"not the same work: losses of {own['placement']} differ by {gap:g}")


if __name__ == "__main__":
    main()
