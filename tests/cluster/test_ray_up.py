"""`ray up` files: Ray's own validator, what it fills in, and what it does not look at."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.paths import CLUSTER, run, tool

FILES = sorted((CLUSTER / "ray-up").glob("*.yaml"))
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
Config = dict[str, Any]


def prepared(config: Config) -> Config:
    """As `ray up` would use it.

    Raises:
        jsonschema.ValidationError, ValueError, AssertionError: Ray refuses it.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    full: Config = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


def faults(config: Config) -> list[str]:
    """What Ray accepts, not we: work on the head, open dashboards, no token, installs, keys."""
    full, found = prepared(config), []
    for role in ("head", "worker"):
        text = " ".join(full[f"{role}_start_ray_commands"])
        if "RAY_AUTH_MODE=token" not in text or "RAY_AUTH_TOKEN_PATH=" not in text:
            found.append(f"{role}: no token")
        if "RAY_USAGE_STATS_ENABLED=0" not in text:
            found.append(f"{role}: usage statistics")
        token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", text)
        if token and token[1].rstrip(";") not in full["file_mounts"]:
            found.append(f"{role}: {token[1]} is not copied to it")
        if full["provider"]["type"] == "local":  # a machine that others use, too
            folder = re.search(r'RAY_TMPDIR="(\S+)/r"', text)
            setup = "\n".join(full["setup_commands"])
            if folder is None or not all(
                f'{test} "{folder[1]}"' in setup
                for test in ("mkdir -m 700", "test -O", "test ! -L", "chmod 700")
            ):
                found.append(f"{role}: everybody can enter Ray's folder")
    head = " ".join(full["head_start_ray_commands"])
    if "--num-cpus=0" not in head:
        found.append("head: takes trials")
    if "--dashboard-host=127.0.0.1" not in head:
        found.append("head: the dashboard is open")
    if any("pip install" in command for name in COMMANDS for command in full.get(name) or []):
        found.append("installs on the machines")
    head_type = full["available_node_types"][full["head_node_type"]]
    if full["provider"]["type"] != "local" and head_type["resources"] != {"CPU": 0}:
        found.append("head: the autoscaler counts on its CPUs")
    groups = [kind["max_workers"] for name, kind in full["available_node_types"].items()]
    if full["provider"]["type"] != "local" and full["max_workers"] != sum(groups):
        found.append("max_workers is not the sum of the groups")
    if re.search(r"AKIA|BEGIN [A-Z ]*PRIVATE KEY|aws_secret|gcp_credentials", yaml.safe_dump(config)):
        found.append("a key by value")
    return found


def load(path: Path) -> Config:
    return yaml.safe_load(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_there_is_one_for_each_place() -> None:
    assert {load(path)["provider"]["type"] for path in FILES} == {"aws", "gcp", "local"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_takes_it_and_so_do_we(path: Path) -> None:
    assert faults(load(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_commands_are_shell(path: Path, tmp_path: Path) -> None:
    lines = [command for name in COMMANDS for command in prepared(load(path)).get(name) or []]
    script = tmp_path / "commands.sh"
    script.write_text("#!/usr/bin/env bash\n" + "\n".join(lines) + "\n", encoding="utf-8")
    # RAY_HEAD_IP is Ray's; it is an address, so quotes make no difference.
    done = run(tool("shellcheck"), "--exclude=SC2154,SC2086,SC3045", script)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c.update(idle_timeout_minutes="5"),
        lambda c: c.pop("provider"),
        lambda c: c.update(head_node_type="nobody"),
        lambda c: c["available_node_types"]["head"].pop("resources"),
        lambda c: c["available_node_types"]["spot-1-gpu"].update(max_worker=3),
        lambda c: c["available_node_types"]["spot-1-gpu"].update(resources={"GPU": -1}),
        lambda c: c["docker"].pop("container_name"),
        lambda c: c["auth"].update(user="me"),
    ],
)
def test_rays_validator_refuses(change: Callable[[Config], object]) -> None:
    config = load(CLUSTER / "ray-up" / "aws.yaml")
    change(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError, KeyError)):
        prepared(config)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c.pop("setup_commands"), "installs on the machines"),
        (lambda c: c.update(head_start_ray_commands=["ray start --head"]), "head: no token"),
        (lambda c: c.update(worker_start_ray_commands=["ray start"]), "worker: no token"),
        (lambda c: c.update(file_mounts={}), "is not copied to it"),
        (lambda c: c["available_node_types"]["head"].update(resources={}), "counts on its CPUs"),
        (lambda c: c.update(max_workers=20), "not the sum"),
        (lambda c: c["provider"].update(aws_secret_access_key="x"), "a key by value"),
    ],
)
def test_our_own_rules_refuse(change: Callable[[Config], object], fault: str) -> None:
    config = load(CLUSTER / "ray-up" / "aws.yaml")
    change(config)
    assert any(fault in text for text in faults(config))


def test_on_machines_that_others_use_rays_folder_is_private() -> None:
    config = load(CLUSTER / "ray-up" / "on-prem.yaml")
    config["setup_commands"].pop()
    assert "head: everybody can enter Ray's folder" in faults(config)
    config = load(CLUSTER / "ray-up" / "on-prem.yaml")
    config["worker_start_ray_commands"] = [
        command.replace("RAY_TMPDIR=", "OTHER=") for command in config["worker_start_ray_commands"]
    ]
    assert "worker: everybody can enter Ray's folder" in faults(config)
