"""An endpoint that answers well, late, in pieces, nonsense, or not at all."""

from __future__ import annotations

import email.utils
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from milp_ray.config.judging import EndpointSettings
from milp_ray.errors import JudgeError
from milp_ray.evaluation.judges import Exchange, Loss, PairRequest, Request, ScoreRequest, make_judge
from milp_ray.evaluation.judges import endpoint as endpoint_module
from milp_ray.evaluation.judges.cache import AnswerCache
from milp_ray.evaluation.judges.endpoint import EndpointJudge, read_key
from milp_ray.evaluation.judges.scoring import Answers, ask, ask_both_orders, estimate
from tests.evaluation.judges.chat_server import Behaviour, ChatServer, Reply, fails, says, serving

SECRET = "secret text of a user"
KEY = "sk-test-1234567890"


def requests(count: int) -> list[Request]:
    return [ScoreRequest(Exchange(f"{SECRET} query {i}"), f"{SECRET} response {i}") for i in range(count)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_FIRST_WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def judge_at(url: str, key: str | None = None, **settings: Any) -> EndpointJudge:
    return EndpointJudge(EndpointSettings(url=url, model="m", **{"timeout": 20.0, **settings}), key)


def asked(
    behaviour: Behaviour, count: int = 1, cache: AnswerCache | None = None, **settings: Any
) -> tuple[Answers, ChatServer]:
    with serving(behaviour) as server:
        found = ask(judge_at(server.url, **settings), requests(count), cache or AnswerCache())
    return found, server


def error_of(reply: Reply, **settings: Any) -> str:
    with pytest.raises(JudgeError) as caught:
        asked(lambda prompt, number: reply, **settings)
    assert SECRET not in str(caught.value) and KEY not in str(caught.value)
    return str(caught.value)


def test_scores_come_back_in_order_from_requests_at_once() -> None:
    def behaviour(prompt: str, number: int) -> Reply:
        score = int(prompt.partition(f"{SECRET} response ")[2][0]) + 1
        reply = says(f"Score: {score}")
        reply.hang = 0.05 if score % 2 else 0.0
        return reply

    found, server = asked(behaviour, 8, concurrency=3)
    assert found.values == tuple(float(n) for n in range(1, 9)) and (found.lost, found.asked) == (0, 8)
    assert 1 < server.at_once <= 3
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body["model"] == "m" and body["temperature"] == 0.0 and body["max_tokens"] == 16
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_parameters_are_called_as_the_settings_say() -> None:
    settings: dict[str, Any] = {"temperature": None, "token_limit": "max_completion_tokens", "max_tokens": 99}
    _, server = asked(lambda prompt, number: says("5"), **settings)
    _, _, body = server.requests[0]
    assert set(body) == {"model", "messages", "max_completion_tokens"} and body["max_completion_tokens"] == 99


@pytest.mark.parametrize(
    ("reply", "loss"),
    [
        (says("I like it"), Loss.NO_NUMBER),
        (says("7 or 8"), Loss.SEVERAL_NUMBERS),
        (says("Score: 11"), Loss.OUT_OF_RANGE),
        (says("Score: 0"), Loss.OUT_OF_RANGE),
        (says(None), Loss.EMPTY),
        (says(""), Loss.EMPTY),
        (says("The user wants", finish_reason="length"), Loss.CUT),
        (says("<think>maybe 7"), Loss.CUT),
        (Reply(b"<html>log in</html>"), Loss.UNREADABLE),
        (Reply(b'{"choices": []}'), Loss.MALFORMED),
        (Reply(b'{"choices": [{"message": {"content": 8}}]}'), Loss.MALFORMED),
        (Reply(b"[]"), Loss.MALFORMED),
        (Reply(b"[" * 100_000), Loss.UNREADABLE),
        (Reply(says("Score: 8").body, torn=True), Loss.UNREADABLE),
        (fails(400, code="context_length_exceeded", param="messages"), Loss.REFUSED),
        (fails(413), Loss.REFUSED),
        (fails(500), Loss.SERVER_ERROR),
        (Reply(b"gone", 503), Loss.SERVER_ERROR),
        (fails(429), Loss.RATE_LIMITED),
    ],
)
def test_what_gives_no_score_is_a_loss_by_name(reply: Reply, loss: Loss) -> None:
    found, server = asked(lambda prompt, number: reply, attempts=2)
    assert found.values == (None,) and found.losses == {loss.value: 1} and found.lost == 1
    assert SECRET not in str(found) and "1 of 1 lost" in str(found)
    passing = {Loss.UNREADABLE, Loss.SERVER_ERROR, Loss.RATE_LIMITED}
    assert len(server.requests) == (2 if loss in passing else 1), "what passes is tried again"


def test_a_list_of_parts_is_a_text() -> None:
    body = b'{"choices": [{"message": {"content": [{"type": "text", "text": "Score: 9"}]}}]}'
    assert asked(lambda prompt, number: Reply(body))[0].values == (9.0,)


def test_a_server_that_hangs_times_out() -> None:
    found, server = asked(lambda prompt, number: Reply(hang=30), timeout=0.1, attempts=2)
    assert found.losses == {"timed out": 1} and len(server.requests) == 2


def test_a_server_that_drips_times_out_though_each_byte_is_in_time() -> None:
    body = says("Score: 5").body
    started = time.monotonic()
    found, _ = asked(lambda prompt, number: Reply(body * 20, drip=True), timeout=0.3, attempts=1)
    assert found.losses == {"timed out": 1} and time.monotonic() - started < 5


def test_nobody_there_is_a_loss() -> None:
    found = ask(judge_at("http://127.0.0.1:9/v1", attempts=2), requests(2), AnswerCache())
    assert found.losses == {"no connection": 2}


def test_what_passes_is_tried_again() -> None:
    bad = [fails(500), Reply(says("Score: 8").body, torn=True), fails(429)]
    found, server = asked(lambda prompt, number: [*bad, says("Score: 8")][number], attempts=4)
    assert found.values == (8.0,) and len(server.requests) == 4


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_waited_for_by_all_threads(date: bool) -> None:
    """As seconds and as a date, which counts whole seconds."""
    times: list[float] = []
    lock = threading.Lock()

    def behaviour(prompt: str, number: int) -> Reply:
        with lock:
            times.append(time.monotonic())
        if number == 0:
            value = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "0.4"
            return fails(429, {"Retry-After": value})
        reply = says("Score: 4")
        reply.hang = 0.05
        return reply

    found, _ = asked(behaviour, 6, concurrency=1 if date else 2)
    assert found.lost == 0
    asked_for = 0.9 if date else 0.39
    early = [when for when in times[1:] if when - times[0] < asked_for]
    assert len(early) <= (0 if date else 2), "what the other thread had under way, and no more"


@pytest.mark.parametrize("value", ["soon", "-3", "", "nan", "Wed, 99 Foo 2026 00:00:00 GMT", "１"])
def test_a_retry_after_that_says_nothing_is_passed_over(value: str) -> None:
    replies = [fails(429, {"Retry-After": value} if value.isascii() else {}), says("3")]
    assert asked(lambda prompt, number: replies[number])[0].values == (3.0,)


def test_more_patience_than_allowed_ends_the_asking_and_loses_nothing(tmp_path: Path) -> None:
    replies = [says("Score: 6"), fails(429, {"Retry-After": "3600"})]
    cache = AnswerCache(tmp_path / "answers.jsonl")
    started = time.monotonic()
    found, server = asked(lambda prompt, number: replies[min(number, 1)], 5, cache, concurrency=1)
    assert time.monotonic() - started < 20 and len(server.requests) == 2
    assert sorted(map(str, found.values)) == ["6.0", *["None"] * 4] and found.asked == 2
    assert found.losses == {"rate limit": 1, Loss.NOT_ASKED.value: 3}
    assert AnswerCache(tmp_path / "answers.jsonl").size == 1


def test_failures_in_a_row_end_the_asking() -> None:
    settings: dict[str, Any] = {"concurrency": 1, "attempts": 1, "failures_in_a_row": 3}
    found, server = asked(lambda prompt, number: fails(500), 8, **settings)
    assert len(server.requests) == 3 and found.losses == {"server error": 3, Loss.NOT_ASKED.value: 5}
    found, server = asked(lambda p, number: says("x") if number % 3 == 2 else fails(500), 9, **settings)
    assert len(server.requests) == 9, "an answer, even nonsense, says that the judge is there"


def test_requests_that_are_refused_do_not_keep_others_from_being_asked_for_ever() -> None:
    """The first twelve are refused, and three refusals in a row end an asking."""

    def behaviour(prompt: str, number: int) -> Reply:
        index = int(prompt.partition(f"{SECRET} response ")[2].split()[0])
        return fails(400) if index < 12 else says("Score: 2")

    cache = AnswerCache()
    with serving(behaviour) as server:  # one: an answer is kept for the server that gave it
        judge = judge_at(server.url, concurrency=1, failures_in_a_row=3)
        for _ in range(200):
            found = ask(judge, requests(24), cache)
            if cache.size == 12:
                break
    assert cache.size == 12 and found.lost == 12


def test_a_second_run_asks_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "answers.jsonl"
    healthy = threading.Event()

    def behaviour(prompt: str, number: int) -> Reply:
        ill = "response 2" in prompt and not healthy.is_set()
        return says("hm") if ill else says("Score: 7")

    with serving(behaviour) as server:
        judge = judge_at(server.url)
        first = ask(judge, requests(4), AnswerCache(path))
        assert first.values == (7.0, 7.0, None, 7.0) and first.asked == 4
        healthy.set()
        assert estimate(judge, requests(4), AnswerCache(path)).calls == 1
        second = ask(judge, requests(4), AnswerCache(path))
        assert second.values == (7.0,) * 4 and second.asked == 1 and len(server.requests) == 5
    assert SECRET not in path.read_text() and path.stat().st_mode & 0o077 == 0


def test_equal_requests_are_asked_once() -> None:
    with serving(lambda prompt, number: says("2")) as server:
        found = ask(judge_at(server.url), requests(2) * 3, AnswerCache())
        assert found.values == (2.0,) * 6 and len(server.requests) == 2 and found.asked == 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (fails(401), ["asks for a key", "HTTP 401", "key_variable"]),
        (fails(403), ["asks for a key"]),
        (fails(404, code="model_not_found"), ["no such model", "/v1"]),
        (fails(402), ["the account has nothing left"]),
        (fails(429, code="insufficient_quota"), ["the account has nothing left"]),
        (fails(400, code="unsupported_parameter", param="max_tokens"), ["max_completion_tokens"]),
        (fails(400, code="unsupported_value", param="temperature"), ["temperature: null"]),
    ],
)
def test_what_no_request_can_pass_ends_with_one_error(reply: Reply, words: list[str]) -> None:
    text = error_of(reply)
    assert all(word in text for word in words), text


