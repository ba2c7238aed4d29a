#!/usr/bin/env bash
# Serves a base with the memories of an export, which vLLM loads when they are first asked for:
#
#   milp-ray export runs/my-study served --for vllm --base-name my-base
#   BASE=/models/my-base NAME=my-base SERVED=$PWD/served RANK=64 cluster/serve/vllm.sh
#
# A request names a folder of the export as its model: "u-…-0123456789ab".
set -euo pipefail
: "${BASE:?the base model: a folder or a hub name}"
: "${NAME:?what the server calls the base, as --base-name of the export}"
: "${SERVED:?the folder of the export}"
: "${RANK:?the rank that the export said}"
SERVED=$(cd "$SERVED" && pwd)
# The resolver needs runtime loading, which lets whoever reaches the server load any folder that it
# can read: so it listens on this machine alone unless HOST says otherwise.
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=true
export VLLM_PLUGINS=lora_filesystem_resolver
export VLLM_LORA_RESOLVER_CACHE_DIR=$SERVED
exec vllm serve "$BASE" \
  --served-model-name "$NAME" \
  --host "${HOST:-127.0.0.1}" \
  --enable-lora \
  --max-lora-rank "$RANK" \
  --max-loras "${SLOTS:-8}" \
  --max-cpu-loras "${CPU_SLOTS:-256}"
