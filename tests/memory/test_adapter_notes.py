"""An adapter says what it is, and another one in its place is noticed whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.errors import MilpRayError, RunFolderError
from milp_ray.memory.adapter_notes import NOTE, check_content, check_note
from milp_ray.memory.adapters import attach, attach_saved, detach, lora_config, save_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel

USER, PLACEMENT = "u-" + "a" * 13, "3:4,7:8"


def saved(base: BaseModel, folder: Path, placement: str = PLACEMENT, user: str = USER) -> Path:
    attached = attach(base.model, lora_config(Placement.from_key(placement), base.architecture))
    save_adapter(attached, folder, "models/the-base", placement=placement, user=user)
    detach(base.model, attached)
    return folder


@pytest.fixture
def base(tiny_bases: dict[str, BaseModel]) -> BaseModel:
    return tiny_bases["llama"]


def test_an_adapter_says_whose_and_what_it_is(base: BaseModel, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "memories" / USER)
    note = json.loads((folder / NOTE).read_text())
    assert (note["user"], note["placement"]) == (USER, PLACEMENT)
    check_content(folder, placement=PLACEMENT, user=USER)
    detach(base.model, attach_saved(base.model, folder))


@pytest.mark.parametrize(
    ("wanted", "fact"),
    [({"placement": "3:4"}, "it is of placement 3:4,7:8"), ({"user": "u-other"}, f"it is of user {USER}")],
)
def test_another_adapter_than_the_one_that_is_meant(
    base: BaseModel, tmp_path: Path, wanted: dict[str, str], fact: str
) -> None:
    folder = saved(base, tmp_path / USER)
    with pytest.raises(RunFolderError, match=fact) as caught:
        check_note(folder, **wanted)
    assert caught.value.exit_code == 2 and "trained again" in str(caught.value)


def swap_weights(folder: Path, other: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes((other / "adapter_model.safetensors").read_bytes())


def flip_a_bit(folder: Path, other: Path) -> None:
    content = bytearray((folder / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(content)


def cut_off(folder: Path, other: Path) -> None:
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:-8])


def change_scaling(folder: Path, other: Path) -> None:
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text.replace('"lora_alpha": 8', '"lora_alpha": 16'))


def damage_the_note(folder: Path, other: Path) -> None:
    (folder / NOTE).write_text('{"placement"')


@pytest.mark.parametrize("harm", [swap_weights, flip_a_bit, cut_off, change_scaling, damage_the_note])
def test_files_that_do_not_belong_together_are_not_put_on_a_model(
    base: BaseModel, tmp_path: Path, harm: Callable[[Path, Path], None]
) -> None:
    folder, other = saved(base, tmp_path / USER), saved(base, tmp_path / "other")
    before = (
        (folder / "adapter_config.json").read_bytes(),
        (folder / "adapter_model.safetensors").read_bytes(),
    )
    harm(folder, other)
    after = (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()
    assert before != after or harm is damage_the_note, "nothing was harmed"
    with pytest.raises(MilpRayError, match="not the one that is meant"):
        attach_saved(base.model, folder)
    assert base.attached is None


def test_a_base_that_was_moved_may_be_named_anew(base: BaseModel, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / USER)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "/elsewhere", "revision": "v2"}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=4))
    check_content(folder, placement=PLACEMENT, user=USER)


def test_adapters_of_earlier_versions_have_no_note_and_are_read(base: BaseModel, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / USER)
    (folder / NOTE).unlink()
    check_content(folder, placement="0:1", user="u-whoever")
    detach(base.model, attach_saved(base.model, folder))
