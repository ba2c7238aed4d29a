"""What every judge keeps, and the judges that need no server."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from milp_ray.config.judging import (
    EndpointSettings,
    JudgeSettings,
    LocalModelSettings,
    RougeProxySettings,
)
from milp_ray.config.models import ModelSettings
from milp_ray.evaluation.bias import length_bias
from milp_ray.evaluation.intervals import mean_interval, user_means
from milp_ray.evaluation.judges import (
    Answer,
    Exchange,
    Judge,
    Loss,
    PairRequest,
    Request,
    ScoreRequest,
    Tokens,
    judge_names,
    make_judge,
)
from milp_ray.evaluation.judges.cache import AnswerCache
from milp_ray.evaluation.judges.local_model import LocalModelJudge
from milp_ray.evaluation.judges.rouge_proxy import RougeProxy
from milp_ray.evaluation.judges.scoring import ask, ask_both_orders, estimate
from milp_ray.evaluation.win_rate import counted, shares, verdicts, win_rate
from milp_ray.memory.adapters import lora_config
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from tests.evaluation.judges.chat_server import says, serving

SECRET = "secretword"


def requests(count: int = 5) -> list[Request]:
    exchange = Exchange(f"{SECRET} q", [f"{SECRET} h"], reference="a warm stove and an old dog")
    texts = ["an old dog", "a warm stove", "tea", "a warm stove and an old dog", "cat"]
    return [ScoreRequest(exchange, texts[number % 5] + " " * (number // 5)) for number in range(count)]


@pytest.fixture
def wide(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """A tiny base that is said to read long prompts: byte tokens make them long."""
    monkeypatch.setattr(llama, "architecture", replace(llama.architecture, context=9000))
    return llama


@pytest.fixture(params=["endpoint", "local_model", "rouge_proxy"])
def judge(request: pytest.FixtureRequest, tiny_models: dict[str, Path], wide: BaseModel) -> Iterator[Judge]:
    model = ModelSettings(path=str(tiny_models["llama"]))
    settings = {
        "local_model": LocalModelSettings(model=model, batch_size=3, max_new_tokens=4),
        "rouge_proxy": RougeProxySettings(),
    }
    if request.param != "endpoint":
        yield make_judge(settings[request.param], wide)  # type: ignore[arg-type]
        return
    with serving(lambda prompt, number: says("Score: 3" if number % 2 else "what?")) as server:
        yield make_judge(EndpointSettings(url=server.url, model="m"))


def test_the_registered_judges_are_those_with_settings() -> None:
    kinds = {settings.model_fields["kind"].default for settings in JudgeSettings.__args__[0].__args__}
    assert set(judge_names()) == kinds == {"endpoint", "local_model", "rouge_proxy"}


class TestEveryJudge:
    def test_each_request_is_answered_once(self, judge: Judge) -> None:
        found = list(judge.answers(requests()))
        assert sorted(index for index, _ in found) == list(range(5))
        assert all(isinstance(answer, Loss) or 1 <= answer <= 10 for _, answer in found)
        assert list(judge.answers([])) == []

    def test_it_says_beforehand_what_it_takes(self, judge: Judge) -> None:
        found = estimate(judge, requests(), AnswerCache())
        assert found.calls == 5 and (found.read > 100) == (judge.name != "rouge_proxy")
        assert str(found).startswith(f"{judge.name}: 5 calls")

    def test_what_it_does_not_score_is_counted(self, judge: Judge) -> None:
        found = ask(judge, requests(), AnswerCache())
        assert found.lost == sum(value is None for value in found.values)
        assert len(found.values) == 5 and found.asked == 5

    def test_name_identity_and_repr_hold_no_text(self, judge: Judge) -> None:
        ask(judge, requests(), AnswerCache())
        assert SECRET not in f"{judge.name} {judge.identity} {judge!r}"

    def test_content_tells_responses_apart(self, judge: Judge) -> None:
        assert len({judge.content(request) for request in requests(10)}) == 10


def test_the_proxy_is_called_one_and_scores_likeness() -> None:
    judge = RougeProxy()
    found = ask(judge, requests(), AnswerCache())
    assert judge.name == found.judge == "rouge_proxy" and str(found).startswith("rouge_proxy: 5 of 5")
    assert found.values[3] == 10.0 and found.values[4] == 1.0
    assert found.values[0] == pytest.approx(1 + 9 * 2 * 3 / (3 + 7))
    nothing = ask(judge, [ScoreRequest(Exchange("q"), "r")], AnswerCache())
    assert nothing.losses == {Loss.NO_REFERENCE.value: 1}
    with pytest.raises(ValueError, match="rouge_proxy compares no pairs"):
        ask_both_orders(judge, [PairRequest(Exchange("q"), "a", "b")], AnswerCache())


def test_a_win_rate_by_the_proxy_is_rouges() -> None:
    judge, cache = RougeProxy(), AnswerCache()
    ours, theirs = ask(judge, requests(), cache).values, ask(judge, requests()[::-1], cache).values
    assert win_rate(ours, theirs).value == 0.5 and cache.size == 5


def test_scores_of_users_become_a_win_rate_with_an_interval() -> None:
    """Six users, of whom one method likes each response's first words, the other nothing."""
    judge, cache = RougeProxy(), AnswerCache()
    found = {}
    for number in range(6):
        golds = [f"gold {number} {sample} of a kind" for sample in range(3)]
        exchanges = [Exchange("q", reference=gold) for gold in golds]
        near = [ScoreRequest(one, gold[:9]) for one, gold in zip(exchanges, golds, strict=True)]
        far = [ScoreRequest(one, "no" if sample else golds[0][:9]) for sample, one in enumerate(exchanges)]
        found[f"u-{number}"] = verdicts(ask(judge, near, cache).values, ask(judge, far, cache).values)
    whole = counted([verdict for user in found.values() for verdict in user])
    assert (whole.wins, whole.ties, whole.losses) == (12, 6, 0)
    interval = mean_interval(user_means({user: shares(pairs) for user, pairs in found.items()}))
    assert interval.value == pytest.approx(whole.value) == pytest.approx(5 / 6) and interval.users == 6