def test_an_error_keeps_what_was_answered_before_and_beside_it(tmp_path: Path) -> None:
    beside = threading.Event()

    def behaviour(prompt: str, number: int) -> Reply:
        if number == 1:
            beside.wait(20)
            return fails(401)
        reply = says("Score: 5")
        if number > 1:
            beside.set()
            reply.hang = 0.3
        return reply

    cache = AnswerCache(tmp_path / "answers.jsonl")
    with pytest.raises(JudgeError):
        asked(behaviour, 20, cache, concurrency=3)
    kept = AnswerCache(tmp_path / "answers.jsonl")
    assert kept.size == cache.size >= 2, "the first one, and those under way, which are paid for"


def test_a_redirect_is_not_followed_and_the_key_not_sent_on() -> None:
    with serving(lambda prompt, number: says("1")) as other:
        for status in (301, 302, 307, 308):
            reply = fails(status, {"Location": other.url + "/chat/completions"})
            with serving(lambda prompt, number, reply=reply: reply) as server:  # type: ignore[misc]
                with pytest.raises(JudgeError, match="redirect, which is not followed"):
                    ask(judge_at(server.url, KEY), requests(1), AnswerCache())
                assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
        assert other.requests == []


def test_a_proxy_of_the_environment_does_not_see_this_machines_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(lambda prompt, number: says("1")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert asked(lambda prompt, number: says("9"))[0].values == (9.0,)
        assert proxy.requests == []


def test_a_proxy_of_the_environment_carries_requests_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda prompt, number: says("9")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        judge = judge_at("http://judge.example/v1", allow_http=True)
        assert ask(judge, requests(1), AnswerCache()).values == (9.0,)
        assert proxy.requests[0][0] == "http://judge.example/v1/chat/completions"


def test_pairs_are_asked_in_both_orders() -> None:
    """This judge takes what is shown first, but for one pair, of which it takes the longer one."""

    def behaviour(prompt: str, number: int) -> Reply:
        first, second = (prompt.partition(f"<response_{side}>\n")[2].partition("\n<")[0] for side in "ab")
        fair = "same query" not in prompt
        return says("[[A]]" if not fair or len(first) > len(second) else "[[B]]")

    pairs = [PairRequest(Exchange("same query"), "one", "two"), PairRequest(Exchange("q"), "long one", "two")]
    with serving(behaviour) as server:
        answers, bias = ask_both_orders(judge_at(server.url), pairs, AnswerCache())
    assert answers.values == (1, 1, 1, -1) and (bias.flips, bias.verdicts) == (1, (0, 1))


def test_closing_ends_the_asking() -> None:
    with serving(lambda prompt, number: says("1")) as server:
        answers = judge_at(server.url, concurrency=1).answers(requests(50))
        next(answers)
        answers.close()
        time.sleep(0.1)
        assert len(server.requests) < 50


def test_used_tokens_are_summed() -> None:
    with serving(lambda prompt, number: says("1")) as server:
        judge = judge_at(server.url)
        ask(judge, requests(3), AnswerCache())
    assert judge.used == (300, 9)


def test_a_dry_run_asks_nothing_and_says_what_it_would_cost() -> None:
    judge = judge_at("http://127.0.0.1:9/v1", input_price=2.0, output_price=10.0)
    found = estimate(judge, [*requests(3), *requests(1)], AnswerCache())
    read = sum(-(-len(judge.content(request)) // 4) + 8 for request in requests(3))
    assert (found.calls, found.cached, found.read, found.written) == (3, 1, read, 48)
    assert found.cost == pytest.approx((2 * read + 10 * 48) / 1e6) and not found.exact
    assert str(found).startswith("endpoint m: 3 calls (1 more answers are there)") and "estimated" in str(
        found
    )
    assert "cost unknown" in str(estimate(judge_at("http://127.0.0.1:9/v1"), requests(1), AnswerCache()))
    assert "nothing to ask" in str(estimate(judge, [], AnswerCache()))


def test_a_dry_run_counts_with_a_tokenizer_where_there_is_one(tiny_models: dict[str, Path]) -> None:
    judge = judge_at("http://127.0.0.1:9/v1", tokenizer=str(tiny_models["llama"]))
    found = estimate(judge, requests(1), AnswerCache())
    assert found.exact and found.read > len(judge.content(requests(1)[0])) / 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "http://judge.example/v1"}, "http:// on another machine"),
        ({"url": "https://me:hunter2@judge.example/v1"}, "holds a password"),
        ({"url": "ftp://judge.example"}, "must begin with https://"),
        ({"url": "https://"}, "must begin with https://"),
        ({"url": "https://a:b"}, "is not a URL"),
        ({"url": "https://a/ b"}, "characters"),
        ({"url": "https://a/#b"}, "characters"),
        ({"url": "https://a", "key_file": "f", "key_variable": "V"}, "keep one"),
        ({"url": "https://a", "input_price": 1.0}, "belong together"),
    ],
)
def test_settings_that_would_leak_or_fail_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EndpointSettings(model="m", **settings)
    assert told in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://[::1]:1", "http://127.0.0.1:8000"])
