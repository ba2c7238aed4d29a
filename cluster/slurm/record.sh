#!/usr/bin/env bash
# Run a command and keep how it ended: record.sh FILE COMMAND [ARGUMENT ...]
# FILE gets the exit code, FILE.pid the process id meanwhile; the exit code is the command's.
# SIGTERM is passed on.
set -uo pipefail
file="$1"
shift
"$@" &
pid=$!
echo "$pid" >"$file.pid"
interrupted=yes
trap 'interrupted=yes; kill -TERM "$pid" 2>/dev/null' TERM INT
while [ "$interrupted" = yes ]; do
  interrupted=no
  wait "$pid" # ends early when the trap ran
  code=$?
done
rm -f "$file.pid"
echo "$code" >"$file"
exit "$code"
