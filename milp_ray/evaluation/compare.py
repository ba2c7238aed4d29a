"""The test of the final stage: one set of samples, the scores of whatever memory sits on the base.

The three-way comparison (no memory, own memory, another user's) is three calls, the adapters put on and off
by :func:`milp_ray.model.base.loaded`. Choosing and training memories is not covered.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample, UserSplit
from milp_ray.evaluation.measure import LossSum, encode_prompts, generations, losses
from milp_ray.evaluation.metrics import chrf, persona_f1, rouge
from milp_ray.model.base import BaseModel
from milp_ray.model.batches import sample_examples
from milp_ray.training.loop import Progress


@dataclass(frozen=True, slots=True)
class TestScores:
    """Scores of one model on one user's samples.

    Attributes:
        loss: nats per response token.
        rouge_1: mean F1 in [0, 1].
        rouge_l: mean F1 in [0, 1].
        chrf: mean chrF2 in [0, 1].
        persona_f1: in [0, 1], against the user's texts up to each sample.
    """

    __test__ = False  # the name is no test class for pytest

    loss: float
    rouge_1: float
    rouge_l: float
    chrf: float
    persona_f1: float


def evaluate(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study, samples: Sequence[Sample]
) -> TestScores:
    """Scores of the base, with whatever memory is attached, on ``samples`` of ``user`` (NaN without any)."""
    work = evaluation(base, user, prompts, study, samples)
    while True:
        try:
            next(work)
        except StopIteration as end:
            scores: TestScores = end.value
            return scores


def evaluation(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study, samples: Sequence[Sample]
) -> Generator[Progress, None, TestScores]:
    """:func:`evaluate` that yields after every batch, and now and then within one; returns the scores."""
    size, longest = study.trial.eval_batch_size, study.trial.max_new_tokens
    batches = -(-len(samples) // size)
    total = LossSum()
    for done, part in enumerate(losses(base, sample_examples(base, prompts, samples), size), 1):
        total += part
        yield Progress("loss", done, batches)
    texts: dict[int, str] = {}
    encoded = encode_prompts(base, samples, prompts, longest)
    done = 0
    for responses in generations(base, encoded, prompts, longest, size):
        texts.update(responses)
        done += bool(responses)
        yield Progress("generate", done, batches)
    responses_in_order = [texts[index] for index in range(len(samples))]
    rules = study.data.text_rules
    given = [sample.response for sample in samples]
    overlap = rouge(responses_in_order, given, rules)
    # A split resolves n_hist; without it, only what precedes the first test sample is surely no leak.
    cuts = [user.final_cut if sample.n_hist is None else sample.n_hist for sample in samples]
    histories = [user.history[:cut] for cut in cuts]
    persona = persona_f1(responses_in_order, histories, rules=rules)
    return TestScores(
        total.mean, overlap["rouge_1"], overlap["rouge_l"], chrf(responses_in_order, given), persona
    )
