"""Exports of real memories: the same function in every form, resumed, refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from milp_ray.errors import RunFolderError, StorageError, StudyError
from milp_ray.model.base import BaseModel
from milp_ray.serving import export as exporting
from milp_ray.serving.engines import ENGINES
from milp_ray.serving.export import MANIFEST, Summary, export
from milp_ray.study.run_folder import RunFolder
from tests.serving.conftest import ALIASES, KEY, remember, study_of

IDS = torch.arange(3, 40)[None]


def write(run: RunFolder, place: Path | str, engine: str = "vllm", **more: object) -> Summary:
    return export(run.location, place, engine, **more)  # type: ignore[arg-type]


def logits(model_path: str, adapter: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), str(adapter))
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def manifest(place: Path) -> dict[str, dict[str, object]]:
    lines = (place / MANIFEST).read_text(encoding="utf-8").splitlines()
    return {line["alias"]: line for line in map(json.loads, lines)}


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"ray-serve"}))
def test_every_form_is_the_same_function(
    engine: str, run: RunFolder, base: BaseModel, tmp_path: Path
) -> None:
    done = write(run, tmp_path / "out", engine)
    assert (done.memories, done.written, done.rank) == (3, 3, 8)
    for alias, line in manifest(tmp_path / "out").items():
        folder = tmp_path / "out" / str(line["name"])
        assert sorted(file.name for file in folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        assert line["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        expected = logits(base.settings.path, run.layout.memory(alias))
        torch.testing.assert_close(logits(base.settings.path, folder), expected, atol=1e-5, rtol=1e-5)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == Path(base.settings.path).name
        assert engine == "peft" or (config["r"] == 8 and "rank_pattern" not in config)


def test_a_line_says_whose_it_is_and_what_it_scored(run: RunFolder, base: BaseModel, tmp_path: Path) -> None:
    write(run, tmp_path / "out", base_name="llama-7b")
    lines = manifest(tmp_path / "out")
    assert sorted(lines) == sorted(ALIASES.values())
    ann = lines[ALIASES["ann"]]
    assert ann["name"] == f"{ALIASES['ann']}-{ann['version']}" and str(ann["sha256"]).startswith(
        str(ann["version"])
    )
    assert ann["scores"] == {"loss": 1.5} and lines[ALIASES["bob"]]["scores"] == {}


def test_users_are_named_by_alias_or_id(run: RunFolder, base: BaseModel, tmp_path: Path) -> None:
    done = write(run, tmp_path / "out", users=["ann", ALIASES["bob"]])
    assert done.memories == 2 and sorted(manifest(tmp_path / "out")) == sorted(
        [ALIASES["ann"], ALIASES["bob"]]
    )
    with pytest.raises(RunFolderError, match="1 of the users have no memory") as caught:
        write(run, tmp_path / "other", users=["jane.doe@example.org"])
    assert "jane" not in str(caught.value)


def test_what_is_there_is_not_written_again_and_a_new_memory_gets_a_new_name(
    run: RunFolder, base: BaseModel, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    write(run, place)
    before = manifest(place)
    assert write(run, place).written == 0
    remember(base, run, "bob", "1:2", seed=99)
    assert write(run, place).written == 1
    after = manifest(place)
    bob = ALIASES["bob"]
    assert after[bob]["name"] != before[bob]["name"]
    assert (place / str(before[bob]["name"])).is_dir(), "a server may still hold it"
    assert {alias: line for alias, line in after.items() if alias != bob} == {
        alias: line for alias, line in before.items() if alias != bob
    }


def test_an_export_that_was_interrupted_goes_on(
    run: RunFolder, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, tmp_path / "whole")
    place, written = tmp_path / "out", exporting.write_folder
    left = [2]

    def stopping(*arguments: object, **more: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        written(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "write_folder", stopping)
    with pytest.raises(KeyboardInterrupt):
        write(run, place)
    monkeypatch.undo()
    assert write(run, place).memories == 3
    for file in sorted((tmp_path / "whole").rglob("*")):
        other = place / file.relative_to(tmp_path / "whole")
        assert file.is_dir() or file.read_bytes() == other.read_bytes()


def test_other_settings_go_elsewhere(run: RunFolder, base: BaseModel, tmp_path: Path) -> None:
    write(run, tmp_path / "out")
    with pytest.raises(RunFolderError, match="another export is there: of rank 8"):
        write(run, tmp_path / "out", rank=16)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="something already"):
        write(run, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_rank_that_is_too_small_names_the_users(run: RunFolder, base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="2 memories have a layer of a larger rank than 4") as caught:
        write(run, tmp_path / "out", "sglang", rank=4)
    assert ALIASES["ann"] in str(caught.value) and ALIASES["bob"] not in str(caught.value)
    with pytest.raises(StudyError, match="cannot be set to 24"):
        write(run, tmp_path / "out", rank=24)
    assert not (tmp_path / "out").exists()


def test_a_damaged_memory_ends_it_and_nothing_is_half_written(
    run: RunFolder, base: BaseModel, tmp_path: Path
) -> None:
    weights = run.layout.memory(ALIASES["eve"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises((StorageError, RunFolderError)):
        write(run, tmp_path / "out")
    for folder in (tmp_path / "out").glob("u-*"):
        assert len(list(folder.iterdir())) == 2 and not folder.name.startswith(ALIASES["eve"])


def test_a_run_without_memories_says_how_to_get_some(base: BaseModel, tmp_path: Path) -> None:
    study = study_of(base, tmp_path)
    empty = RunFolder.create(study, "f" * 64, KEY)
    with pytest.raises(RunFolderError, match="milp-ray final"):
        write(empty, tmp_path / "out")


def test_an_engine_that_cannot_serve_the_base_writes_nothing(
    load_tiny: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    gpt2 = load_tiny("gpt2")
    run = RunFolder.create(study_of(gpt2, tmp_path / "runs"), "f" * 64, KEY)
    remember(gpt2, run, "ann", "0:4", seed=0)
    with pytest.raises(StudyError, match="no LoRA on the feed-forward part of gpt2"):
        write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert write(run, tmp_path / "out", "lorax").memories == 1


def test_it_takes_no_torch(run: RunFolder, tmp_path: Path) -> None:
    """Ten thousand memories are copied in a small process."""
    words = f"export({run.location!r}, {str(tmp_path / 'out')!r}, 'lorax')"
    code = f"import sys; from milp_ray.serving.export import export; {words}; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False"]


def test_to_a_bucket(run: RunFolder, base: BaseModel, s3: str) -> None:
    place = f"{s3}/served-{os.getpid()}"
    done = write(run, place, "ray-serve")
    assert done.memories == 3 and place in done.start
    assert write(run, place, "ray-serve").written == 0
    with pytest.raises(StudyError, match="a bucket as a whole"):
        write(run, s3, "ray-serve")
