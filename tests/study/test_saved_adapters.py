"""Adapters of trials that later ones beat are deleted, also by the session after one that was cut
off."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from milp_ray.storage import names_in, write_folder
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.saved_adapters import drop_beaten
from tests.study.test_population import ALIASES, population_of, search
from tests.study.test_run_folder import a_study, at


def adapter(draft: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (draft / name).write_bytes(b"{}")


@pytest.mark.parametrize("place", ["folder", "url"])
def test_what_is_not_on_the_front_goes_and_other_users_keep_theirs(
    place: str, tmp_path: Path, own_mirrors: None
) -> None:
    study = a_study(tmp_path) if place == "folder" else at(f"memory://{secrets.token_hex(6)}/runs")
    folder = RunFolder.create(study, "f")
    for alias in ("u-a", "u-b"):
        for name in ("t0000", "t0001", "t0007"):
            write_folder(folder.layout.adapters(alias) / name, adapter, commit_marker="adapter_config.json")
    (folder.root / "adapters" / "u-a").mkdir(parents=True, exist_ok=True)
    drop_beaten(folder, {"u-a": (1, 7), "u-c": ()})
    assert names_in(folder.layout.adapters("u-a")) == {"t0001", "t0007"}
    assert names_in(folder.layout.adapters("u-b")) == {"t0000", "t0001", "t0007"}
    drop_beaten(folder, {"u-a": (), "u-b": (0,)})
    assert names_in(folder.layout.adapters("u-a")) == set() and names_in(folder.layout.adapters("u-b")) == {
        "t0000"
    }


def test_a_summary_knows_the_front_that_a_session_before_left(tmp_path: Path) -> None:
    population, _, _ = population_of(tmp_path)
    search(population, ALIASES[0], 3)
    again = population_of(tmp_path)[0]
    assert again.summary(ALIASES[0]).over and again.summary(ALIASES[0]).front == (2,)
    assert again.summary(ALIASES[1]).front == ()
