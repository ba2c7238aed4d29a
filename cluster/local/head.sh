#!/usr/bin/env bash
# A Ray head on this machine alone: head.sh start|node|env|status|stop FOLDER [options]; see
# README.md beside this file.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../../.venv/bin/python}"
[ -x "$python" ] || python="$(command -v "${PYTHON:-python3}")"
exec "$python" "$here/head.py" "$@"
