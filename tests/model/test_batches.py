"""Batches: every text once a pass, in an order of the seed alone; labels by their positions."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, masking_utils

from milp_ray.config.models import PromptSettings
from milp_ray.data.prompts import Prompts
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import (
    Example,
    by_length,
    collate,
    history_examples,
    shuffled,
    token_losses,
)
from milp_ray.training.loop import num_steps

LENGTHS = [random.Random(4).randrange(2, 200) for _ in range(301)]


def order(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shuffled_has_every_text_once() -> None:
    batches = shuffled(LENGTHS, 8, order(0))
    assert sorted(index for batch in batches for index in batch) == list(range(301))
    assert len(batches) == num_steps(301, 8, 1)
    assert sorted(len(batch) for batch in batches)[0] == 301 % 8


def test_shuffled_follows_the_seed_and_changes_every_pass() -> None:
    assert shuffled(LENGTHS, 8, order(0)) == shuffled(LENGTHS, 8, order(0))
    assert shuffled(LENGTHS, 8, order(0)) != shuffled(LENGTHS, 8, order(1))
    generator = order(0)
    assert shuffled(LENGTHS, 8, generator) != shuffled(LENGTHS, 8, generator)


def test_shuffled_wastes_little_on_padding() -> None:
    batches = shuffled(LENGTHS, 8, order(0))
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
    assert padded < 1.15 * sum(LENGTHS)


def test_by_length_is_longest_first() -> None:
    batches = by_length(LENGTHS, 16)
    assert LENGTHS[batches[0][0]] == max(LENGTHS)
    assert sorted(index for batch in batches for index in batch) == list(range(301))


def test_collate_counts_by_position(tiny_bases: dict[str, BaseModel]) -> None:
    batch = collate([Example((1, 0, 0, 2), 2), Example((1, 5), 1)], tiny_bases["llama"])
    assert batch.ids.tolist() == [[1, 0, 0, 2], [1, 5, 0, 0]]
    assert batch.target_positions.tolist() == [1, 2, 3]  # before tokens 1 to 3 of both texts
    assert (batch.num_tokens, batch.num_labels) == (6, 3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_losses_do_not_depend_on_the_rest_of_the_batch(name: str, tiny_bases: dict[str, BaseModel]) -> None:
    base = tiny_bases[name]
    prompts = Prompts(PromptSettings(max_length=64))
    texts = ["my dog", "a cat would rather sleep near a stove all day", "the old"]
    examples = history_examples(base, prompts, texts)
    assert [example.prompt_length for example in examples] == [1, 1, 1]
    with torch.no_grad():
        together = token_losses(base, collate(examples, base))
        alone = torch.cat([token_losses(base, collate([example], base)) for example in examples])
    assert torch.allclose(together, alone, atol=1e-5)
    assert len(together) == sum(len(example.ids) - 1 for example in examples)


def test_no_repr_shows_tokens() -> None:
    assert "17" not in repr(Example((17, 17, 17, 17), 1))


@pytest.fixture(params=["llama", "gpt2", "grouped"])
def masked(request: pytest.FixtureRequest, tiny_bases: dict[str, BaseModel]) -> BaseModel:
    """A base whose model looks for packed texts; one has fewer keys than queries."""
    if request.param != "grouped":
        return tiny_bases[request.param]
    base = tiny_bases["llama"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = Qwen2Config(
            vocab_size=base.architecture.vocab_size, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
        )  # fmt: skip
        return dataclasses.replace(base, model=Qwen2ForCausalLM(config).eval().requires_grad_(False))


def test_attention_is_the_fast_one_in_a_captured_step(
    masked: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a graph is captured, transformers cannot look for packed texts, and makes a mask."""
    batch = collate([Example(tuple(range(5, 21)), 1), Example((7, 3, 9), 1)], masked)
    logits = masked.root(
        lambda hidden: hidden.flatten(0, 1).index_select(0, batch.target_positions),
        input_ids=batch.ids[:, :-1],
    )
    attention, find = functional.scaled_dot_product_attention, masking_utils.find_packed_sequence_indices
    seen = set()

    def watched(*values: Any, **named: Any) -> torch.Tensor:
        seen.add((named["attn_mask"] is None, named["is_causal"]))
        return attention(*values, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda tensor=None: True)
    found = token_losses(masked, batch)
    assert seen == {(True, True)}
    assert torch.equal(found, functional.cross_entropy(logits, batch.labels, reduction="none"))
    assert masking_utils.find_packed_sequence_indices is find


def test_a_version_that_does_not_look_for_packed_texts(
    tiny_bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["roberta"]  # whose code does not either
    batch = collate([Example((5, 6, 7), 1)], base)
    expected = token_losses(base, batch)
    monkeypatch.delattr(masking_utils, "find_packed_sequence_indices")
    assert torch.equal(token_losses(base, batch), expected)
    assert not hasattr(masking_utils, "find_packed_sequence_indices")
