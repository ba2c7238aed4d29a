"""What `kubectl kustomize` builds, for as much of kustomize as cluster/kuberay uses: resources, components,
namespace, and JSON patches (RFC 6902) with a target. Anything else in a kustomization is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonpatch
import yaml

_KEYS = {"apiVersion", "kind", "resources", "components", "namespace", "patches"}
Manifest = dict[str, Any]


def load(path: Path) -> list[Manifest]:
    """The documents of a YAML file."""
    with path.open(encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def build(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization, in order."""
    manifests: list[Manifest] = []
    _apply(folder, manifests, {"Kustomization"})
    return manifests


def _apply(folder: Path, manifests: list[Manifest], kinds: set[str]) -> None:
    path = folder / "kustomization.yaml"
    (content,) = load(path)
    if unknown := set(content) - _KEYS:
        raise ValueError(f"{path}: {sorted(unknown)} is not known here")
    if content["kind"] not in kinds:
        raise ValueError(f"{path}: a {content['kind']}, where one of {sorted(kinds)} belongs")
    for name in content.get("resources", []):
        found = folder / name
        if found.is_dir():
            manifests.extend(build(found))
        else:
            manifests.extend(load(found))
    for name in content.get("components", []):
        _apply(folder / name, manifests, {"Component"})
    for patch in content.get("patches", []):
        _patch(folder, patch, manifests)
    if "namespace" in content:
        for manifest in manifests:
            manifest["metadata"]["namespace"] = content["namespace"]


def _patch(folder: Path, patch: Manifest, manifests: list[Manifest]) -> None:
    if set(patch) != {"path", "target"} or set(patch["target"]) - {"kind", "name"}:
        raise ValueError(f"{folder}: a patch needs path and target, by kind and name: {patch}")
    (operations,) = load(folder / patch["path"])
    target = patch["target"]
    for index, manifest in enumerate(manifests):
        if manifest["kind"] == target["kind"] and target.get("name") in (None, manifest["metadata"]["name"]):
            manifests[index] = jsonpatch.apply_patch(manifest, operations)
