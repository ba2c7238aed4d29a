"""What `kubectl kustomize` builds of a folder."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.paths import run, tool

Manifest = dict[str, Any]


def build(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization; each call has copies of its own.

    Raises:
        ValueError: kubectl refuses it, with its words.
    """
    return copy.deepcopy(_built(folder))


@functools.cache
def _built(folder: Path) -> list[Manifest]:
    done = run(tool("kubectl"), "kustomize", folder)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]
