"""The benchmarks' own rules: one start for all, scores as documented, pictures drawn from rows.

Nothing is timed here; the benchmarks themselves take hours.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.parametrize("name", NAMES)
def test_every_script_says_how_it_is_run(name: str) -> None:
    found = importlib.import_module(name)
    assert found.__doc__
    if hasattr(found, "main"):
        assert f"python benchmarks/{name}.py" in found.__doc__


@pytest.mark.parametrize("method", ["random", "optuna-tpe", "optuna-nsga2", "optuna-gp", "gp"])
def test_all_methods_start_from_the_same_placements(method: str) -> None:
    pytest.importorskip("optuna")
    peers, quality = (importlib.import_module(name) for name in ("peers", "search_quality"))
    problem = quality.problem_of("synthetic-14", 1)
    tried = peers.METHODS[method](problem, 1, peers.INITIAL + 1)
    assert len(tried) == peers.INITIAL + 1
    design = peers.initial_design(problem.space, 1)
    assert [p.key for p in tried[: peers.INITIAL]] == [problem.space.placement(c).key for c in design]


def test_a_score_is_the_share_of_the_best_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quality: ModuleType = importlib.import_module("search_quality")
    monkeypatch.setattr(quality, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    problem = quality.problem_of("synthetic-14", 0)
    best, floor = problem.best(), problem.no_memory
    loss, rouge = [floor["loss"]], [floor["rouge_l"]]
    for values in best:
        loss.append(values["loss"])
        rouge.append(values["rouge_l"])
    run = {"problem": "synthetic-14", "method": "gp", "seed": 0, "cpu_seconds": 1.0}
    runs = [run | {"loss": loss, "rouge_l": rouge}]
    curve = quality.shares(runs)["synthetic-14", "gp", 0]
    assert curve[0] == 0.0 and curve[-1] == pytest.approx(1.0)
    assert curve == sorted(curve)
    fill = quality.EVALUATIONS - len(loss)
    runs = [run | {"loss": loss + loss[-1:] * fill, "rouge_l": rouge + rouge[-1:] * fill}]
    quality.report(runs)
    with (tmp_path / "results" / "search_quality.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["median@60"]) == pytest.approx(1.0)
    assert (tmp_path / "results" / "search_quality.png").stat().st_size > 0


def test_kept_results_are_those_of_complete_runs() -> None:
    quality = importlib.import_module("search_quality")
    for run in quality.known_runs():
        assert len(run["loss"]) == len(run["rouge_l"]) == quality.EVALUATIONS, (run["method"], run["seed"])


def test_the_table_of_real_measurements_is_of_the_space() -> None:
    table = importlib.import_module("make_table")
    wanted = set(table.placements())
    rows = table.rows()
    assert {row["placement"] for row in rows} <= wanted
    keys = [(row["user"], row["placement"], row["repeat"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert table.on_layers("0:8,2:64").key == "0:8,1:8,4:64,5:64"
    for row in rows:
        assert 0 <= float(row["rouge_l"]) <= 1 and float(row["loss"]) > 0


def test_new_lines_of_event_logs_are_counted_once(tmp_path: Path) -> None:
    population = importlib.import_module("population")
    log = tmp_path / "events" / "u00001.jsonl"
    log.parent.mkdir()
    known: dict[Path, tuple[int, int]] = {}
    lines = [{"event": "asked"}, {"event": "told"}]
    with log.open("a") as file:
        for expected in (1, 2):
            file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            file.flush()
            assert population.told(tmp_path, known) == expected
    assert population.told(tmp_path, known) == 2


def test_costs_are_those_between_two_marks() -> None:
    population = importlib.import_module("population")
    rows = [
        {"trials": float(t), "seconds": 0.1 * t, "cpu_seconds": 0.02 * t, "rss_mib": 500.0}
        for t in (1, 100, 600, 1000, 2000)
    ]
    marks = population.at_marks(rows, 2000)
    assert [row["mark"] for row in marks] == [100, 1000, 2000]
    assert all(row["cpu_seconds_per_trial"] == pytest.approx(0.02) for row in marks)


def test_overhead_is_what_training_and_measuring_leave_of_the_wall_time() -> None:
    overhead = importlib.import_module("trial_overhead")

    def ends(wall: float) -> list[Any]:
        result = {"train_seconds": 1.0, "eval_seconds": 0.5, "loss": 2.0}
        return [overhead.Ended(10 + wall * n, {"placement": f"{n}:4"}, result) for n in range(1, 6)]

    rows = overhead.rows_of("resident/1", 4.0, ends(2.0)) + overhead.rows_of("function/1", 4.0, ends(8.0))
    assert rows[0]["wall"] == pytest.approx(8.0) and rows[1]["overhead"] == pytest.approx(0.5)
    resident, function = overhead.summary(rows)
    assert resident["trials"] == 4 and resident["overhead"] == pytest.approx(0.5)
    assert resident["function_over_this"] == pytest.approx(6.5 / 0.5) and resident["met"]
    assert function["overhead"] == pytest.approx(6.5) and function["met"] == ""
    rows[-1]["loss"] += 1e-3
    assert overhead.summary(rows)[1]["loss_difference"] == pytest.approx(1e-3)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_resident_method_is_the_products_own_search(shallow_model: Path, tmp_path: Path) -> None:
    from milp_ray.config.models import RaySettings
    from milp_ray.tune.cluster.session import ray_session

    overhead = importlib.import_module("trial_overhead")
    with ray_session(RaySettings()):
        ends = overhead.resident(overhead.study_of(shallow_model, "resident/1", 1), tmp_path)
    rows = overhead.rows_of("resident/1", 0.0, ends)
    assert len(rows) == 2 and rows[1]["placement"] and rows[1]["train"] > 0


def test_a_strategy_is_as_slow_and_as_large_as_its_worst_rank() -> None:
    parallelism = importlib.import_module("parallelism")
    ranks = [
        {"losses": [2.0, 1.0], "tokens": 100, "loading_mib": 9.0, "training_mib": m, "held": h}
        | {"seconds": s, "cpu_seconds": s / 2}
        for s, m, h in ((1.0, 50.0, 7), (2.0, 40.0, 8))
    ]
    row = parallelism.row_of("zero3", ranks, [2.0, 1.25])
    assert row["tokens_per_second"] == 50 and row["training_mib"] == 50 and row["held"] == 8
    assert row["loss_difference"] == 0.25 and row["tokens_per_cpu_second"] == pytest.approx(100 / 1.5)


def test_flops_are_those_of_the_matrix_products_that_pytorch_does() -> None:
    """PyTorch itself counts a step on one text; attention is left out, which it counts in full."""
    from torch.utils.flop_counter import FlopCounterMode

    from milp_ray.memory.adapters import lora_config
    from milp_ray.memory.placement import Placement
    from milp_ray.model.batches import Example, collate, token_losses

    bases, trial = (importlib.import_module(name) for name in ("bases", "gpu_trial"))
    base = bases.random_base("tiny", "cpu")
    config, length = base.model.config, 17
    for key in ("0:8,11:16", "5:8", "11:8"):
        placement = Placement.from_key(key)
        base.attach(lora_config(placement, base.architecture))
        with FlopCounterMode(display=False) as counter:
            token_losses(base, collate([Example(tuple(range(3, 3 + length)), 1)], base)).mean().backward()
        base.detach()
        products = {
            name.__name__ if callable(name) else str(name): n
            for name, n in counter.get_flop_counts()["Global"].items()
        }
        found = sum(n for name, n in products.items() if "mm" in name)
        T = length - 1
        attention = 2 * T * (T + 1) * config.hidden_size * config.num_hidden_layers
        attention += 4 * T * (T + 1) * config.hidden_size * (11 - placement.ranks[0][0])
        assert found == pytest.approx(trial.flops(config, placement, T) - attention, rel=0.02), (
            key,
            products,
        )


def test_both_sides_of_the_gpu_comparison_do_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    bases, trial = (importlib.import_module(name) for name in ("bases", "gpu_trial"))
    arguments = argparse.Namespace(size="tiny", tokens=32, batch=4, epochs=2, repeats=1, new_tokens=3)
    base, plain = (bases.random_base("tiny", "cpu") for _ in range(2))
    trial.fuse(base)
    study, person = trial.study_of(arguments), trial.user(9, 32)
    rows = trial.compare(base, plain, "4 LoRAs", study, person, arguments)
    assert [row["tokens"] for row in rows] == [9 * 32 * 2] * 2
    for key in ("train_loss", "validation_loss"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-4)
    ours, peer = trial.finish(rows, {}, 1e12, 1e11)
    assert ours["train_over_peer"] == pytest.approx(peer["train_seconds"] / ours["train_seconds"])
    assert ours["matmul_share"] == pytest.approx(10 * ours["mfu"])
    made = trial.responses(base, plain, study, person, arguments)
    assert made[0]["over_peer"] == pytest.approx(made[1]["seconds"] / made[0]["seconds"])
    for model in (base.model, plain.model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any("lora" in name for name, _ in model.named_parameters())


def test_the_page_of_results_is_what_the_kept_tables_say() -> None:
    made = importlib.import_module("results_page")
    text = made.PAGE.read_text(encoding="utf-8")
    assert "| `none` |" in text and made.page(text) == text
    assert made.page(text.replace("| `none` |", "| `nobody` |")) == text
