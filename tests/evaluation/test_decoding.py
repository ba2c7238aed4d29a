"""A cache of fixed size, whose step is replayed, makes the tokens that a growing one makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

from milp_ray.evaluation.decoding import Decoder, Fixed, Growing, decoder
from milp_ray.training.base import BaseModel
from milp_ray.training.graphs import Work

PROMPTS = [[5, 9, 4], [7, 3, 8, 6, 12], [11], [4, 4], [19, 3, 5, 7], [8, 15]]
NEW = 11


def fixed(base: BaseModel, rows: int, captured: list[Work], usable: bool = True) -> Fixed:
    def capture(work: Work) -> Work | None:
        captured.append(work)
        return work if usable else None

    longest = max(map(len, PROMPTS))
    cache = StaticCache(config=base.model.config, max_cache_len=longest + NEW)
    return Fixed(base, cache, rows, NEW, capture)


def tokens(decode: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    *_, found = decode(prompts)
    assert found is not None
    return found


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_same_tokens(base: BaseModel, rows: int) -> None:
    captured: list[Work] = []
    decode, grow = fixed(base, rows, captured), Growing(base, NEW)
    batches = [PROMPTS[at : at + rows] for at in range(0, len(PROMPTS), rows)]
    expected = [tokens(grow, batch) for batch in batches]
    assert {len(row) for batch in expected for row in batch} != {0}
    assert [tokens(decode, batch) for batch in batches] == expected
    assert len(captured) == 1, "once for all batches"


def test_rows_that_end_early_are_cut(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tokens(Growing(base, NEW), PROMPTS)
    often = max({token for row in plain for token in row}, key=lambda t: sum(t in x for x in plain))
    monkeypatch.setattr(base, "stop_ids", frozenset({*base.stop_ids, often}))
    expected = tokens(Growing(base, NEW), PROMPTS)
    assert expected != plain
    assert tokens(fixed(base, 6, []), PROMPTS) == expected


def test_it_ends_when_all_have(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "stop_ids", frozenset(range(base.architecture.vocab_size)))
    decode = fixed(base, 6, [])
    assert tokens(decode, PROMPTS) == [[]] * 6
    assert int(decode._count[0, 0]) < NEW


def test_what_cannot_be_captured_is_done_as_usual(base: BaseModel) -> None:
    captured: list[Work] = []
    expected = tokens(Growing(base, NEW), PROMPTS)
    assert tokens(fixed(base, 6, captured, usable=False), PROMPTS) == expected
    assert len(captured) == 1, "asked once, not for every token"


def test_on_a_cpu_the_cache_grows(base: BaseModel) -> None:
    assert isinstance(decoder(base, [PROMPTS], 64), Growing)


@pytest.mark.parametrize("way", [Growing, fixed])
def test_it_pauses_and_leaves_torch_as_it_was(base: BaseModel, way: Any) -> None:
    """Another memory's gradients, or nothing at all, may come between two tokens."""
    decode = Growing(base, NEW) if way is Growing else fixed(base, 6, [])
    pauses = 0
    for found in decode(PROMPTS):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        pauses += found is None
    assert pauses == 1, "eleven tokens"
