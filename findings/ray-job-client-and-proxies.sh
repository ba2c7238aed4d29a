#!/usr/bin/env bash
# ray 2.60.0 (JobSubmissionClient)
#
# One would guess: the client reaches its cluster in one way, through the proxy of the environment
# or past it.
# What happens: its requests, also those for 127.0.0.1, go to the proxy that http_proxy names,
#   unless no_proxy names the host. The socket that follows a job's output (tail_job_logs) goes past
#   the proxy, whatever the variables say. (Ray's gRPC goes past it, too.) So behind a proxy that is
#   needed, a job can be submitted and not followed, and a head on one's own machine is looked for
#   by a proxy that cannot see it.
# Why it matters: `milp-ray submit`, `status` and `stop` go past proxies to this machine's own
#   addresses, poll a job's output where the socket is not reached, and name a proxy that is in the
#   way.
#
# Seen on 2026-11-29 (Python 3.11, Linux):
#   ray 2.60.0
#   proxy:     GET /api/version
#   proxy:     GET /api/version
#   dashboard: GET /api/jobs/j/logs/tail
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[default]==2.60.0"
cat > "$work/client.py" <<'PY'
import asyncio
import contextlib
import http.server
import json
import os
import sys
import threading
from urllib.parse import urlsplit

for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
    os.environ.pop(name, None)
seen = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Plays the dashboard; asked by a whole URL, it is asked as a proxy."""

    def do_GET(self):
        proxy = self.path.startswith("http://")
        seen.append(("proxy" if proxy else "dashboard", urlsplit(self.path).path))
        print(f"{seen[-1][0] + ':':10} GET {seen[-1][1]}", flush=True)
        body = json.dumps({"ray_version": "2.60.0"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in "pd"]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
proxy, dashboard = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
os.environ["http_proxy"] = proxy

import ray
from ray.job_submission import JobSubmissionClient

print("ray", ray.__version__)
client = JobSubmissionClient(dashboard)


async def follow():
    async for text in client.tail_job_logs("j"):
        print(text)


with contextlib.suppress(Exception):  # this dashboard has no sockets
    asyncio.run(follow())
asked = {where for where, path in seen if path == "/api/version"}
followed = {where for where, path in seen if path.endswith("/logs/tail")}
sys.exit((asked, followed) != ({"proxy"}, {"dashboard"}))
PY
RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled "$work/venv/bin/python" "$work/client.py"
