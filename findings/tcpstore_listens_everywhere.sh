#!/usr/bin/env bash
# torch 2.13.0: which address does the server of torch.distributed.TCPStore listen on?
#
# One would guess: the one that it is given. TCPStore("127.0.0.1", port, is_master=True), and so
# init_process_group("gloo", init_method="tcp://127.0.0.1:port"), look like a server on loopback.
# What happens: the host is where clients connect; the server listens on every interface.
# GLOO_SOCKET_IFNAME changes gloo's own sockets and not the store's. A socket that is bound
# beforehand and handed over as master_listen_fd is used as it is, and needs no guess at a free
# port. A FileStore opens no socket at all.
# Why it matters: whoever keeps a training on loopback, or on one network of several, has to hand
# the socket over. See docs/security.md, "somebody joins the workers of a trial".
#
# Seen on 2026-11-29 (Python 3.11, Linux):
#   torch 2.13.0
#   TCPStore("127.0.0.1"):            listens on ::
#   the same, with GLOO_SOCKET_IFNAME: listens on ::
#   master_listen_fd at 127.0.0.1:    listens on 127.0.0.1
#   FileStore:                        listens on nothing
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "torch==2.13.0" "numpy" "psutil==7.2.2"
cat >"$work/look.py" <<'PYTHON'
import datetime
import os
import socket
import sys

import psutil
import torch
from torch.distributed import FileStore, TCPStore

print("torch", torch.__version__.partition("+")[0])
patience = datetime.timedelta(seconds=20)


def heard(make):
    """The addresses at which this process listens once the store is made, beside those before."""
    def now():
        found = psutil.Process().net_connections(kind="tcp")
        return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}
    before = now()
    store = make()
    store.set("word", "here")
    assert store.get("word") == b"here"
    return sorted({ip for ip, _ in now() - before})


def handed_over():
    own = socket.create_server(("127.0.0.1", 0))
    port = own.getsockname()[1]
    return TCPStore("127.0.0.1", port, 1, True, patience, master_listen_fd=own.detach())


plain = heard(lambda: TCPStore("127.0.0.1", 0, 1, True, patience))
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
named = heard(lambda: TCPStore("127.0.0.1", 0, 1, True, patience))
own = heard(handed_over)
file = heard(lambda: FileStore(sys.argv[1], 1))
print('TCPStore("127.0.0.1"):            listens on', *plain)
print("the same, with GLOO_SOCKET_IFNAME: listens on", *named)
print("master_listen_fd at 127.0.0.1:    listens on", *own)
print("FileStore:                        listens on", *(file or ["nothing"]))
everywhere = {"::", "0.0.0.0"}
assert set(plain) <= everywhere and plain and named == plain and file == []
assert [ip.removeprefix("::ffff:") for ip in own] == ["127.0.0.1"]
PYTHON
"$work/venv/bin/python" "$work/look.py" "$work/store"
