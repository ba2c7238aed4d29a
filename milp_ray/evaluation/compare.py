"""The test of the final stage: scores on one set of samples, with whatever memory is on the base.

The three-way comparison (no memory, the own one, another user's) is three calls, between which
:func:`milp_ray.model.base.loaded` puts adapters on and takes them off. Does *not* cover choosing
and training memories.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample, UserSplit
from milp_ray.evaluation.measure import encode_prompts, measure_loss, measure_responses, run_through
from milp_ray.evaluation.metrics import SCORES, chrf, persona_f1, rouge
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

    def to_plain(self) -> dict[str, float | None]:
        """By name, as strict JSON has them: what is not finite is None."""
        values = {name: getattr(self, name) for name in SCORES}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def evaluate(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study, samples: Sequence[Sample]
) -> TestScores:
    """Scores of the base, with whatever adapter is on it, on samples of a user; NaN without any."""
    return run_through(evaluation(base, user, prompts, study, samples))


def evaluation(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study, samples: Sequence[Sample]
) -> Generator[Progress, None, TestScores]:
    """:func:`evaluate` with a yield after every batch, and every few tokens of responses."""
    batch_size, max_new_tokens = study.trial.eval_batch_size, study.trial.max_new_tokens
    total = yield from measure_loss(base, sample_examples(base, prompts, samples), batch_size)
    encoded = encode_prompts(base, samples, prompts, max_new_tokens)
    responses = yield from measure_responses(base, encoded, prompts, max_new_tokens, batch_size)
    return test_scores(user, samples, responses, total.mean, study.data.text_rules)


def test_scores(
    user: UserSplit, samples: Sequence[Sample], responses: Sequence[str], loss: float, rules: int
) -> TestScores:
    """The scores of responses to samples of a user, beside the loss of the given ones."""
    references = [sample.response for sample in samples]
    overlap = rouge(responses, references, rules)
    # A split resolves n_hist; without it, only texts up to the first test sample are no leak.
    cuts = [user.final_cut if sample.n_hist is None else sample.n_hist for sample in samples]
    histories = [user.history[:cut] for cut in cuts]
    return TestScores(
        loss=loss,
        rouge_1=overlap["rouge_1"],
        rouge_l=overlap["rouge_l"],
        chrf=chrf(responses, references),
        persona_f1=persona_f1(responses, histories, rules=rules),
    )


test_scores.__test__ = False  # type: ignore[attr-defined]  # the name is no test for pytest
