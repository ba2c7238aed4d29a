"""The examples in docstrings of the classes that one meets first run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

# Examples are given two names: `folder`, which is empty, and `tiny_model`, the folder of a base of
# few layers with random weights.
WITH_EXAMPLES = {
    "layout": ("Layout",),
    "memory.placement": ("Placement",),
    "memory.space": ("MemorySpace", "points_of"),
    "memory.architectures": ("Architecture",),
    "data.readers.jsonl": ("read_jsonl",),
    "data.readers.table": ("read_table",),
    "config.objectives": ("Objective",),
    "search.core.events": ("EventLog",),
    "search.core.plan": ("Plan",),
    "search.diagnostics": ("diagnose",),
    "search.engine": ("Engine",),
    "search.surrogates.gp": ("Gp",),
    "model.base": ("load_base",),
    "evaluation.agreement": ("Agreement",),
    "evaluation.controls": ("derangement",),
    "evaluation.intervals": ("Interval",),
    "evaluation.judges.cache": ("AnswerCache",),
    "evaluation.judges.prompt": ("read_score",),
    "evaluation.labels": ("find_label",),
    "evaluation.win_rate": ("WinRate",),
    "evaluation.baselines.rates": ("best_rate",),
    "serving.trainers": ("as_peft",),
    "trial.lifecycle": ("Trial",),
    "evaluation.memory_use": ("parameters_of", "prompt_memory"),
    "comparison.cells": ("CellStore",),
    "comparison.rendering": ("latex", "markdown"),
    "evaluation.baselines.interface": ("Method",),
    "study.run_folder": ("RunFolder",),
    "tune.proposals.queue": ("ProposalQueue",),
    "tune.search.ledger": ("TrialLedger",),
    "tune.workers.failures": ("FailurePolicy",),
    "tune.workers.worker_group": ("WorkerGroup",),
}


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_give_what_they_say(module: str, shallow_model: Path, tmp_path: Path) -> None:
    found = importlib.import_module(f"milp_ray.{module}")
    given = {"folder": tmp_path, "tiny_model": shallow_model}
    told: list[str] = []
    runner = doctest.DocTestRunner()
    with_examples = set()
    for test in doctest.DocTestFinder(exclude_empty=True).find(found, extraglobs=given):
        if test.examples:
            with_examples.add(test.name.rpartition(".")[2])
            runner.run(test, out=told.append)
    assert not told, "".join(told)
    assert set(WITH_EXAMPLES[module]) == with_examples


def test_no_example_stands_where_it_is_not_run() -> None:
    package = Path(__file__).parents[1] / "milp_ray"
    having = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    }
    assert having == set(WITH_EXAMPLES)
