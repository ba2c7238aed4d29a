"""Another Ray node on loopback: python node.py ADDRESS [--num-cpus N]; it ends with SIGTERM.

`ray start --address` refuses a second node where Ray is told to stay on loopback, and takes the
machine's outer address where it is not. So the node is started as Ray's own
``ray.cluster_utils.Cluster`` starts its nodes, by an internal class of Ray. It is made for the Ray
version in constraints.txt, and only to try several nodes on one machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def main() -> int:
    """Start a node and stay until one of its processes ends; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    for name in ("num-cpus", "num-gpus", "object-store-memory"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args()

    from ray._private.node import Node
    from ray._private.parameter import RayParams

    node = Node(
        RayParams(
            gcs_address=given.address,
            redis_address=given.address,
            num_cpus=given.num_cpus,
            num_gpus=given.num_gpus,
            object_store_memory=given.object_store_memory,
            min_worker_port=0,
            max_worker_port=0,
            node_manager_port=0,
            dashboard_agent_listen_port=0,
            include_log_monitor=False,  # one per machine: the head has it
            # Ray takes a machine for a node. In a folder shared with the head, this node would
            # unpack a job's files anew while the driver imports them.
            runtime_env_dir_name=f"runtime_resources-{os.getpid()}",
        ),
        head=False,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )
    sys.stdout.write("node started\n")
    sys.stdout.flush()
    while not any(True for _ in node.dead_processes()):
        time.sleep(0.5)
    return 1


if __name__ == "__main__":
    sys.exit(main())
