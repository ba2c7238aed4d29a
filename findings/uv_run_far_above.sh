#!/usr/bin/env bash
# Ray 2.60.0, uv 0.13.9: which drivers does Ray take for ones that `uv run` started?
#
# One would guess: those whose own command was `uv run python driver.py`, as Ray's page on uv shows
# it.
# What happens: Ray walks up all ancestors of the driver. Any of them that is `uv run …` counts: a
# shell that was begun by `uv run bash` an hour ago, or, for the drivers of jobs, `uv run ray start
# --head`. The driver's working folder is then taken for the job's (and uploaded by ray.init), and
# workers are started by that `uv run` command. A process that is no descendant of uv, in the same
# environment and folder, sends nothing.
# Why it matters: what lies in the folder, users' data for instance, travels to the cluster without
# being asked for. RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 switches it off, if it is set before Ray is
# imported.
#
# Seen on 2026-11-29 (Python 3.11, Linux):
#   ray 2.60.0
#   uv run python driver.py:                              py_executable working_dir
#   uv run bash -c "bash -c 'python driver.py; true'":    py_executable working_dir
#   python driver.py:                                     nothing
#   uv run with RAY_ENABLE_UV_RUN_RUNTIME_ENV=0:          nothing
#   uv run, the variable set after `import ray`:          py_executable working_dir
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray==2.60.0" "uv==0.13.9" "psutil==7.2.2"
export VIRTUAL_ENV="$work/venv" PATH="$work/venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
unset RAY_ENABLE_UV_RUN_RUNTIME_ENV RAY_RUNTIME_ENV_HOOK RAY_ADDRESS
mkdir "$work/project" && cd "$work/project"
printf '[project]\nname = "project"\nversion = "0.1"\nrequires-python = ">=3.11"\ndependencies = []\n' >pyproject.toml
cat >driver.py <<'PYTHON'
# What ray.init would make of the job's runtime environment, without starting Ray.
import os
import sys

import ray
from ray._private.worker import _maybe_modify_runtime_env

if "late" in sys.argv:
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
print(*(sorted(_maybe_modify_runtime_env({}, False)) or ["nothing"]))
PYTHON
python -c 'import ray; print("ray", ray.__version__)'
uv=(uv run --active --no-sync --offline)
own="$("${uv[@]}" python driver.py)"
far="$("${uv[@]}" bash -c "bash -c 'python driver.py; true'")"
none="$(python driver.py)"
off="$(RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 "${uv[@]}" python driver.py)"
late="$("${uv[@]}" python driver.py late)"
echo "uv run python driver.py:                              $own"
echo "uv run bash -c \"bash -c 'python driver.py; true'\":    $far"
echo "python driver.py:                                     $none"
echo "uv run with RAY_ENABLE_UV_RUN_RUNTIME_ENV=0:          $off"
echo "uv run, the variable set after \`import ray\`:          $late"
[ "$own" = "py_executable working_dir" ] && [ "$far" = "$own" ] && [ "$late" = "$own" ]
[ "$none" = nothing ] && [ "$off" = nothing ]
