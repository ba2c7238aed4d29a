"""The static cache, whose step is replayed, gives the tokens that the dynamic one gives."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicLayer

from milp_ray.config.models import ModelSettings
from milp_ray.evaluation import decoding
from milp_ray.evaluation.decoding import (
    Decoder,
    DynamicCacheDecoder,
    RoomyLayer,
    StaticCacheDecoder,
    decoder,
    static_cache,
)
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.cuda_graphs import Work

PROMPTS = [[5, 9, 4], [7, 3, 8, 6, 12], [11], [4, 4], [19, 3, 5, 7], [8, 15]]
NEW = 11


def static(
    base: BaseModel,
    rows: int,
    captured: list[Work],
    usable: bool = True,
    stop_ids: frozenset[int] = frozenset(),
) -> StaticCacheDecoder:
    def capture(work: Work) -> Work | None:
        captured.append(work)
        return work if usable else None

    longest = max(map(len, PROMPTS))
    cache = static_cache(base, longest + NEW)
    assert cache is not None
    return StaticCacheDecoder(base, cache, rows, NEW, capture, stop_ids)


def tokens(decode: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    *_, found = decode(prompts)
    assert found is not None
    return found


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_same_tokens(base: BaseModel, rows: int) -> None:
    captured: list[Work] = []
    decode, grow = static(base, rows, captured), DynamicCacheDecoder(base, NEW)
    batches = [PROMPTS[at : at + rows] for at in range(0, len(PROMPTS), rows)]
    expected = [tokens(grow, batch) for batch in batches]
    assert {len(row) for batch in expected for row in batch} != {0}
    assert [tokens(decode, batch) for batch in batches] == expected
    assert len(captured) == 1, "once for all batches"


def test_rows_that_end_early_are_cut(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tokens(DynamicCacheDecoder(base, NEW), PROMPTS)
    often = max({token for row in plain for token in row}, key=lambda t: sum(t in x for x in plain))
    monkeypatch.setattr(base, "stop_ids", frozenset({*base.stop_ids, often}))
    expected = tokens(DynamicCacheDecoder(base, NEW), PROMPTS)
    assert expected != plain
    assert tokens(static(base, 6, []), PROMPTS) == expected


def test_the_end_of_a_turn_ends_a_response_as_the_end_token_does(base: BaseModel) -> None:
    plain = tokens(DynamicCacheDecoder(base, NEW), PROMPTS)
    end = max({token for row in plain for token in row}, key=lambda t: sum(t in x for x in plain))
    expected = [row[: row.index(end)] if end in row else row for row in plain]
    assert tokens(DynamicCacheDecoder(base, NEW, frozenset({end})), PROMPTS) == expected != plain
    assert tokens(static(base, 6, [], stop_ids=frozenset({end})), PROMPTS) == expected
    assert tokens(decoder(base, [PROMPTS], NEW, frozenset({end})), PROMPTS) == expected


def test_it_ends_when_all_have(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "stop_ids", frozenset(range(base.architecture.vocab_size)))
    decode = static(base, 6, [])
    assert tokens(decode, PROMPTS) == [[]] * 6
    assert int(decode._num_new[0, 0]) < NEW


def test_what_cannot_be_captured_is_done_as_usual(base: BaseModel) -> None:
    captured: list[Work] = []
    expected = tokens(DynamicCacheDecoder(base, NEW), PROMPTS)
    assert tokens(static(base, 6, captured, usable=False), PROMPTS) == expected
    assert len(captured) == 1, "asked once, not for every token"


def test_its_memory_goes_with_it(base: BaseModel) -> None:
    """Not with the next full collection, though nothing was captured."""
    gc.disable()
    try:
        decode = static(base, 6, [])
        gone = weakref.ref(decode)
        del decode
        assert gone() is None
    finally:
        gc.enable()


def test_on_a_cpu_the_cache_grows(base: BaseModel) -> None:
    assert isinstance(decoder(base, [PROMPTS], 64), DynamicCacheDecoder)


@pytest.mark.parametrize("way", [DynamicCacheDecoder, static])
def test_it_pauses_and_leaves_torch_as_it_was(base: BaseModel, way: Any) -> None:
    """Another memory's gradients, or nothing at all, may come between two tokens."""
    decode = DynamicCacheDecoder(base, NEW) if way is DynamicCacheDecoder else static(base, 6, [])
    pauses = 0
    for found in decode(PROMPTS):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        pauses += found is None
    assert pauses == 1, "eleven tokens"


@pytest.fixture(params=[200, 16, 15, None])
def mistral(
    request: pytest.FixtureRequest,
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> BaseModel:
    """A tiny one with a window over so many tokens, taken for one on a GPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = MistralConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, sliding_window=request.param,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_models["llama"] / name).read_bytes())
    base = load_base(ModelSettings(path=str(tmp_path), device="cpu"))
    monkeypatch.setattr("milp_ray.evaluation.decoding.Pool", lambda _: lambda work: work)
    base.fused = True
    return base


def test_a_window_over_the_whole_text_does_not_slide(mistral: BaseModel) -> None:
    """Five tokens and eleven: sixteen."""
    batches = [PROMPTS[:3], PROMPTS[3:], PROMPTS[:3]]
    decode = decoder(mistral, batches, NEW)
    window = mistral.model.config.sliding_window
    assert isinstance(decode, DynamicCacheDecoder if window == 15 else StaticCacheDecoder)
    expected = [tokens(DynamicCacheDecoder(mistral, NEW), batch) for batch in batches]
    assert min(len(row) for batch in expected for row in batch) > 8
    assert [tokens(decode, batch) for batch in batches] == expected


def states(seed: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 2, length, 4, generator=generator)
    return keys, values


@pytest.mark.parametrize("room", [1, 3, 16])
def test_a_roomy_layer_holds_what_transformers_own_does(room: int) -> None:
    ours, theirs = RoomyLayer(room), DynamicLayer()
    rows = 5
    for seed, length in enumerate((6, 1, 1, 2, 1, 1, 1)):
        new = states(seed, rows, length)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if seed in (1, 4):
            kept = torch.tensor([0, 2, 3][: rows - 1])
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
            rows = len(kept)
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_a_token_copies_nothing_while_there_is_room() -> None:
    layer = RoomyLayer(8)
    keys, _ = layer.update(*states(0, 3, 5))
    for seed in range(1, 9):
        grown, _ = layer.update(*states(seed, 3, 1))
        assert grown.untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()


def test_rows_leave_together(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixteen rows the first that ends stays until there are two; each has its own tokens."""
    prompts = [[token] for token in range(3, 19)]
    plain = tokens(DynamicCacheDecoder(base, NEW), prompts)
    end = plain[4][2]
    expected = [row[: row.index(end)] if end in row else row for row in plain]
    there: list[int] = []
    decode = DynamicCacheDecoder(base, NEW, frozenset({end}), on_rows=lambda rows: there.append(len(rows)))
    assert tokens(decode, prompts) == expected
    changes = [(before, after) for before, after in itertools.pairwise(there) if before != after]
    assert changes and all(before - after >= before / 8 for before, after in changes)
    monkeypatch.setattr(decoding, "_LEAVING", 0.0)
    assert tokens(DynamicCacheDecoder(base, NEW, frozenset({end})), prompts) == expected
