#!/usr/bin/env bash
# Run a command of Ray's on a node, with its files where nobody else can enter:
# private.sh COMMAND [ARGUMENT ...]
# RAY_PRIVATE is that folder, RAY_TMPDIR is in it: Ray opens its own to everybody (mode 0777).
set -euo pipefail
mkdir -m 700 "$RAY_PRIVATE" 2>/dev/null || true # several steps of a job may share a node
if [ -L "$RAY_PRIVATE" ] || [ ! -O "$RAY_PRIVATE" ] || [ "$(stat -c %a "$RAY_PRIVATE")" != 700 ]; then
  echo "error: $RAY_PRIVATE on $(hostname) is not a private folder of $(id -un)'s" >&2
  echo "    expected: a folder of mode 700 that this job made; remedy: look who made it, and submit again" >&2
  exit 1
fi
exec "$@"
