#!/usr/bin/env bash
# The image's entry: the given command as it is, with what it needs on a machine with or without
# NVIDIA GPUs.
#
#   docker run --rm IMAGE milp-ray check study.yaml
#   docker run --rm --gpus all --shm-size 8g IMAGE ray start --head --block
set -euo pipefail

if [ -e /dev/nvidiactl ]; then
  device=cuda
else
  device=cpu
  export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}" # DeepSpeed looks for a GPU otherwise
fi
if [ "${MILP_RAY_DEVICE:-$device}" != "$device" ]; then
  echo "error: MILP_RAY_DEVICE is $MILP_RAY_DEVICE, and this container sees: $device" >&2
  echo "    remedy: run it with --gpus all and the NVIDIA container toolkit, or set MILP_RAY_DEVICE=$device" >&2
  exit 2
fi
exec "$@"
