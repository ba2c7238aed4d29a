"""The image: linted, not root, offline, from pinned versions only; its entry run as it is."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.paths import CLUSTER, ROOT, run, tool

DOCKER = CLUSTER / "docker"
DOCKERFILE = DOCKER / "Dockerfile"


def lint(path: Path) -> list[str]:
    """hadolint's findings, shellcheck's on the commands among them."""
    done = run(tool("hadolint"), "--no-color", path)
    return done.stdout.splitlines() + done.stderr.splitlines()


def unpinned(lock: str, extras: tuple[str, ...] = ("deepspeed",)) -> set[str]:
    """Packages that milp_ray requires, directly or not, and ``lock`` has no exact version of."""
    pinned = {canonicalize_name(line.split("==")[0]) for line in lock.splitlines() if "==" in line}
    waiting: list[tuple[str, tuple[str, ...]]] = [("milp-ray", extras)]
    seen: set[tuple[str, str]] = set()
    needed: set[str] = set()
    while waiting:
        name, wanted = waiting.pop()
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # another platform's, or reported as unpinned by its name
        for text in requirements:
            requirement = Requirement(text)
            markers = [{"extra": extra} for extra in ("", *wanted)]
            if requirement.marker and not any(requirement.marker.evaluate(marker) for marker in markers):
                continue
            key = canonicalize_name(requirement.name)
            if re.match(r"nvidia-|cuda-|triton$", key):
                continue  # torch's builds for CUDA require them by exact version
            needed.add(key)
            for extra in ("", *requirement.extras):
                if (key, extra) not in seen:
                    seen.add((key, extra))
                    waiting.append((key, tuple(requirement.extras)))
    return needed - pinned


def instructions(text: str) -> list[tuple[str, str]]:
    """Of a Dockerfile: (word, rest), continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [
        (line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()
    ]


def promises_broken(text: str) -> list[str]:
    """Of root, of the network, of the lock file."""
    words = instructions(text)
    found = []
    users = [rest for word, rest in words if word == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0") or not users[-1].split(":")[0].isdecimal():
        found.append("runs as root, or as a user that Kubernetes cannot tell from root")
    environment = " ".join(rest for word, rest in words if word == "ENV")
    found += [
        f"{setting} is not set"
        for setting in ("HF_HUB_OFFLINE=1", "RAY_USAGE_STATS_ENABLED=0")
        if setting not in environment
    ]
    installs = [
        part for word, rest in words if word == "RUN" for part in rest.split("&&") if "pip install" in part
    ]
    found += [f"not from the lock file: {part.strip()}" for part in installs if "--constraint" not in part]
    if any(word == "ENV" and re.search(r"TOKEN|SECRET|PASSWORD", rest) for word, rest in words):
        found.append("a secret in the image")
    return found


def test_it_passes_hadolint() -> None:
    assert lint(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("USER 1000:1000", "USER root", "DL3002"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("&& pip check", "&& cd /tmp && sudo pip check", "DL3004"),
        ("&& groupadd", "&& echo $foo && groupadd", "SC2086"),
        ("WORKDIR /opt/source", "WORKDIR opt/source", "DL3000"),
        ("FROM ${BASE}", "FORM ${BASE}", "unexpected"),
    ],
)
def test_hadolint_refuses(tmp_path: Path, old: str, new: str, code: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "Dockerfile").write_text(text.replace(old, new), encoding="utf-8")
    assert any(code in line for line in lint(tmp_path / "Dockerfile"))


def test_it_keeps_its_promises() -> None:
    assert promises_broken(DOCKERFILE.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 1000:1000", "USER ray", "root"),
        ("USER 1000:1000\n", "", "root"),
        ("HF_HUB_OFFLINE=1", "HF_HUB_OFFLINE=0", "HF_HUB_OFFLINE"),
        ("pip install --constraint constraints.txt setuptools", "pip install setuptools", "lock file"),
        ("ENV HF_HUB", "ENV RAY_AUTH_TOKEN=x HF_HUB", "secret"),
    ],
)
def test_a_broken_promise_is_seen(old: str, new: str, fault: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert old in text
    assert any(fault in found for found in promises_broken(text.replace(old, new)))


def test_every_package_of_the_image_has_an_exact_version() -> None:
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert unpinned(lock) == set()
    assert unpinned(re.sub(r"(?m)^(grpcio|safetensors)==.*\n", "", lock)) == {"grpcio", "safetensors"}


def test_what_it_copies_is_there_and_is_let_through() -> None:
    allowed = {
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for word, rest in instructions(DOCKERFILE.read_text(encoding="utf-8")):
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists() and source in allowed, source


def entry(*words: str, **environment: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = run(DOCKER / "entry.sh", *words, env=clean | environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_the_entry_without_a_gpu() -> None:
    assert entry("bash", "-c", "echo $DS_ACCELERATOR; exit 3") == (3, "cpu\n", "")
    code, _, message = entry("true", MILP_RAY_DEVICE="cuda")
    assert code == 2 and "--gpus all" in message


def test_scripts_pass_shellcheck() -> None:
    done = run(tool("shellcheck"), DOCKER / "entry.sh")
    assert done.returncode == 0, done.stdout
