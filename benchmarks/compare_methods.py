"""All methods on real users: what docs/results.md says is what this has measured.

Real users' data and a small model of theirs (tests/conftest.py, `shared`) are not part of the
project: without them this does nothing, and says so. A whole data set takes up to an hour on two
cores. What is interrupted goes on by the same command.

    python benchmarks/compare_methods.py OUT                        # all four data sets
    python benchmarks/compare_methods.py OUT --datasets medical --users 4 --methods none rag milp
    python benchmarks/compare_methods.py OUT --model FOLDER --name smollm2 --chat

Writes the comparison file and all of `milp-ray compare` below OUT, and copies its tables to
results/comparison-<name>/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
DATASETS = {
    "medical": "medical_dialogue",
    "irc": "ubuntu_irc",
    "shakespeare": "shakespeare",
    "exchange": "stackexchange",
}
METHODS = (
    "none",
    "tplp",
    "rag",
    "malp",
    "uelp",
    "full",
    "multi_lora",
    "random_lora",
    "task_lora",
    "oppu",
    "milp",
    "milp_population",
    "milp_inject",
    "milp_instruct",
    "milp+rag",
    "task_lora+milp",
)


def shared_folder() -> Path | None:
    """Where the users and the small model are, if they are."""
    folder = Path(os.environ.get("MILP_RAY_SHARED") or HERE.parents[1] / "shared")
    return folder if (folder / "models" / "tiny-base" / "config.json").is_file() else None


def comparison(arguments: argparse.Namespace, shared: Path) -> dict[str, object]:
    """The comparison file's values."""
    model = arguments.model or shared / "models" / "tiny-base"
    return {
        "name": arguments.name,
        "datasets": {
            name: {
                "path": str(shared / "data" / DATASETS[name] / "bench.jsonl"),
                "background": str(shared / "data" / DATASETS[name] / "background.jsonl"),
                "users": arguments.users,
                "background_users": arguments.background_users,
                "max_samples": arguments.samples,
                "max_history": arguments.history,
                "split": {
                    "train": round(0.8 - arguments.validation, 3),
                    "validation": arguments.validation,
                    "test": 0.2,
                },
            }
            for name in arguments.datasets
        },
        "models": {arguments.name: {"path": str(model), "device": "auto"}},
        "methods": list(arguments.methods),
        "judge": {"kind": "rouge_proxy"} if "tplp" in arguments.methods else None,
        "prompts": {"max_length": 128, "style": "chat" if arguments.chat else "plain"},
        "memory": {"ranks": [8, 16, 32, 64], "defaults": {"size": 16}},
        "objectives": ["loss", "trainable_params"],
        "optimizer": {"learning_rate": arguments.learning_rate},
        "trial": {
            "stages": ["inject", "instruct"],
            "epochs": arguments.epochs,
            "instruct_epochs": arguments.epochs,
            "max_new_tokens": 32,
        },
        "search": {
            "trials": arguments.trials,
            "initial": arguments.trials // 2,
            "batch": 4,
            "points_to_evaluate": [{}] if arguments.plain_first else [],
        },
        "choose": {"policy": "best:loss"},
        "final": {"epochs": arguments.epochs, "instruct_epochs": arguments.epochs},
        "ray": {"cpus_per_worker": 1.0},
        "storage": {"path": str(arguments.out.resolve())},
    }


def main() -> int:
    """Write the file, compare, and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="tiny", help="of the comparison, and of its model")
    parser.add_argument("--model", type=Path, help="folder of another base model")
    parser.add_argument("--chat", action="store_true", help="prompts by the model's chat template")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--background-users", type=int, default=10)
    parser.add_argument("--samples", type=int, default=40, help="newest ones of a user")
    parser.add_argument("--history", type=int, default=60, help="newest texts of a user")
    parser.add_argument("--trials", type=int, default=12, help="of each user's search")
    parser.add_argument("--plain-first", action="store_true", help="the first trial: a LoRA in every layer")
    parser.add_argument("--validation", type=float, default=0.1, help="share of samples that choose")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        print("skipped: no folder of real data: set MILP_RAY_SHARED to it")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{arguments.name}.yaml"
    file.write_text(yaml.safe_dump(comparison(arguments, shared), sort_keys=False), encoding="utf-8")
    code = subprocess.run([sys.executable, "-m", "milp_ray", "compare", str(file)], check=False).returncode
    made = arguments.out / arguments.name
    kept = HERE / "results" / f"comparison-{arguments.name}"
    for folder in ("tables", "figures"):
        for path in sorted((made / folder).glob("*")):
            if path.suffix in (".md", ".csv", ".png") and path.name != "scores.csv":
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, kept / path.name)
    if (made / "verdict.md").exists():
        shutil.copy2(made / "verdict.md", kept / "verdict.md")
    return code


if __name__ == "__main__":
    sys.exit(main())
