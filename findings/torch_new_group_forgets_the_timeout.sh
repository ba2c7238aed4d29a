#!/usr/bin/env bash
# torch 2.13.0: how long does a collective in a further group (torch.distributed.new_group) wait for
# a lost rank?
#
# One would guess: as long as in the default group, for which init_process_group was given a
# timeout.
# What happens: a group that is made without a timeout of its own takes the backend's default, half
# an hour with gloo, whatever the default group was given. Only a timeout handed to new_group
# counts.
# Why it matters: libraries make their groups themselves, DeepSpeed one for each kind of
# parallelism, and hand over none. Who lowers the timeout to notice a hung rank soon waits for half
# an hour all the same. milp_ray's ranks end after ray.group_timeout in every group: see
# milp_ray/model/parallel/group.py.
#
# Seen on 2026-11-29 (Python 3.11, Linux, CPU):
#   torch 2.13.0; the default group's timeout is 8 s, a rank is 25 s late
#   default group            gave up after 8 s
#   new_group()              waited until the other came after 25 s
#   new_group(timeout=8 s)   gave up after 8 s
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "torch==2.13.0" "numpy"
cat >"$work/look.py" <<'PYTHON'
import datetime
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SHORT, LATE = 8.0, 25.0  # seconds: the default group's timeout, and how late the other rank comes


def groups():
    short = datetime.timedelta(seconds=SHORT)
    return {
        "default group": None,
        "new_group()": dist.new_group([0, 1]),
        "new_group(timeout=8 s)": dist.new_group([0, 1], timeout=short),
    }


def rank(number, name, store):
    timeout = datetime.timedelta(seconds=SHORT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2, timeout=timeout)
    group = groups()[name]
    dist.barrier(group=group)
    if number == 1:
        time.sleep(LATE)
    began = time.monotonic()
    try:
        dist.all_reduce(torch.ones(1), group=group)
        said = "waited until the other came"
    except RuntimeError:
        said = "gave up"
    if number == 0:
        print(f"{name:24s} {said} after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    print("torch", torch.__version__.partition("+")[0], f"default group: {SHORT:.0f} s; a rank is {LATE:.0f} s late", flush=True)
    for index, name in enumerate(["default group", "new_group()", "new_group(timeout=8 s)"]):
        mp.spawn(rank, (name, f"{sys.argv[1]}-{index}"), nprocs=2)
PYTHON
"$work/venv/bin/python" "$work/look.py" "$work/store" | tee "$work/seen"
expect() { grep -qE "^$1 +$2 after" "$work/seen" || { echo "changed: $1"; exit 1; }; }
expect "default group" "gave up"
expect "new_group\(\)" "waited until the other came"
expect "new_group\(timeout=8 s\)" "gave up"