def test_this_machine_needs_no_tls(url: str) -> None:
    assert EndpointSettings(url=url, model="m").is_here
    assert not EndpointSettings(url="http://judge.example", model="m", allow_http=True).is_here


def test_an_address_may_be_whole_or_have_a_query() -> None:
    with serving(lambda prompt, number: says("1")) as server:
        for url in (server.url + "/", server.url + "/chat/completions?api-version=3"):
            assert ask(judge_at(url), requests(1), AnswerCache()).values == (1.0,)
        assert [path for path, *_ in server.requests] == [
            "/v1/chat/completions",
            "/v1/chat/completions?api-version=3",
        ]


def key_settings(**settings: Any) -> EndpointSettings:
    return EndpointSettings(url="https://judge.example/v1", model="m", **settings)


def test_a_key_comes_from_a_variable_or_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    assert read_key(key_settings(key_file=str(file))) == KEY
    assert read_key(key_settings(key_variable="K"), {"K": KEY}) == KEY
    assert read_key(key_settings(), {"OPENAI_API_KEY": KEY}) is None, "none that is not named"
    assert KEY not in repr(EndpointJudge(key_settings(), KEY))


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (None, 0, "cannot be read: No such file"),
        (b"key", 0o640, "mode 0640"),
        (b"", 0o600, "is empty"),
        (b"two words", 0o600, "is no key"),
        (b"a\r\nX-Evil: 1", 0o600, "is no key"),
        (b"\xff\xfe", 0o600, "is no key"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(
    tmp_path: Path, content: bytes | None, mode: int, told: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
        file.chmod(mode)
    with pytest.raises(JudgeError) as caught:
        make_judge(key_settings(key_file=str(file)))
    assert told in str(caught.value) and "Evil" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(JudgeError, match="NO_SUCH_KEY: is empty"):
        make_judge(key_settings(key_variable="NO_SUCH_KEY"))
