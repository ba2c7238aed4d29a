#!/usr/bin/env bash
# pyarrow 26.0.1: how long one write of one small object is tried when the store answers 503.
#
# One would guess: S3FileSystem and GcsFileSystem, two classes of one library with the same
# interface, give up alike, after a few tries and some seconds, and the caller decides whether to
# try again.
#
# What happens: the S3 client gives up after about six seconds. The Google client goes on inside the
# one call (documented for neither class; google-cloud-cpp's default is 15 minutes). No exception,
# no log line: the call does not return. `?retry_limit_seconds=10` in the URI (`retry_time_limit=`
# of the class) bounds it to 13 to 22 s.
#
# Why it matters: whoever holds a lease or a lock with a time-out and checks it before each write
# has checked it up to a quarter of an hour before the write lands, when another process may long
# have taken over.
#
# Seen on 2026-11-29 (Python 3.11, Linux):
#   pyarrow 26.0.1
#   s3: OSError after 6 s
#   gs: still trying after 60 s
#   gs with retry_limit_seconds=10: OSError after 13 s
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip -q install pyarrow==26.0.1
cat > try.py <<'PY'
import os
import socket
import threading
import time

import pyarrow
from pyarrow import fs

ANSWER = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"


def answer(connection):
    try:
        while connection.recv(65536):
            connection.sendall(ANSWER)
    except OSError:
        pass


def serve(server):
    while True:
        threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()


server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
threading.Thread(target=serve, args=(server,), daemon=True).start()
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1",
}


def put(url, found):
    filesystem, path = fs.FileSystem.from_uri(url)
    began = time.monotonic()
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"small")
        found.append("written")
    except OSError:
        found += [f"OSError after {time.monotonic() - began:.0f} s", time.monotonic() - began]


def within(name, url, seconds=60):
    found = []
    thread = threading.Thread(target=put, args=(url, found), daemon=True)
    thread.start()
    thread.join(seconds)
    print(f"{name}: {found[0] if found else f'still trying after {seconds} s'}", flush=True)
    return found


print("pyarrow", pyarrow.__version__)
gs = f"gs://anonymous@bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http"
s3 = within("s3", "s3://bucket/x?allow_delayed_open=true")
usual = within("gs", gs)
bounded = within("gs with retry_limit_seconds=10", f"{gs}&retry_limit_seconds=10")
os._exit(0 if s3[1:] and s3[1] < 60 and not usual and bounded[1:] and bounded[1] < 60 else 1)
PY
venv/bin/python try.py
