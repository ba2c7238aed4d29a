#!/usr/bin/env bash
# Wait for a RayJob and end as it did: wait.sh NAME [kubectl options, such as --namespace milp-ray]
#
# Exit codes: 0 succeeded; 1 failed; 130 stopped; 2 there is no such RayJob, or it was deleted
# meanwhile.
# The pod that submits the job is not asked: it can end well when the job did not. While the
# operator tries again (backoffLimit) the job's own status is that of a failed try, so the
# deployment's status says when it is over.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: wait.sh NAME [kubectl options]" >&2
  exit 2
fi
name="$1"
shift
seen=""
misses=0
while true; do
  if status="$(kubectl get rayjob "$name" "$@" \
    -o 'jsonpath={.status.jobDeploymentStatus}/{.status.jobStatus}/{.status.reason}')"; then
    misses=0
  else
    misses=$((misses + 1)) # the API server may be away for a moment
    if [ "$misses" -ge "${MISSES:-5}" ]; then
      echo "error: RayJob $name cannot be read; expected: a RayJob of that name; remedy: kubectl get rayjobs" >&2
      exit 2
    fi
    status="$seen"
  fi
  if [ "$status" != "$seen" ]; then
    echo "$(date +%H:%M:%S) $name: $status" >&2
    seen="$status"
  fi
  case "$status" in
    Complete/SUCCEEDED/*) exit 0 ;;
    Complete/STOPPED/* | Failed/STOPPED/*) exit 130 ;;
    Complete/* | Failed/*) exit 1 ;;
  esac
  sleep "${POLL_SECONDS:-10}"
done
