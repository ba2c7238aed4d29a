"""Which head an address means, and what answers there: said within seconds, whatever it is."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from milp_ray.errors import ClusterError
from milp_ray.tune.cluster import address as module
from milp_ray.tune.cluster.address import (
    Address,
    Kind,
    ask,
    check_head,
    check_reachable,
    only_head,
    parsed,
    wanted_address,
)

HERE = "127.0.0.1"


@contextlib.contextmanager
def listening() -> Iterator[Address]:
    """Takes connections, and says nothing."""
    with socket.create_server((HERE, 0)) as server:
        yield Address(HERE, server.getsockname()[1])


@contextlib.contextmanager
def saying(words: bytes, end: bool) -> Iterator[Address]:
    """Says a few words of its own; then it ends the connection, or goes on, byte by byte."""

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(words)
            while not end:
                time.sleep(0.2)
                connection.sendall(b"x")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server((HERE, 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield Address(HERE, server.getsockname()[1])


@contextlib.contextmanager
def serving_http(status: int, body: bytes) -> Iterator[Address]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((HERE, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Address(HERE, server.server_address[1])
        finally:
            server.shutdown()


@contextlib.contextmanager
def serving_grpc(answer: Callable[[bytes, Any], bytes] | None) -> Iterator[Address]:
    """A server of gRPC; with ``answer``, one that knows a head's first question."""
    grpc = pytest.importorskip("grpc")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    if answer is not None:
        service, method = module._CLUSTER_ID[1:].split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    try:
        yield Address(HERE, port)
    finally:
        server.stop(0)


def refusing(request: bytes, context: Any) -> bytes:
    import grpc

    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
    return b""


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_USE_TLS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 3.0)


@pytest.mark.parametrize(
    ("server", "kind", "words"),
    [
        (
            lambda: serving_http(200, b'{"ray_version": "2.60.0"}'),
            "dashboard",
            "the dashboard of a Ray cluster",
        ),
        (
            lambda: serving_http(401, b"Unauthorized: Missing authentication token"),
            "dashboard",
            "milp-ray submit",
        ),
        (lambda: serving_http(404, b"not here"), "http", "a server of HTTP answers"),
        (lambda: serving_grpc(None), "grpc", "10001"),
        (lambda: serving_grpc(refusing), "refused", "asks for a token"),
        (listening, "silent", "says nothing for 3 s"),
        (lambda: saying(b"SSH-2.0-x\r\n", end=True), "other", "no Ray head"),
        (lambda: saying(b"SSH-2.0-x\r\n", end=False), "other", "no Ray head"),
        (lambda: saying(b"HTTP/1.1 200 OK\r\n", end=False), "http", "a server of HTTP answers"),
        (lambda: saying(b"", end=True), "other", "TLS"),
    ],
)
def test_what_is_no_head_is_named(server: Callable[[], Any], kind: Kind, words: str) -> None:
    with server() as address:
        check_reachable(address)
        assert ask(address) == kind
    with pytest.raises(ClusterError) as caught:
        check_head(address, lambda address: kind)
    assert words in str(caught.value) and str(address) in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_head_answers_and_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving_grpc(lambda request, context: b"an id") as address:
        assert ask(address) == "head"
        check_head(address, ask)


def test_nobody_there() -> None:
    with pytest.raises(ClusterError, match=r"nothing answers at 127\.0\.0\.1:1"):
        check_reachable(Address(HERE, 1))
    with pytest.raises(ClusterError, match="nothing answers"):
        check_reachable(Address("no-such-host.invalid", 6379))
    with pytest.raises(ClusterError, match="nothing answers"):
        check_reachable(Address("a" * 70, 6379))  # no name of a host: an error of its own


@pytest.mark.parametrize(
    "text", ["head", "head:", ":6379", "head:x", "head:0", "head:65536", "::1:6379", "head:²"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ClusterError, match="no address"):
        parsed(text)


def test_addresses_are_read_and_written() -> None:
    assert parsed("head.example:6379") == Address("head.example", 6379)
    assert str(parsed("[::1]:6379")) == "[::1]:6379" and parsed("[::1]:6379").host == "::1"


def test_ray_address_says_which_head_auto_is_if_it_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_address(None) is None and wanted_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "h:1")
    assert wanted_address("auto") == wanted_address(None) == "h:1"
    assert wanted_address("g:2") == "g:2" and wanted_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "http://h:8265")
    assert wanted_address("auto") == "auto"
    with pytest.raises(ClusterError, match="milp-ray submit"):
        wanted_address(None)


def test_auto_is_the_one_head_of_this_machine_that_takes_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, private = (Address(HERE, port) for port in (1, 2, 3))

    def probe(head: Address) -> Kind:
        return "refused" if head == private else "head"

    assert only_head([one, private], probe) == one
    with pytest.raises(ClusterError, match=r"no Ray head runs on this machine"):
        only_head([], probe)
    with pytest.raises(ClusterError, match=r"takes this driver's token \(127\.0\.0\.1:3\)"):
        only_head([private], probe)
    with pytest.raises(ClusterError, match=r"several .*127\.0\.0\.1:1, 127\.0\.0\.1:2"):
        only_head([one, two], probe)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:2\n")
    assert only_head([one, two], probe) == two
