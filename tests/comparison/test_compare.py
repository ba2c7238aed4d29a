"""A whole comparison by the command line: killed, resumed, and asked again."""

import csv
import json
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from tests.comparison.test_plan import divided, write_comparison
from tests.study.conftest import CANARY, Start, call, start  # noqa: F401

pytestmark = pytest.mark.slow


def test_a_comparison_that_is_killed_goes_on_and_a_second_run_computes_nothing(
    tmp_path: Path,
    shallow_model: Path,
    start: Start,  # noqa: F811
) -> None:
    path = write_comparison(tmp_path, shallow_model, ["none", "rag", "milp"])
    root = tmp_path / "comparisons" / "small"
    process = start("compare", str(path))
    assert process.stdout is not None
    for line in process.stdout:  # until the search is over, and the cells begin
        if "methods are fitted" in line:
            break
    process.kill()
    process.wait(timeout=60)
    assert list((root / "runs").iterdir()) and not list(root.glob("cells/*/*.json"))

    process = start("compare", str(path))
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert "3 of 3 cells are finished" in output and "trials 1/6" not in output

    with (root / "tables" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = {(row["method"], row["user"]): row for row in rows if row["metric"] == "loss"}
    assert len(own) == 3 * 3
    users = sorted({user for _, user in own})
    assert all(own["none", user]["control"] == "" for user in users)
    assert all(float(own["milp", user]["control"]) > 0 for user in users)
    [cell] = root.glob("cells/*/milp.*.json")
    record = json.loads(cell.read_text(encoding="utf-8"))
    assert record["cost"]["trials"] == 6 and "learning rate" in record["note"]

    assert (root / "verdict.md").read_text(encoding="utf-8").startswith("# Verdict")
    texts = [
        file for file in root.rglob("*") if file.is_file() and CANARY in file.read_text("utf-8", "ignore")
    ]
    assert {file.relative_to(root).parts[0] for file in texts} <= {"answers", "learned", "runs"}

    code, output = call("compare", str(path), "cases=2")
    assert code == 0 and "3 cells, 3 of them finished before" in output
    [page] = (root / "cases").iterdir()
    assert page.read_text(encoding="utf-8").count("\n## u-") == 2 and str(page) in output


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_the_three_families_are_compared(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    start: Start,  # noqa: F811
) -> None:
    methods = ["none", "rag", "multi_lora", "random_lora", "task_lora+milp", "milp", "milp_population"]
    path = write_comparison(tmp_path, tiny_models["llama"], methods)
    comparison = yaml.safe_load(path.read_text(encoding="utf-8"))
    comparison["models"] = {name: {"path": str(tiny_models[name]), "device": "cpu"} for name in tiny_models}
    path.write_text(yaml.safe_dump(comparison), encoding="utf-8")
    output, _ = (process := start("compare", str(path))).communicate(timeout=1100)
    assert process.returncode == 0, output
    assert "21 of 21 cells are finished" in output
    tables = tmp_path / "comparisons" / "small" / "tables"
    with (tables / "scores.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "loss"]
    found = {(row["model"], row["method"]) for row in rows}
    assert found == {(model, name) for model in tiny_models for name in methods}
    mean = {
        key: fmean(float(row["value"]) for row in rows if (row["model"], row["method"]) == key)
        for key in found
    }
    trained = set(methods) - {"none", "rag"}
    assert all(mean[model, method] < mean[model, "none"] < 20 for model in tiny_models for method in trained)
    for cell in tables.parent.glob("cells/*/milp_population.*.json"):
        assert json.loads(cell.read_text(encoding="utf-8"))["cost"]["trials"] == 2
    verdict = (tables.parent / "verdict.md").read_text(encoding="utf-8")
    assert all(f"## canary, {model}" in verdict for model in tiny_models)
    assert "too few users to say" in verdict and "Best in" not in verdict


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_divided_users_are_compared(
    tmp_path: Path,
    shallow_model: Path,
    start: Start,  # noqa: F811
) -> None:
    methods = ["none", "rag", "task_lora", "multi_lora", "random_lora", "oppu", "milp", "milp_instruct"]
    path = divided(tmp_path, shallow_model, methods)
    output, _ = (process := start("compare", str(path))).communicate(timeout=1100)
    assert process.returncode == 0, output
    assert "8 of 8 cells are finished" in output
    root = tmp_path / "comparisons" / "small"
    costs = {}
    for cell in root.glob("cells/*/*.json"):
        record = json.loads(cell.read_text(encoding="utf-8"))
        assert len(record["users"]) == 2 and not record["failed"]
        costs[record["cell"]["method"]] = record["cost"]
    assert costs["milp"]["trials"] == costs["random_lora"]["trials"] == 2
    assert costs["milp"]["adapter_bytes"] > costs["milp_instruct"]["adapter_bytes"] > 0


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(tmp_path: Path, shallow_model: Path) -> None:
    path = write_comparison(tmp_path, shallow_model, ["none", "milp"])
    code, output = call("compare", str(path), "--dry-run", "methods=[none, milp, milp_population]")
    assert code == 0
    assert "canary-tiny-s0: 3 users, 2 background users" in output
    assert "milp: to be computed, after a search of 6 trials" in output
    assert "milp_population: to be computed, after a search of 2 trials" in output
    assert not (tmp_path / "comparisons" / "small" / "runs").exists()
