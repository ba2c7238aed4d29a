"""Ray nodes on this machine, for tests that kill one: python -m tests.study.nodes FOLDER CPUS CPUS
...

The first is the head. Prints its address, then the process id of every raylet in the same order, as
one line of JSON; ends with its standard input. Until then processes of nodes that end are reaped,
as by an init or `ray start --block`: Ray's workers take a raylet that is a zombie for one that
lives, and outlive it.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path

_POLL_SECONDS = 0.1


def main() -> None:
    folder, *cpus = sys.argv[1:]
    os.environ["RAY_TMPDIR"] = folder  # where the cluster's address is written
    (Path(folder) / "ray").mkdir(parents=True, exist_ok=True)
    from ray.cluster_utils import Cluster

    common = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(
        initialize_head=True, head_node_args=common | {"num_cpus": int(cpus[0]), "temp_dir": folder}
    )
    nodes = [cluster.head_node, *(cluster.add_node(num_cpus=int(n), **common) for n in cpus[1:])]
    cluster.wait_for_nodes()
    pids = [node.all_processes["raylet"][0].process.pid for node in nodes]
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": pids}) + "\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
        for node in nodes:
            node.dead_processes()  # asks each for its exit code, and so reaps it
    cluster.shutdown()


if __name__ == "__main__":
    main()
