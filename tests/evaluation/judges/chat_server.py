"""A small server of chat completions on 127.0.0.1, whose behaviour a test writes down."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """An answer to one request.

    ``torn``: the body ends before it should; ``hang``: seconds before it; ``drip``: byte by byte.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    torn: bool = False
    hang: float = 0.0
    drip: bool = False


def says(text: str | None, **choice: Any) -> Reply:
    """A completion with this text."""
    answer = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 3},
    }
    return Reply(json.dumps(answer).encode())


def fails(status: int, headers: dict[str, str] | None = None, **error: Any) -> Reply:
    """An error, as OpenAI's API words it; its message quotes what nobody should print."""
    body = {"error": {"message": "secret text of a user", **error}}
    return Reply(json.dumps(body).encode(), status, headers or {})


Behaviour = Callable[[str, int], Reply]


@dataclass
class ChatServer:
    """A running server.

    Attributes:
        url: base of its API.
        requests: (path, headers, body) of each request so far.
        at_once: most requests that were under way at the same time.
    """

    url: str
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    at_once: int = 0


@contextlib.contextmanager
def serving(behaviour: Behaviour) -> Iterator[ChatServer]:
    """Serve ``behaviour(prompt, number of requests before)`` until the block ends."""
    lock, here, ended = threading.Lock(), 0, threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal here
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number, here = len(server.requests), here + 1
                server.requests.append((self.path, dict(self.headers), body))
                server.at_once = max(server.at_once, here)
            try:
                with contextlib.suppress(OSError):
                    self.answer(behaviour(body["messages"][0]["content"], number))
            finally:
                with lock:
                    here -= 1

        def answer(self, reply: Reply) -> None:
            ended.wait(reply.hang)
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body) + 7 * reply.torn))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for at in range(0, len(reply.body), 1 if reply.drip else 1 << 20):
                self.wfile.write(reply.body[at : at + (1 if reply.drip else 1 << 20)])
                if reply.drip:
                    self.wfile.flush()
                    time.sleep(0.02)

        def do_GET(self) -> None:
            with lock:
                server.requests.append((self.path, dict(self.headers), None))
            self.answer(says("Score: 10"))

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        ended.set()
        http.shutdown()
        http.server_close()
