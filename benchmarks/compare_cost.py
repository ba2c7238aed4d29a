"""What a comparison costs: each method's learning, and responses one by one and in common batches.

    python benchmarks/compare_cost.py --base FOLDER --data FOLDER [--users 10] [--history 20]

FOLDER of the data holds `bench.jsonl` and `background.jsonl`. Every method learns first, with one
pass and one learning rate: what is compared is decoding. Then the same requests are decoded in
four ways, which take turns, in CPU seconds of one thread:

- `generate`: transformers' own, with the user's adapter on the base as PEFT has it and the user's
  samples in one batch; method after method;
- `user by user`: so, by this project's decoder, as a study's own test does;
- `row by row`: the same batches by the code of common batches;
- `together`: all requests of all users and methods in common batches.

Texts must be equal. The last column is the first way's time over each way's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tables import short, write_rows

if TYPE_CHECKING:
    from milp_ray.data.records import Sample, UserSplit
    from milp_ray.evaluation.baselines import Bench, Method

    Tested = tuple[UserSplit, Sequence[Sample]]

HERE = Path(__file__).parent
METHODS = (
    "none",
    "tplp",
    "rag",
    "malp",
    "task_lora",
    "multi_lora",
    "oppu",
    "milp",
    "milp+rag",
    "task_lora+milp",
)
WAYS = ("generate", "user by user", "row by row", "together")
NEW = 48  # tokens of a response


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="folder with bench.jsonl and background.jsonl")
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--samples", type=int, default=5, help="test samples of a user at most")
    parser.add_argument("--history", type=int, help="newest texts to train on at most; not: all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where methods learn, to go on after an interruption; not: anew")
    parser.add_argument("--ways", default=",".join(WAYS), help="of decoding; the first is compared with")
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        learning, decoding = measure(found, Path(found.folder or folder))
    out = HERE / "results"
    name = Path(found.data).name
    write_rows(learning, out / f"compare_cost_learning_{name}.csv", lambda _, value: short(value))
    write_rows(decoding, out / f"compare_cost_decoding_{name}.csv", lambda _, value: short(value))
    for row in (*learning, *decoding):
        print(*(short(value) for value in row.values()), sep="\t")


def measure(
    asked: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of what learning cost, and of what decoding did."""
    import torch

    from milp_ray.config.comparison import MethodOptions
    from milp_ray.config.models import Study
    from milp_ray.data.readers import read_users
    from milp_ray.data.splits import split_users
    from milp_ray.evaluation.baselines import Bench, make
    from milp_ray.evaluation.baselines.interface import cost_of
    from milp_ray.memory.placement import Placement
    from milp_ray.model.base import load_base

    torch.set_num_threads(1)
    bounds = {"max_samples": 5 * asked.samples, "max_history": asked.history}  # a fifth is tested on
    study = Study.model_validate(
        {
            "name": "cost",
            "model": {"path": asked.base, "device": "cpu"},
            "data": {"path": f"{asked.data}/bench.jsonl", "users": asked.users} | bounds,
            "trial": {"max_new_tokens": NEW},
            "final": {"epochs": 1, "instruct_epochs": 1},
            "optimizer": {"learning_rate": 2e-3},
        }
    )
    others = study.data.model_copy(update={"path": f"{asked.data}/background.jsonl", "users": 10})
    users = split_users(read_users(study.data).users, b"k" * 32, study.data).users
    background = split_users(read_users(others).users, b"k" * 32, others).users
    base = load_base(study.model)
    layers = base.architecture.num_layers
    placed = Placement(tuple((layer, 8) for layer in range(layers // 2, layers)))
    options = MethodOptions(rate_factors=(1.0,), background_samples=256)
    bench = Bench(base, study, 0, folder, options, {user.alias: placed for user in users})
    methods = [make(name, bench) for name in asked.methods.split(",")]
    tests = [(user, user.test[-asked.samples :]) for user in users]
    learning: list[dict[str, object]] = []
    for method in methods:
        fit = method.fit(background).cost
        costs = [method.learn(user).cost for user in users]
        prompts = cost_of([one for user, samples in tests for one in method.requests(user, samples)])
        learning.append(
            {
                "method": method.name,
                "fit seconds": fit.seconds,
                "learn seconds a user": sum(cost.seconds for cost in costs) / len(costs),
                "adapter bytes a user": sum(cost.adapter_bytes for cost in costs) / len(costs),
                "prompt tokens a sample": prompts.prompt_tokens / sum(len(samples) for _, samples in tests),
            }
        )
    return learning, decode_ways(bench, methods, tests, asked)


def decode_ways(
    bench: Bench, methods: Sequence[Method], tests: Sequence[Tested], asked: argparse.Namespace
) -> list[dict[str, object]]:
    """Rows of the ways of decoding."""
    import torch

    from milp_ray.evaluation.common_batches import decode
    from milp_ray.evaluation.measure import measure_responses, run_through
    from milp_ray.model.row_adapters import beneath, load_lora

    base, prompts = bench.base, bench.prompts
    batches = [method.requests(user, samples) for method in methods for user, samples in tests]

    stop_ids = sorted(base.stop_ids | prompts.stop_ids(base.tokenizer))
    size = bench.study.trial.eval_batch_size

    def decoded(ids: Sequence[tuple[int, ...]]) -> list[str]:
        return run_through(measure_responses(base, ids, prompts, NEW, size))

    def generated(ids: Sequence[tuple[int, ...]]) -> list[str]:
        longest, texts = max(map(len, ids)), list[str]()
        rows = torch.tensor([[base.pad_id] * (longest - len(one)) + list(one) for one in ids])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
        asked = {
            "max_new_tokens": NEW,
            "do_sample": False,
            "eos_token_id": stop_ids,
            "pad_token_id": base.pad_id,
        }
        found = base.model.generate(input_ids=rows, attention_mask=mask, **asked)  # type: ignore[operator]
        for row in found[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in stop_ids), len(row))
            texts.append(prompts.response_text(base.tokenizer, row[:end]))
        return texts

    def alone(answer: Callable[[Sequence[tuple[int, ...]]], list[str]]) -> list[str]:
        texts: list[str] = []
        for requests in batches:
            *below, own = requests[0].adapters or (None,)
            with beneath(base, load_lora(base, below[0]) if below and below[0] else None):
                if own is not None:
                    base.attach_saved(own)
                texts += answer([one.ids for one in requests])
                base.detach()
        return texts

    known: dict[str, Callable[[], list[str]]] = {
        "generate": lambda: alone(generated),
        "user by user": lambda: alone(decoded),
        "row by row": lambda: [text for requests in batches for text in decode(base, requests, prompts, NEW)],
        "together": lambda: decode(base, [one for requests in batches for one in requests], prompts, NEW),
    }
    ways = {name: known[name] for name in asked.ways.split(",")}
    first_way, repeats = next(iter(ways)), asked.repeats
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.process_time()
            texts[name] = way()
            seconds[name].append(time.process_time() - began)
            print(name, round(seconds[name][-1], 2), file=sys.stderr)
    first = sorted(seconds[first_way])[repeats // 2]
    return [
        {
            "way": name,
            "requests": len(texts[name]),
            "CPU seconds": sorted(times)[repeats // 2],
            "same texts": sum(a == b for a, b in zip(texts[name], texts[first_way], strict=True)),
            "times as fast": first / sorted(times)[repeats // 2],
        }
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    main()
