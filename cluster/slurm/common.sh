# What the sbatch files of this folder share; sourced, with bash and `set -euo pipefail`.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by those who source it

SLURM_FOLDER="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# prepare ENVIRONMENT: the Python environment, the head's address, and a token that only this job's
# nodes know. Sets HEAD_NODE, HEAD, PORT, SCRATCH (seen by all nodes, private), and RAY_PRIVATE and
# RAY_TMPDIR (on each node).
prepare() {
  if [ ! -x "$1/bin/ray" ]; then
    echo "error: no environment with Ray at $1" >&2
    echo "    remedy: set MILP_RAY_ENVIRONMENT, or make it: python3.11 -m venv $1 (README.md)" >&2
    exit 2
  fi
  export PATH="$1/bin:$PATH"
  # awk reads to the end: with head, scontrol could end by SIGPIPE, and this script with it.
  HEAD_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')"
  HEAD="$(getent ahostsv4 "$HEAD_NODE" | awk 'NR == 1 { print $1 }')"
  PORT="$((20000 + SLURM_JOB_ID % 2500 * 4))" # and the three after it: several jobs may share a machine
  SCRATCH="${MILP_RAY_SCRATCH:-$HOME/.milp-ray}/slurm-$SLURM_JOB_ID" # change: a folder that all nodes see
  (umask 077 && mkdir -p "$SCRATCH" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$SCRATCH/token")
  rm -f "$SCRATCH/exit-code" # of an earlier try: a requeued job has the same id
  trap 'rm -rf "$SCRATCH"' EXIT
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SCRATCH/token"
  export RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_TRAIN_ENABLE_STATE_TRACKING=1
  export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # nodes rarely reach the hub
  export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds; Ray's own 30 are few for a cold file system
  # On each node; short, since Ray's sockets go below it. Ray opens its own folder to everybody, so
  # that is below a private one, which private.sh makes; nobody else can have made one of a name
  # that nobody else knows.
  RAY_PRIVATE="/tmp/mr-$SLURM_JOB_ID-$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')"
  export RAY_PRIVATE RAY_TMPDIR="$RAY_PRIVATE/r"
  unset RAY_AUTH_TOKEN RAY_ADDRESS          # they would win over what is set here
}

# wait_for_head: until the head's port answers; an error after five minutes.
wait_for_head() {
  for _ in $(seq 60); do
    if (: <"/dev/tcp/$HEAD/$PORT") 2>/dev/null; then
      return 0
    fi
    sleep "${POLL_SECONDS:-5}"
  done
  echo "error: no Ray head at $HEAD:$PORT; expected: one within five minutes; remedy: look at this job's log" >&2
  exit 1
}

# wait_for_nodes N: until so many nodes have joined; an error after five minutes.
wait_for_nodes() {
  srun --nodes=1 --ntasks=1 --nodelist="$HEAD_NODE" --overlap python - "$HEAD:$PORT" "$1" <<'PYTHON'
import sys
import time

import ray

address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while (found := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"error: {found} Ray nodes after five minutes; expected: {wanted}; remedy: look at this job's log")
    time.sleep(2)
PYTHON
}

# finish PID FILE: wait for a step, and end as the job that it ran. On Slurm's SIGTERM the job is
# told, and waited for: it keeps its state and ends with 130.
finish() {
  local step="$1" file="$2" code=0 interrupted=yes
  trap 'interrupted=yes; stop_job "$file"' TERM
  while [ "$interrupted" = yes ]; do
    interrupted=no
    wait "$step" && code=0 || code=$? # ends early when the trap ran
  done
  if [ -s "$file" ]; then
    exit "$(cat "$file")"
  fi
  echo "error: the job never began; expected: Ray on all nodes; remedy: look at this job's log" >&2
  exit "$((code == 0 ? 1 : code))"
}

# stop_job FILE: ask the job itself to stop, on the head's node; Ray stays until it has.
stop_job() {
  if [ -s "$1.pid" ]; then
    srun --nodes=1 --ntasks=1 --nodelist="$HEAD_NODE" --overlap kill -TERM "$(cat "$1.pid")" || true
  fi
}
