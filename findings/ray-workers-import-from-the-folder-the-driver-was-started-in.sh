#!/usr/bin/env bash
# ray 2.60.0 (ray.init, a Ray of the driver's own; the same on an existing cluster)
#
# One would guess: a task imports what its driver imports, since both run in the same environment.
# What happens: Ray puts the folder that the driver was *started in* in front of its workers'
#   sys.path, also where the driver itself does not import from it (a console script, `python -P`).
#   A module there that is called as an installed package is imported by every worker, and by no
#   driver.
# Why it matters: `milp-ray search` in a folder that holds a peft.py passed every check, and then
#   lost every worker. milp_ray gives workers the folder only where the driver has it, too.
#
# Seen on 2026-11-29 (Python 3.11, Linux):
#   ray 2.60.0
#   driver: the installed toolz
#   worker: toolz of the folder
#   the folder in sys.path: driver False, worker at place 0
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ray==2.60.0 toolz==1.0.0
mkdir "$work/tool" "$work/folder"
echo 'origin = "toolz of the folder"' > "$work/folder/toolz.py"
cat > "$work/tool/driver.py" <<'PY'
import os
import sys

import ray


def origin():
    import toolz

    return getattr(toolz, "origin", "the installed toolz")


def place():
    return sys.path.index(os.getcwd()) if os.getcwd() in sys.path else None


print("ray", ray.__version__)
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
driver, worker = origin(), ray.get(ray.remote(origin).remote())
print("driver:", driver)
print("worker:", worker)
here = ray.get(ray.remote(place).remote())
print(f"the folder in sys.path: driver {os.getcwd() in sys.path}, worker at place {here}")
sys.exit((driver, worker) != ("the installed toolz", "toolz of the folder"))
PY
cd "$work/folder"
RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/tool/driver.py"
