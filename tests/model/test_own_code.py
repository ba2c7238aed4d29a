"""Code that a model brings: it runs only if pinned, and is refused before any of it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import transformers.dynamic_module_utils
from huggingface_hub.errors import LocalEntryNotFoundError

from milp_ray.config import Study
from milp_ray.config.models import ModelSettings
from milp_ray.errors import ModelError, StudyError
from milp_ray.model.fingerprint import base_fingerprint, check_base
from milp_ray.model.own_code import check_pinned
from milp_ray.model.pretrained import load_config
from milp_ray.study.check import check_study
from milp_ray.study.inputs import load_base_fingerprint, load_space

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 1024,
}  # fmt: skip
CODE = """from pathlib import Path
from transformers import LlamaConfig
Path({ran!r}).write_text({mark!r})
class Own(LlamaConfig):
    mark = {mark!r}
"""
COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the code writes when it runs."""
    return tmp_path / "ran"


def a_model(folder: Path, ran: Path, auto_map: object = None, tokenizer: object = None) -> Path:
    folder.mkdir(parents=True)
    values = CONFIG | {"auto_map": auto_map or {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "own.py").write_text(CODE.format(ran=str(ran), mark="first"))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": tokenizer}))
    return folder


def in_the_hub(hub: Path, name: str, ran: Path, **words: Any) -> None:
    """A repository in the cache, at two commits whose code differs; main is the second."""
    cache = hub / f"models--{name.replace('/', '--')}"
    for commit in COMMITS:
        folder = a_model(cache / "snapshots" / commit, ran, **words)
        (folder / "own.py").write_text(CODE.format(ran=str(ran), mark=commit))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMITS[1])


def trusted(path: Path | str, **more: Any) -> ModelSettings:
    return ModelSettings(path=str(path), trust_remote_code=True, **more)


def study_of(tmp_path: Path, model: ModelSettings, **more: Any) -> Study:
    values = {
        "name": "s",
        "data": {"path": str(tmp_path / "no-users.jsonl")},
        "storage": {"path": str(tmp_path)},
    }
    return Study.model_validate(values | {"model": model.model_dump()} | more)


@pytest.mark.parametrize("simulation", [None, {}])
def test_changed_code_of_a_folder_is_refused_before_it_runs(
    tmp_path: Path, ran: Path, simulation: dict[str, object] | None
) -> None:
    model = a_model(tmp_path / "model", ran)
    study = study_of(tmp_path, trusted(model), simulation=simulation)
    load_space(study)
    assert ran.read_text() == "first"
    before = load_base_fingerprint(study)
    load_space(study, before)
    (model / "own.py").write_text(CODE.format(ran=str(ran), mark="changed"))
    with pytest.raises(ModelError, match="changed since the run began") as caught:
        load_space(study, before)
    assert ran.read_text() == "first" and caught.value.exit_code == 2


@pytest.mark.parametrize("file", ["own.py", "custom_generate/generate.py", "parts/deep/more.py"])
def test_all_code_files_of_a_folder_are_told_apart(tmp_path: Path, ran: Path, file: str) -> None:
    model = a_model(tmp_path / "model", ran)
    (model / ".git").mkdir()
    before = base_fingerprint(trusted(model))
    (model / ".git" / "hook.py").write_text("not loaded from here")
    (model / "README.md").write_text("words")
    check_base(before, base_fingerprint(trusted(model)))
    (model / file).parent.mkdir(parents=True, exist_ok=True)
    (model / file).write_text("print('other')")
    with pytest.raises(ModelError, match="code"):
        check_base(before, base_fingerprint(trusted(model)))
    old = {name: digest for name, digest in before.items() if name != "code"}
    (model / "own.py").write_text(CODE.format(ran=str(ran), mark="first"))
    check_base(old, base_fingerprint(trusted(model)))  # a run that an earlier version began
    assert "code" not in base_fingerprint(ModelSettings(path=str(model))), "nobody runs it"


FOREIGN = "me/code--own.Own"


@pytest.mark.parametrize(
    ("auto_map", "tokenizer"),
    [
        ({"AutoConfig": FOREIGN}, None),
        ({"AutoConfig": "own.Own", "AutoModelForCausalLM": FOREIGN}, None),
        (None, {"AutoTokenizer": [None, FOREIGN]}),
        (None, [FOREIGN, None]),
    ],
)
def test_code_of_another_repository_is_refused_unless_pinned(
    tmp_path: Path, ran: Path, auto_map: object, tokenizer: object
) -> None:
    in_the_hub(tmp_path / "hub", "me/code", ran)
    model = a_model(tmp_path / "model", ran, auto_map, tokenizer)
    with pytest.raises(StudyError, match=r"names code of 'me/code'") as caught:
        check_study(study_of(tmp_path, trusted(model)))
    assert "set model.code_revision" in str(caught.value) and not ran.exists()
    check_pinned(trusted(model, code_revision=COMMITS[0]))
    check_pinned(ModelSettings(path=str(model)))  # not trusted, so it does not run


def test_code_of_another_repository_runs_at_its_commit_not_at_main(tmp_path: Path, ran: Path) -> None:
    in_the_hub(tmp_path / "hub", "me/code", ran)
    model = a_model(tmp_path / "model", ran, {"AutoConfig": FOREIGN})
    assert load_config(trusted(model, code_revision=COMMITS[0])).mark == COMMITS[0] == ran.read_text()


def test_a_hub_model_runs_its_own_code_at_its_commit(tmp_path: Path, ran: Path) -> None:
    in_the_hub(tmp_path / "hub", "me/own", ran, auto_map={"AutoConfig": "me/own--own.Own"})
    assert load_config(trusted("me/own", revision=COMMITS[0])).mark == COMMITS[0]
    loose = ModelSettings.model_construct(
        **trusted("me/own", revision=COMMITS[0]).model_dump() | {"revision": "main"}
    )
    with pytest.raises(ModelError, match="no commit"):
        load_config(loose)


@pytest.mark.parametrize(
    ("auto_map", "told"),
    [
        ({"AutoConfig": "own.Own"}, "names no code of another repository"),
        ({"AutoConfig": FOREIGN, "AutoModel": "you/code--own.Own"}, "names code of 'me/code', 'you/code'"),
        ({"AutoConfig": FOREIGN, "AutoModelForCausalLM": "own.Own"}, "does not pin"),
    ],
)
def test_one_commit_pins_one_repository(tmp_path: Path, ran: Path, auto_map: object, told: str) -> None:
    in_the_hub(tmp_path / "hub", "me/model", ran, auto_map=auto_map)
    with pytest.raises(ModelError, match=told):
        load_config(trusted("me/model", revision=COMMITS[0], code_revision=COMMITS[1]))
    assert not ran.exists()


def test_a_hub_that_does_not_answer_is_no_model_without_foreign_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", silent)
    check_pinned(trusted("me/absent", revision=COMMITS[0]))  # offline: it cannot be loaded
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(LocalEntryNotFoundError):
        check_pinned(trusted("me/absent", revision=COMMITS[0]))
