"""The way to a cluster's job API past, and through, the proxies of the environment."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from milp_ray.errors import ClusterError
from milp_ray.jobs import proxies
from milp_ray.jobs.connection import answering, connect
from milp_ray.jobs.proxies import go_direct, in_the_way, is_own

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
ELSEWHERE = "http://head.example:8265"  # a name that nobody has


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies, and no variables of a cluster's."""
    for name in (*NAMES, *(name.upper() for name in NAMES), "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what a test's code sets goes with the test
        monkeypatch.delenv(name)


class Server(http.server.ThreadingHTTPServer):
    """Answers everything alike, and keeps what it was asked."""

    status, body = 200, b""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *words: object) -> None:
        pass


@contextlib.contextmanager
def serving(status: int, body: bytes) -> Iterator[Server]:
    with Server() as server:
        server.status, server.body = status, body
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_this_machines_own_cluster_is_reached_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    version = json.dumps({"ray_version": "2.60.0"}).encode()
    with serving(200, version) as dashboard, serving(403, b"") as proxy:
        monkeypatch.setenv(name, proxy.address)
        monkeypatch.setenv("no_proxy", "intranet.example")
        client = connect(dashboard.address, "a-token")
        client.get_address()
        assert not proxy.asked
        assert dashboard.asked and dashboard.asked[0][2] == "Bearer a-token"
        assert os.environ["no_proxy"] == "intranet.example,127.0.0.1"


@pytest.mark.parametrize(
    ("status", "body", "fact"),
    [
        (403, b"", "refused with HTTP 403, not in Ray's words"),
        (401, b"<html>sign in</html>", "refused with HTTP 401, not in Ray's words"),
        (407, b"", "does not answer (HTTPError, HTTP 407)"),
        (502, b"<html>bad gateway</html>", "does not answer (HTTPError, HTTP 502)"),
        (200, b"<html>welcome</html>", "not of Ray's dashboard"),
        (200, b'{"version": 1}', "not of Ray's dashboard"),
        (200, b"[]", "not of Ray's dashboard"),
    ],
)
def test_a_proxy_that_answers_itself_is_named_and_no_token_is_called_refused(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, fact: str
) -> None:
    with serving(status, body) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address.replace("//", "//me:secret@"))
        with pytest.raises(ClusterError) as caught:
            connect(ELSEWHERE, "a-token")
        assert proxy.asked
    text = str(caught.value)
    assert fact in text and "refuses the token" not in text and "secret" not in text
    assert "through the proxy of HTTP_PROXY" in text and "put head.example into no_proxy" in text
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_in_front_of_https_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with serving(403, b"") as proxy:
        monkeypatch.setenv(name, proxy.address)
        with pytest.raises(ClusterError, match=f"does not answer .* through the proxy of {name}"):
            connect("https://head.example", "a-token")
        # Of a tunnel that is not made, the proxy sees the host, and no token.
        assert proxy.asked and all(asked[2] is None for asked in proxy.asked)


def test_a_proxy_that_is_gone_and_one_of_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"does not answer.*through the proxy of http_proxy"):
        connect(ELSEWHERE, "a-token")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"through the proxy of http_proxy"):
        connect(ELSEWHERE, "a-token")


def test_rays_own_refusal_is_one_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, body in (
        (401, b"Unauthorized: Missing authentication token"),
        (403, b"Forbidden: Invalid authentication token"),
    ):
        with serving(status, body) as dashboard, pytest.raises(ClusterError, match="refuses the token"):
            connect(dashboard.address, "a-token")
    with serving(403, b"") as other, pytest.raises(ClusterError, match="not in Ray's words") as caught:
        connect(other.address, "a-token")
    assert "proxy" not in str(caught.value)


def test_what_the_cluster_says_is_told_whole() -> None:
    text = (
        "Request failed with status code 500: \nTraceback:\n" + "  File x\n" * 200 + "the reason at the end"
    )
    with pytest.raises(ClusterError) as caught, answering("http://127.0.0.1:8265"):
        raise RuntimeError(text)
    assert "status code 500: Traceback" in str(caught.value) and "the reason at the end" in str(caught.value)


def test_which_addresses_are_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(host: str) -> list[str]:
        if host not in names:
            raise socket.gaierror
        return names[host]

    names = {
        "localhost": ["127.0.0.1", "::1"],
        "127.0.0.1": ["127.0.0.1"],
        "here": ["127.0.1.1"],
        "both": ["127.0.0.1", "192.0.2.77"],
        "elsewhere": ["192.0.2.77"],
    }
    monkeypatch.setattr(proxies, "_resolved", resolved)
    assert [name for name in (*names, "unknown") if is_own(name)] == ["localhost", "127.0.0.1", "here"]


def test_the_users_exceptions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "a.example, 127.0.0.1")
    go_direct("http://127.0.0.1:8265")
    assert os.environ["NO_PROXY"] == "a.example, 127.0.0.1"
    go_direct("http://localhost:8265")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "a.example, 127.0.0.1,localhost"
    assert in_the_way("http://localhost:8265") is None
    go_direct("http://192.0.2.77:8265")
    assert in_the_way("http://192.0.2.77:8265") == "http_proxy"
    assert in_the_way("https://192.0.2.77:8265") is None
