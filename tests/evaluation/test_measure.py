"""Loss and generation in batches say what one sample at a time says, for every architecture."""

from __future__ import annotations

import math

import pytest
import torch

from milp_ray.config.models import DataSettings, ModelSettings, PromptSettings, Study, TrialSettings
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample, UserSplit
from milp_ray.evaluation.compare import evaluate
from milp_ray.evaluation.measure import encode_prompts, generate, response_loss
from milp_ray.evaluation.metrics import persona_f1, rouge
from milp_ray.model.base import BaseModel

PROMPTS = Prompts(PromptSettings(max_length=96))


def samples_of(user: UserSplit) -> tuple[Sample, ...]:
    return (*user.train, *user.validation, *user.test)


def reference_loss(base: BaseModel, sample: Sample) -> tuple[float, int]:
    """One sample alone through the model's own forward pass, nothing padded."""
    encoded = PROMPTS.encode_sample(base.tokenizer, sample)
    ids = torch.tensor([encoded.input_ids])
    labels = ids.clone()
    labels[:, : encoded.prompt_length] = -100
    count = len(encoded.input_ids) - encoded.prompt_length
    with torch.no_grad():
        positions = torch.arange(ids.shape[1])[None] + base.architecture.position_offset
        mean = base.model(input_ids=ids, position_ids=positions, labels=labels).loss
    return float(mean) * count, count


def reference_tokens(base: BaseModel, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy without a cache, one token at a time, nothing padded."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count:
            positions = torch.arange(len(ids))[None] + base.architecture.position_offset
            ids.append(
                int(base.model(input_ids=torch.tensor([ids]), position_ids=positions).logits[0, -1].argmax())
            )
            if ids[-1] in base.stop_ids:
                return ids[len(prompt) : -1]
    return ids[len(prompt) :]


def test_loss_is_that_of_single_samples(base: BaseModel, tiny_user: UserSplit) -> None:
    samples = samples_of(tiny_user)
    each = [reference_loss(base, sample) for sample in samples]
    for size in (1, 3, 16):
        found = response_loss(base, samples, PROMPTS, size)
        assert found.tokens == sum(count for _, count in each)
        assert found.nats == pytest.approx(sum(nats for nats, _ in each), rel=1e-5)


def test_loss_counts_response_and_end_only(base: BaseModel) -> None:
    sample = Sample("my old dog", "likes long walks")
    encoded = PROMPTS.encode_sample(base.tokenizer, sample)
    assert encoded.input_ids[-1] == base.eos_id
    found = response_loss(base, [sample], PROMPTS, 4)
    assert found.tokens == len(encoded.input_ids) - encoded.prompt_length


def test_a_pad_token_in_the_text_counts(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels go by position: with the end token as padding, as in GPT-2, the end still counts."""
    samples = [Sample("my old dog", "likes"), Sample("a cat", "would rather sleep near a stove")]
    before = response_loss(base, samples, PROMPTS, 2)
    monkeypatch.setattr(base, "pad_id", base.eos_id)
    after = response_loss(base, samples, PROMPTS, 2)
    assert after.tokens == before.tokens
    assert after.nats == pytest.approx(before.nats, rel=1e-6)


def test_generation_in_batches_is_that_of_single_prompts(base: BaseModel, tiny_user: UserSplit) -> None:
    samples = samples_of(tiny_user)
    prompts = encode_prompts(base, samples, PROMPTS, 12)
    alone = [
        base.tokenizer.decode(reference_tokens(base, prompt, 12), skip_special_tokens=True).strip()
        for prompt in prompts
    ]
    for size in (1, 4, 16):
        assert generate(base, samples, PROMPTS, 12, size) == alone


def test_rows_stop_at_an_end_token(
    base: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(tiny_user)
    prompts = encode_prompts(base, samples, PROMPTS, 12)
    free = [reference_tokens(base, prompt, 12) for prompt in prompts]
    # Tokens that occur early in some responses and not in others: rows leave at different times.
    monkeypatch.setattr(base, "stop_ids", frozenset({base.eos_id, free[0][0], free[1][2], free[2][5]}))
    expected = [reference_tokens(base, prompt, 12) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 1
    texts = [base.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in expected]
    assert generate(base, samples, PROMPTS, 12, 16) == texts


def test_a_chat_ends_with_its_turn_and_without_its_thinking(
    base: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(tiny_user)
    prompts = encode_prompts(base, samples, PROMPTS, 12)
    free = [reference_tokens(base, prompt, 12) for prompt in prompts]
    monkeypatch.setattr(Prompts, "stop_ids", lambda self, tokenizer: frozenset({free[0][3]}))
    monkeypatch.setattr(Prompts, "response_text", lambda self, tokenizer, ids: repr(list(ids)))
    expected = [repr(row[: row.index(free[0][3])] if free[0][3] in row else row) for row in free]
    assert generate(base, samples, PROMPTS, 12, 16) == expected


def test_a_prompt_gives_way_to_the_response(base: BaseModel) -> None:
    """Prompt and response together never leave the model's context; its first token stays."""
    long = Prompts(PromptSettings(max_length=128))
    sample = Sample("would rather sleep " * 60, "yes")
    (ids,) = encode_prompts(base, [sample], long, 100)
    whole = long.encode_prompt(base.tokenizer, sample)
    assert len(ids) == base.architecture.context - 100
    assert ids == (whole[0], *whole[-len(ids) + 1 :])
    assert len(generate(base, [sample], long, 100)) == 1


def test_evaluate_is_its_parts(base: BaseModel, tiny_user: UserSplit) -> None:
    study = Study(
        name="t",
        model=ModelSettings(path="x"),
        data=DataSettings(path="x"),
        prompts=PROMPTS.settings,
        trial=TrialSettings(max_new_tokens=8, eval_batch_size=2),
    )
    scores = evaluate(base, tiny_user, PROMPTS, study, tiny_user.test)
    texts = generate(base, tiny_user.test, PROMPTS, 8)
    overlap = rouge(texts, [sample.response for sample in tiny_user.test])
    assert scores.loss == pytest.approx(response_loss(base, tiny_user.test, PROMPTS).mean, rel=1e-6)
    assert (scores.rouge_1, scores.rouge_l) == (overlap["rouge_1"], overlap["rouge_l"])
    histories = [tiny_user.history[: sample.n_hist] for sample in tiny_user.test]
    assert scores.persona_f1 == persona_f1(texts, histories)
    assert math.isnan(evaluate(base, tiny_user, PROMPTS, study, ()).loss)
