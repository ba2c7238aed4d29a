"""What the nodes of a cluster share: the run folder or its URL, and texts in Ray's object store."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from milp_ray.data.records import UserSplit
from milp_ray.errors import ClusterError
from milp_ray.layout import META
from milp_ray.storage import can_read, location_of, mirror_of

Texts = TypeVar("Texts")
SharedUsers = Mapping[str, ray.ObjectRef[UserSplit]]


def share(texts: Mapping[str, Texts]) -> dict[str, ray.ObjectRef[Texts]]:
    """Put users' texts into Ray's object store, from which workers fetch what they need.

    The texts stay there as long as anybody keeps the references.

    Args:
        texts: by alias: users, or whole search units.
    """
    return {alias: ray.put(one) for alias, one in texts.items()}


def check_sees(folder: Path, marker: str = META) -> None:
    """Check that this machine sees a run folder, or reads its URL.

    Workers write adapters there, and read event logs. Every worker checks when it starts, since
    nodes come and go.

    Args:
        folder: of the run, or of a comparison.
        marker: name of a file that is in it.

    Raises:
        ClusterError: this machine does not.
    """
    if not can_read(folder / marker):
        raise _blind(f"node {platform.node()} does not see", folder)


def check_shared(folder: Path) -> None:
    """Check that every node that is there now sees the run folder, before anything is loaded.

    Raises:
        ClusterError: a node does not.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    sees = ray.remote(num_cpus=0)(can_read)
    asked = [
        sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            folder / META
        )
        for node in nodes
    ]
    answers = []
    for answer in asked:
        with contextlib.suppress(ray.exceptions.RayError):  # a lost node; its workers check again
            answers.append(ray.get(answer))
    if blind := answers.count(False):
        raise _blind(f"{blind} of {len(nodes)} nodes do not see", folder)


def _blind(who: str, folder: Path) -> ClusterError:
    return ClusterError(
        f"{who} the run folder {location_of(folder)}",
        expected="a folder that all nodes share, or a URL that all may read",
        remedy="give every node the credentials and the endpoint"
        if mirror_of(folder)
        else "set storage.path to a shared file system (NFS) or a URL (s3://, gs://)",
    )
