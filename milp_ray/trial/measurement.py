"""What a search trial measures on a user's validation samples.

The loss, and metrics of greedy responses where the study's objectives name one. The final test
measures more, on other samples (:mod:`milp_ray.evaluation.compare`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from milp_ray.config.models import Study
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import UserSplit
from milp_ray.errors import TrialFailed
from milp_ray.evaluation.measure import measure_loss, measure_responses
from milp_ray.evaluation.metrics import RESPONSE_METRICS
from milp_ray.model.base import BaseModel
from milp_ray.training.loop import Progress
from milp_ray.trial.encoded import encoded_prompts, encoded_samples
from milp_ray.trial.records import TrialCost


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a trial measured.

    Attributes:
        loss: validation loss, nats per response token.
        scores: of greedy responses, by name (``RESPONSE_METRICS``); NaN where no objective is one
            of these, as no response is generated then, and on other ranks than 0.
        trainable_params: exact number of trained parameters.
        cost: of the trial.
        by_user: of a population's mean, by alias: each user's loss and scores; else empty.
    """

    loss: float
    scores: Mapping[str, float]
    trainable_params: int
    cost: TrialCost
    by_user: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """All that a study may have as an objective, by name."""
        return {"loss": self.loss, **self.scores, "trainable_params": self.trainable_params}

    @property
    def train_seconds(self) -> float:
        """Spent in both stages."""
        return self.cost.train_seconds

    @property
    def eval_seconds(self) -> float:
        """Spent measuring."""
        return self.cost.eval_seconds

    @property
    def train_tokens(self) -> int:
        """Real (unpadded) tokens that were trained on, every epoch counted."""
        return self.cost.train_tokens


def measure_user(
    base: BaseModel, user: UserSplit, prompts: Prompts, study: Study
) -> Generator[Progress, None, tuple[float, list[str]]]:
    """Measure whatever adapter is on the base, with a yield after every batch or few tokens.

    Returns:
        The loss, and the greedy responses by sample; none where no objective is one of responses.

    Raises:
        TrialFailed: the user has no validation samples, or the loss is not finite.
    """
    samples, settings = user.validation, study.trial
    if not samples:
        raise TrialFailed("the user has no validation samples")
    examples = encoded_samples(base, prompts, samples)
    loss = (yield from measure_loss(base, examples, settings.eval_batch_size)).mean
    if not math.isfinite(loss):
        raise TrialFailed("loss is not finite in the measurement")
    if RESPONSE_METRICS.keys().isdisjoint(study.objectives):
        return loss, []
    encoded = encoded_prompts(base, prompts, samples, settings.max_new_tokens)
    responses = yield from measure_responses(
        base, encoded, prompts, settings.max_new_tokens, settings.eval_batch_size
    )
    return loss, responses


def response_scores(user: UserSplit, responses: Sequence[str], rules: int) -> dict[str, float]:
    """The metrics of responses to a user's validation samples, by name; NaN of none.

    Args:
        user: whose samples were answered.
        responses: by sample, or none.
        rules: of words, see :func:`milp_ray.data.words.text_rules`.
    """
    if not responses:
        return dict.fromkeys(RESPONSE_METRICS, float("nan"))
    references = [sample.response for sample in user.validation]
    return {name: metric(responses, references, rules) for name, metric in RESPONSE_METRICS.items()}
