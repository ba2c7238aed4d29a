"""A small study that is done, and the same one with two workers per trial."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from milp_ray.config.models import ModelSettings
from milp_ray.training.base import load_base, loaded

from .conftest import Start, starting, write_study
from .test_end_to_end import events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = ("search.trials=3", "search.initial=3", "search.surrogate=random", "trial.save_adapters=false")


def done(start: Start, *words: str) -> str:
    """What a command says that must end well."""
    process = start(*words)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def finished(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study file of a study whose run ``one`` is done; trials had one worker."""
    study = write_study(tmp_path_factory.mktemp("finished"), shallow_model)
    with starting() as start:
        assert "2 of 2 have a memory" in done(start, "search", str(study), "name=one", *QUICK)
    return study


def test_the_memory_loads_without_milp_ray_and_gives_the_same_logits(finished: Path) -> None:
    run = finished.parent / "runs" / "one"
    assert not (run / "adapters").exists()
    memory = next((run / "memories").iterdir())
    model = json.loads((memory / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = torch.arange(3, 40)[None]
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[3])
assert not any(name.startswith("milp_ray") for name in sys.modules)
"""
    out = run / "logits.pt"
    subprocess.run([sys.executable, "-c", plain, model, str(memory), str(out)], check=True)

    base = load_base(ModelSettings(path=model))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        bare = base.model(ids).logits
        with loaded(base, memory):
            ours = base.model(ids).logits
    theirs = torch.load(out, weights_only=True)
    assert torch.equal(ours, theirs) and not torch.allclose(ours, bare)


def test_two_workers_per_trial_find_what_one_finds(finished: Path, start: Start) -> None:
    runs = finished.parent / "runs"
    two = ["ray.workers_per_trial=2", "ray.parallelism=zero3", "ray.cpus_per_worker=0.5"]
    searched = done(start, "search", str(finished), "name=two", *QUICK, *two, "final.automatic=false")
    assert f"milp-ray final {runs / 'two'}" in searched and not (runs / "two" / "memories").exists()
    assert "2 of 2 have a memory" in done(start, "final", str(runs / "two"))
    # Aliases differ from run to run: users are compared by the order of their first losses.
    losses = [
        sorted(
            [
                loss
                for _, loss in sorted((e["id"], e["values"]["loss"]) for e in found if e["event"] == "told")
            ]  # type: ignore[index, type-var]
            for found in events(runs / name).values()
        )
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 2 and len(losses[0][0]) == 3
    assert losses[1] == [pytest.approx(values, abs=1e-4) for values in losses[0]]
    scores = [
        pd.read_csv(runs / name / "tables" / "scores.csv").sort_values(["model", "loss"]).loss.tolist()
        for name in ("one", "two")
    ]
    assert len(scores[0]) == 6 and scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert not list((runs / "two").rglob("checkpoints/*")) and not (runs / "two" / "train").exists()
