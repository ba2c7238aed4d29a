"""Requests of many in common batches: bounded, complete, and as if each stood alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milp_ray.data.prompts import Prompts
from milp_ray.errors import StorageError
from milp_ray.evaluation.common_batches import Batching, Request, decode, losses, packed
from milp_ray.evaluation.measure import LossSum
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.adapters import lora_config
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from tests.evaluation.baselines.common import STUDY

PROMPTS = Prompts(STUDY.prompts)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=30),
    rows=st.integers(1, 6),
    tokens=st.integers(1, 120),
    adapters=st.integers(1, 4),
)
def test_every_request_is_in_one_batch_within_all_bounds(
    wanted: list[tuple[int, int]], rows: int, tokens: int, adapters: int
) -> None:
    requests = [Request((1,) * length, (Path(str(which)),) if which else ()) for length, which in wanted]
    lengths = [length for length, _ in wanted]
    batches = list(packed(range(len(wanted)), requests, lengths, Batching(rows, tokens, adapters)))
    assert sorted(index for batch in batches for index in batch) == list(range(len(wanted)))
    for batch in batches:
        assert len(batch) <= rows
        sizes = [lengths[index] for index in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= tokens
        assert min(sizes) >= Batching().alike * max(sizes)
        order = [requests[index].adapters for index in batch]
        assert len(set(order) - {()}) <= adapters
        assert order == sorted(order), "rows of an adapter stand together"


def test_no_request_is_no_work(llama: BaseModel) -> None:
    assert decode(llama, [], PROMPTS, 4) == [] == losses(llama, [], [])
    assert losses(llama, [Request((1, 2))], [[]]) == [LossSum()]


def test_a_base_with_an_adapter_of_its_own_is_refused(llama: BaseModel) -> None:
    llama.attach(lora_config(Placement.from_key("1:2"), llama.architecture))
    try:
        with pytest.raises(RuntimeError, match="take it off"):
            decode(llama, [Request((1, 2))], PROMPTS, 4)
    finally:
        llama.detach()


@pytest.mark.parametrize("what", ["adapters", "soft_tokens", "weights"])
def test_what_is_missing_or_damaged_is_named(what: str, llama: BaseModel, tmp_path: Path) -> None:
    place = tmp_path / "x"
    if what == "adapters":
        place.mkdir()
        (place / WEIGHTS).write_bytes(b"no")
    value = (place,) if what == "adapters" else place
    with pytest.raises(StorageError, match="could not be read"):
        decode(llama, [Request((1, 2), **{what: value})], PROMPTS, 4)
    assert not any(module._forward_hooks for module in llama.model.modules())


def test_a_batch_that_is_too_large_is_halved(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request((5, 9, 4 + number)) for number in range(5)]
    responses = [[7, 3]] * 5
    expected = decode(llama, requests, PROMPTS, 4), losses(llama, requests, responses)
    forward, sizes = llama.logits, list[int]()

    def small(select: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > limit:
            raise RuntimeError("CUDA out of memory")
        return forward(select, **inputs)

    monkeypatch.setattr(llama, "logits", small)
    limit = 2
    found = decode(llama, requests, PROMPTS, 4), losses(llama, requests, responses)
    assert found[0] == expected[0]
    assert [one.nats for one in found[1]] == pytest.approx([one.nats for one in expected[1]], rel=1e-5)
    assert sizes[0] == 5 and sizes.count(1) > 0
    limit = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        decode(llama, requests, PROMPTS, 4)


def test_no_text_shows_in_a_request() -> None:
    assert repr(Request((77, 78, 79), (Path("a"),))) == "Request(<3 tokens>, adapters=1)"
