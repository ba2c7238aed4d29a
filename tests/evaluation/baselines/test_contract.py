"""What every method keeps, on every kind of base: above all, that it sees no held-out answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from milp_ray.evaluation.baselines import Method, make, method_names
from milp_ray.evaluation.common_batches import Request, decode
from milp_ray.model.base import BaseModel
from tests.evaluation.baselines.common import OPTIONS, bench, person
from tests.trial.common import Snapshot

USERS = [person(0), person(1)]
BACKGROUND = [person(2), person(3)]
FAMILIES = ("llama", "gpt2", "roberta")
METHODS = method_names()


class Heard:
    """All texts that a tokenizer was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.texts = tokenizer, list[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tokenizer, name)
        return self._listening(found) if callable(found) and "encode" in name else found

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._listening(self._tokenizer)(*args, **named)

    def _listening(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def heard(*args: Any, **named: Any) -> Any:
            self.texts += [str(one) for one in (*args, *named.values())]
            return work(*args, **named)

        return heard


@dataclasses.dataclass
class Done:
    """A method that went all the way."""

    method: Method
    requests: list[list[Request]]
    heard: list[str]
    snapshot: Snapshot
    folder: Path


@pytest.fixture(
    scope="module", params=[(name, family) for name in METHODS for family in FAMILIES], ids="-".join
)
def done(
    request: pytest.FixtureRequest,
    tiny_bases: dict[str, BaseModel],
    tiny_encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Done]:
    name, family = request.param
    base, folder = tiny_bases[family], tmp_path_factory.mktemp(name)
    snapshot, own = Snapshot(base), base.tokenizer
    base.token_cache.clear()
    base.tokenizer = heard = Heard(own)
    try:
        method = make(
            name, bench(base, folder, options=OPTIONS.model_copy(update={"encoder": str(tiny_encoder)}))
        )
        method.fit(BACKGROUND)
        for user in USERS:
            method.learn(user)
        requests = [method.requests(user, user.test) for user in USERS]
    finally:
        base.tokenizer = own
        base.token_cache.clear()
    yield Done(method, requests, heard.texts, snapshot, folder)


def test_it_sees_no_held_out_answer_and_nothing_later(done: Done) -> None:
    assert done.heard and not [text for text in done.heard if "ZQX" in text]
    decoded = [done.method.bench.base.tokenizer.decode(one.ids) for found in done.requests for one in found]
    assert all(text(one) in shown for shown, one in zip(decoded, asked(), strict=True))
    assert "ZQX" not in " ".join(decoded)


def test_the_base_is_given_back_bit_for_bit(done: Done) -> None:
    done.method.respond(USERS[0], USERS[0].test)
    done.snapshot.check()


def test_what_was_learned_is_not_learned_again(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [done.method.fit(BACKGROUND), *map(done.method.learn, USERS)]
    monkeypatch.setattr("milp_ray.training.loop.StageTrainer.__iter__", fail)
    again = make(done.method.name, done.method.bench)
    assert [again.fit([]), *map(again.learn, USERS)] == first
    assert again.respond(USERS[0], USERS[0].test) == done.method.respond(USERS[0], USERS[0].test)


def test_it_says_what_it_cost(done: Done) -> None:
    found = [done.method.fit(BACKGROUND), *map(done.method.learn, USERS)]
    trained = any(one.cost.trained_tokens for one in found)
    files = list(done.folder.rglob("*.safetensors"))
    assert trained == bool(files)
    assert sum(one.cost.adapter_bytes for one in found) >= sum(file.stat().st_size for file in files)
    assert all(one.note for one in found)


def test_all_together_is_each_alone(done: Done) -> None:
    method, base = done.method, done.method.bench.base
    flat = [one for found in done.requests for one in found]
    together = decode(base, flat, method.bench.prompts, 6)
    alone = [decode(base, [one], method.bench.prompts, 6)[0] for one in flat]
    assert together == alone
    assert together == [*method.respond(USERS[0], USERS[0].test), *method.respond(USERS[1], USERS[1].test)]


def test_its_loss_is_over_the_same_tokens_as_any_others(done: Done) -> None:
    base = done.method.bench.base
    found = done.method.loss(USERS[0], USERS[0].test)
    plain = make("none", done.method.bench).loss(USERS[0], USERS[0].test)
    assert found.tokens == plain.tokens > 0
    assert 0 < found.mean < 20
    assert base.attached is None


def asked() -> list[str]:
    return [sample.query for user in USERS for sample in user.test]


def text(query: str) -> str:
    return query[-12:]  # of a long prompt the beginning is cut


def fail(*_: object) -> Any:
    raise AssertionError("trained again")


@pytest.mark.parametrize(
    "name",
    ["none", "uelp", "full", "task_lora", "multi_lora", "random_lora", "oppu", "milp", "task_lora+milp"],
)
def test_a_fit_fills_the_folders_that_it_names_and_no_other(
    name: str, llama: BaseModel, tmp_path: Path
) -> None:
    """Methods without one in common are fitted side by side."""
    method = make(name, bench(llama, tmp_path))
    method.fit(BACKGROUND)
    assert method.fitted == {file.parent for file in tmp_path.rglob("learned.json")}
