"""One request to a chat completions server: sent, read, and what its failures mean.

Plain ``urllib``: no redirect is followed, since it would take the key to another address; proxies
of the environment are used, but for this machine's own; TLS certificates are checked. A server's
words are never passed on, as they may quote the prompt: of an error only its status counts, and
which of our own parameters it names. Retries and concurrency are
:mod:`milp_ray.evaluation.judges.endpoint`'s.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from milp_ray.config.judging import EndpointSettings
from milp_ray.errors import JudgeError, Problem
from milp_ray.evaluation.judges import Loss

_MOST_BYTES = 4 << 20  # of an answer
_PASSING = {408, 409, 425, 429}  # and 5xx: the same request may be answered later
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"}
_PATH = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer, and what the server says that it took; 0 where it says nothing."""

    text: str
    read: int
    written: int
    cut: bool

    def __repr__(self) -> str:
        return f"Completion(<{len(self.text)} characters>)"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no answer; ``passing``: it may come later, after ``wait`` seconds if given."""

    loss: Loss
    passing: bool
    wait: float | None = None


class Transport:
    """Sends prompts to one server.

    Args:
        settings: of the server.
        key: sent as a bearer token; None: nothing is.
    """

    def __init__(self, settings: EndpointSettings, key: str | None) -> None:
        self._settings, self._key = settings, key
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        # A proxy cannot reach this machine's loopback: its own would answer.
        handlers.append(urllib.request.ProxyHandler({} if settings.is_here else None))
        self._open = urllib.request.build_opener(*handlers).open
        self._url = _completions(settings.url)

    def send(self, prompt: str) -> Completion | Trouble:
        """One attempt.

        Raises:
            JudgeError: the server answers no request of ours: the key, the model's name, a
                parameter, or the account's balance is at fault.
        """
        request = urllib.request.Request(self._url, self._body(prompt), self._headers(), method="POST")
        ends = time.monotonic() + self._settings.timeout
        try:
            with self._open(request, timeout=self._settings.timeout) as response:
                return _completion(_body_of(response, ends))
        except urllib.error.HTTPError as error:
            with error:
                return self._refusal(error)
        except TimeoutError:
            return Trouble(Loss.TIMEOUT, passing=True)
        except urllib.error.URLError as error:
            return self._unreachable(error.reason)
        except (http.client.IncompleteRead, http.client.BadStatusLine, http.client.LineTooLong):
            return Trouble(Loss.UNREADABLE, passing=True)
        except (OSError, http.client.HTTPException) as error:
            return self._unreachable(error)

    def _body(self, prompt: str) -> bytes:
        settings = self._settings
        body: dict[str, object] = {
            "model": settings.model,
            # One turn of the user: some models' templates know no system role.
            "messages": [{"role": "user", "content": prompt}],
            settings.token_limit: settings.max_tokens,
        }
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        return json.dumps(body).encode("ascii")

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "milp-ray"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _refusal(self, error: urllib.error.HTTPError) -> Trouble:
        """What an answer other than 2xx means."""
        status, words = error.code, _error_words(error)
        if status == 402 or words & _NO_MONEY:
            raise self._fatal(
                status,
                "the account has nothing left",
                "a balance, or a higher limit",
                "pay, then run again: only what is missing is asked",
            )
        if 300 <= status < 400:
            raise self._fatal(
                status,
                "answers with a redirect, which is not followed",
                "the address that it leads to",
                "put that into url",
            )
        if status in (401, 403):
            fact = "refuses the key" if self._key else "asks for a key, and none is named"
            raise self._fatal(status, fact, "a key that may use this model", "check key_variable or key_file")
        if status in (404, 405):
            raise self._fatal(
                status,
                "knows no such address, or no such model",
                f"a server of OpenAI's {_PATH}, and a model that it has",
                "check url (most end in /v1) and model",
            )
        if status == 400:
            self._check_parameters(words)
        if status in _PASSING or status >= 500:
            loss = Loss.RATE_LIMITED if status == 429 else Loss.SERVER_ERROR
            return Trouble(loss, passing=True, wait=_retry_after(error.headers.get("Retry-After")))
        return Trouble(Loss.REFUSED, passing=False)

    def _check_parameters(self, words: set[str]) -> None:
        """Raise where the server refuses a parameter of ours, as it will in every request."""
        remedies = {
            "max_tokens": "set token_limit: max_completion_tokens",
            "max_completion_tokens": "set token_limit: max_tokens, or another max_tokens",
            "temperature": "set temperature: null",
            "model": "check model",
        }
        for name, remedy in remedies.items():
            if name in words:
                raise self._fatal(
                    400, f"refuses the parameter {name}", "parameters that the model takes", remedy
                )

    def _unreachable(self, reason: object) -> Trouble:
        if isinstance(reason, TimeoutError):
            return Trouble(Loss.TIMEOUT, passing=True)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise JudgeError(
                "judge",
                [
                    Problem(
                        self._settings.host,
                        "its certificate is not trusted here",
                        "a certificate of this machine's trusted authorities",
                        "name the authority's file in SSL_CERT_FILE",
                    )
                ],
            )
        return Trouble(Loss.UNREACHABLE, passing=True)

    def _fatal(self, status: int, fact: str, expected: str, remedy: str) -> JudgeError:
        return JudgeError(
            "judge", [Problem(self._settings.host, f"{fact} (HTTP {status})", expected, remedy)]
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None  # urllib then raises HTTPError with the redirect's status


def _completions(url: str) -> str:
    """The address of chat completions, a query (Azure's api-version) kept."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PATH) else path + _PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, parts.fragment))


def _body_of(response: Any, ends: float) -> bytes:
    """A whole body, within the time that is left for it."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise http.client.IncompleteRead(b"")
        if time.monotonic() > ends:  # a server that sends a byte a second never times out by itself
            raise TimeoutError
    if response.length:  # read1 says nothing of an end that came too early
        raise http.client.IncompleteRead(b"")
    return b"".join(parts)


def _completion(body: bytes) -> Completion | Trouble:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return Trouble(Loss.UNREADABLE, passing=True)
    try:
        choice = answer["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):  # parts, as some servers send them
            content = "".join(part.get("text", "") for part in content)
        if content is not None and not isinstance(content, str):
            raise TypeError
        usage = answer.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        return Trouble(Loss.MALFORMED, passing=False)
    read, written = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return Completion(content or "", read, written, choice.get("finish_reason") == "length")


def _error_words(error: urllib.error.HTTPError) -> set[str]:
    """The values of ``code``, ``type`` and ``param`` of an error's body: names, no prose."""
    try:
        found = json.loads(error.read(1 << 16))
        found = found.get("error", found)
        return {str(found[name]) for name in ("code", "type", "param") if found.get(name)}
    except (OSError, ValueError, AttributeError, RecursionError, http.client.HTTPException):
        return set()


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a number or a date; None where it says nothing that can be used."""
    if not value:
        return None
    if value.strip().replace(".", "", 1).isdigit() and value.isascii():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, when - time.time())


def key_header_fault(key: str) -> str:
    """Why a key cannot be sent; empty if it can."""
    if not key:
        return "is empty"
    return "" if key.isascii() and key.isprintable() and " " not in key else "is no key: one word of ASCII"