def saying(base: BaseModel, monkeypatch: pytest.MonkeyPatch, text: Callable[[str], str]) -> list[str]:
    """Have the base write a text for each prompt; returns the prompts."""
    seen: list[str] = []

    def write(
        _: BaseModel, encoded: Sequence[Sequence[int]], *__: object
    ) -> Generator[None, None, list[str]]:
        prompts = [base.tokenizer.decode(ids) for ids in encoded]
        seen.extend(prompts)
        yield
        return [text(prompt) for prompt in prompts]

    monkeypatch.setattr("milp_ray.evaluation.judges.local_model.measure_responses", write)
    return seen


def test_a_local_model_reads_the_prompt_and_its_text_is_the_answer(
    wide: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = saying(wide, monkeypatch, lambda prompt: "Score: 9" if "tea" in prompt else "8 or 9")
    judge = LocalModelJudge(wide, batch_size=2)
    found = ask(judge, requests(), AnswerCache())
    assert found.values == (None, None, 9.0, None, None)
    assert found.losses == {Loss.SEVERAL_NUMBERS.value: 4}
    assert len(seen) == 5 and all(
        "You grade one response" in prompt and "h\n</user>" in prompt for prompt in seen
    )
    assert judge.tokens(requests()[:1]).exact


def test_a_context_that_is_too_short_shows_less_background_or_is_a_loss(
    wide: BaseModel, monkeypatch: pytest.MonkeyPatch, llama: BaseModel
) -> None:
    seen = saying(wide, monkeypatch, lambda prompt: "5")
    exchange = Exchange("short query", ["old words " * 30, "new words " * 800])
    short = ScoreRequest(exchange, "yes")
    judge = LocalModelJudge(wide)
    whole = judge.tokens([short]).read
    judge._room = whole - 10
    assert dict(judge.answers([short, ScoreRequest(exchange, "yes " * 3000)])) == {0: 5.0, 1: Loss.TOO_LONG}
    (prompt,) = seen
    assert (
        "You grade one response" in prompt
        and "short query" in prompt
        and prompt.rstrip().endswith("Response:")
    )
    assert judge.tokens([short]).read <= judge._room < whole


def test_a_base_too_small_for_the_rubric_is_told_in_every_loss(llama: BaseModel) -> None:
    found = ask(LocalModelJudge(llama), requests(), AnswerCache())
    assert found.losses == {Loss.TOO_LONG.value: 5}


def test_a_memory_does_not_judge(llama: BaseModel) -> None:
    llama.attach(lora_config(Placement.from_key("2:4"), llama.architecture))
    try:
        with pytest.raises(RuntimeError, match="a memory would judge"):
            list(LocalModelJudge(llama).answers(requests()))
    finally:
        llama.detach()


def test_the_same_weights_are_the_same_judge(tiny_models: dict[str, Path], llama: BaseModel) -> None:
    assert LocalModelJudge(llama).identity == LocalModelJudge(llama).identity
    assert LocalModelJudge(llama).identity != LocalModelJudge(llama, max_new_tokens=9).identity


class Made:
    """A judge that is a function."""

    name, identity, compares, prices = "made", "made", True, (1.0, 1.0)

    def __init__(self, judge: Callable[[Request], Answer]) -> None:
        self._judge = judge

    def content(self, request: Request) -> str:
        if isinstance(request, ScoreRequest):
            return request.response
        return f"{request.first}|{request.second}"

    def tokens(self, requests: Sequence[Request]) -> Tokens:
        return Tokens(len(requests), len(requests), exact=True)

    def answers(self, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
        for index, request in enumerate(requests):
            yield index, self._judge(request)


def pair_of(request: Request) -> tuple[str, str]:
    assert isinstance(request, PairRequest)
    return request.first, request.second


PAIRS = [PairRequest(Exchange("q"), "a" * n, "b" * (7 - n)) for n in range(1, 7)]


def test_a_judge_that_takes_the_first_flips_in_every_pair() -> None:
    answers, bias = ask_both_orders(Made(lambda request: 1.0), PAIRS, AnswerCache())
    assert (bias.flips, bias.pairs, bias.first_share) == (6, 6, 1.0)
    assert set(bias.verdicts) == {0} and len(answers.values) == 12


def test_a_judge_that_takes_the_longer_never_flips() -> None:
    def longer(request: Request) -> Answer:
        first, second = pair_of(request)
        return 1.0 if len(first) > len(second) else -1.0

    _, bias = ask_both_orders(Made(longer), PAIRS, AnswerCache())
    assert bias.flips == 0 and bias.verdicts == (-1, -1, -1, 1, 1, 1)
    texts = [pair.first for pair in PAIRS]
    scored = ask(Made(lambda r: float(len(Made(longer).content(r)))), requests_of(texts), AnswerCache())
    assert length_bias(texts, scored.values).spearman == pytest.approx(1.0)


def requests_of(texts: Sequence[str]) -> list[Request]:
    return [ScoreRequest(Exchange("q"), text) for text in texts]


def test_an_interrupted_asking_keeps_every_answer(tmp_path: Path) -> None:
    def stops(request: Request) -> Answer:
        if request == requests()[3]:
            raise KeyboardInterrupt
        return 4.0

    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Made(stops), requests(), AnswerCache(path))
    seen: list[tuple[int, int]] = []
    found = ask(Made(lambda request: 4.0), requests(), AnswerCache(path), lambda *at: seen.append(at))
    assert found.asked == 2 and found.values == (4.0,) * 5 and seen == [(1, 2), (2, 2)]
