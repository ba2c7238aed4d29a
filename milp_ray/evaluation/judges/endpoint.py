"""A judge behind an OpenAI-compatible endpoint: several requests at once, retries, and an end.

What fails for a while (no connection, time-outs, 429, 5xx, torn answers) is tried again, after the
time that the server asks for or a growing one; while a server asks for patience, no request of any
thread is sent. After ``failures_in_a_row`` requests without an answer, or where the server asks for
more patience than ``longest_wait``, the rest is not asked: a second run asks it.

The texts of users go to that server. Its operator can read them.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milp_ray.config.judging import EndpointSettings
from milp_ray.config.models import ModelSettings
from milp_ray.errors import JudgeError, Problem
from milp_ray.evaluation.judges import Answer, Loss, Request, Tokens, register
from milp_ray.evaluation.judges.prompt import prompt_of, read_answer
from milp_ray.evaluation.judges.transport import Completion, Transport, key_header_fault
from milp_ray.storage import NotPrivateError, read_private

_FIRST_WAIT = 0.5  # seconds; doubled for each further attempt
_KEY_BYTES = 1 << 14
_TEMPLATE_TOKENS = 8  # of a chat template around one turn, about


class EndpointJudge:
    """See the module, and :class:`milp_ray.evaluation.judges.Judge`.

    Args:
        settings: of the endpoint.
        key: its API key; None: none is sent.

    Attributes:
        used: tokens that the server says it has read and written, retries included.
    """

    compares = True

    def __init__(self, settings: EndpointSettings, key: str | None = None) -> None:
        self._settings = settings
        self._transport = Transport(settings, key)
        self._lock = threading.Lock()
        self.used = (0, 0)
        self.name = f"endpoint {settings.model}"
        # With the host: two servers may call different weights alike.
        self.identity = f"endpoint {settings.host} {settings.model} temperature {settings.temperature}"

    def __repr__(self) -> str:
        return f"EndpointJudge({self._settings.host}, {self._settings.model})"

    @property
    def prices(self) -> tuple[float, float] | None:
        """As in the settings."""
        read, written = self._settings.input_price, self._settings.output_price
        return None if read is None or written is None else (read, written)

    def content(self, request: Request) -> str:
        """The prompt."""
        return prompt_of(request)

    def tokens(self, requests: Sequence[Request]) -> Tokens:
        """Counted with the tokenizer of the settings, if there is one; else UTF-8 bytes / 4."""
        prompts = [self.content(request) for request in requests]
        written = len(prompts) * self._settings.max_tokens
        if self._settings.tokenizer is None:
            read = sum(-(-len(prompt.encode("utf-8", "replace")) // 4) for prompt in prompts)
        else:
            from milp_ray.model.pretrained import load_tokenizer

            tokenizer = load_tokenizer(ModelSettings(path=self._settings.tokenizer))
            read = sum(len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts)
        return Tokens(
            read + len(prompts) * _TEMPLATE_TOKENS, written, exact=self._settings.tokenizer is not None
        )

    def answers(self, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
        """In random order, from ``concurrency`` threads; closing it sends no further request."""
        state = _State(self._settings)
        jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()
        # In random order: what is refused (long texts of one user, say) often comes in a row, and
        # would end every further asking at the same place.
        for index in random.sample(range(len(requests)), len(requests)):
            jobs.put(index)

        def work() -> None:
            while not state.stopped.is_set():
                try:
                    index = jobs.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, self._answer(requests[index], state)))
                except BaseException as error:
                    done.put((index, error))

        threads = [
            threading.Thread(target=work, daemon=True, name="judge")
            for _ in range(min(self._settings.concurrency, len(requests)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in requests:
                index, answer = done.get()
                if isinstance(answer, BaseException):
                    state.stopped.set()
                    yield from _last_answers(threads, done)
                    raise answer
                yield index, answer
        finally:
            state.stopped.set()

    def _answer(self, request: Request, state: _State) -> Answer:
        prompt = self.content(request)
        last = Loss.NOT_ASKED
        for attempt in range(self._settings.attempts):
            if not state.may_send():
                break
            found = self._transport.send(prompt)
            if isinstance(found, Completion):
                state.answered()
                with self._lock:
                    self.used = (self.used[0] + found.read, self.used[1] + found.written)
                return _read(request, found)
            last = found.loss
            if not found.passing:
                break
            state.wait(found.wait, attempt, last=attempt + 1 == self._settings.attempts)
        if last is not Loss.NOT_ASKED:
            state.failed()
        return last


def _last_answers(
    threads: Sequence[threading.Thread], done: queue.SimpleQueue[tuple[int, Answer | BaseException]]
) -> Generator[tuple[int, Answer], None, None]:
    """The answers to what was under way when no further one could be had: they are paid for."""
    for thread in threads:
        thread.join()
    while not done.empty():
        index, answer = done.get()
        if not isinstance(answer, BaseException):
            yield index, answer


def _read(request: Request, found: Completion) -> Answer:
    answer = read_answer(request, found.text)
    return Loss.CUT if isinstance(answer, Loss) and found.cut else answer


@dataclass
class _State:
    """What the threads of one asking share."""

    settings: EndpointSettings
    stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _failures: int = 0
    _given_up: bool = False
    _not_before: float = 0.0

    def may_send(self) -> bool:
        """Waits as long as the server asks for; False where no further request should be sent."""
        while not self.stopped.is_set():
            with self._lock:
                if self._given_up:
                    return False
                left = self._not_before - time.monotonic()
            if left <= 0:
                return True
            self.stopped.wait(left)
        return False

    def answered(self) -> None:
        """A request was answered, whatever the answer says."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """A request has no answer, after all attempts."""
        with self._lock:
            self._failures += 1
            self._given_up |= self._failures >= self.settings.failures_in_a_row

    def wait(self, asked: float | None, attempt: int, last: bool) -> None:
        """Before the next attempt: of all threads if the server asks for it, else of this one."""
        if asked is not None:
            with self._lock:
                self._given_up |= asked > self.settings.longest_wait
                until = time.monotonic() + min(asked, self.settings.longest_wait)
                self._not_before = max(self._not_before, until)
        elif not last:
            growing = min(self.settings.longest_wait, _FIRST_WAIT * 2**attempt)
            # Not all threads at the same instant.
            self.stopped.wait(growing * random.uniform(0.5, 1.0))


def read_key(settings: EndpointSettings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key that the settings name; None where they name none.

    Raises:
        JudgeError: it is not there, is no key, or others than its owner may read its file.
    """
    if settings.key_variable is not None:
        where, key = settings.key_variable, environ.get(settings.key_variable, "").strip()
        remedy = f"export {where}, or name a file with key_file"
    elif settings.key_file is not None:
        where, remedy = settings.key_file, "write the key into it: (umask 077; cat > FILE)"
        try:
            key = read_private(Path(where).expanduser(), _KEY_BYTES).decode("ascii").strip()
        except NotPrivateError as error:
            raise _no_key(where, str(error), "chmod 600 the file") from None
        except UnicodeDecodeError:
            raise _no_key(where, "is no key: one word of ASCII", remedy) from None
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
            raise _no_key(where, f"cannot be read: {reason}", remedy) from None
    else:
        return None
    if fault := key_header_fault(key):
        raise _no_key(where, fault, remedy)
    return key


def _no_key(where: str, fact: str, remedy: str) -> JudgeError:
    return JudgeError("judge", [Problem(where, fact, "the endpoint's API key, for its owner alone", remedy)])


@register("endpoint")
def _endpoint(settings: EndpointSettings, base: object = None) -> EndpointJudge:
    return EndpointJudge(settings, read_key(settings))
