"""A judge on this machine: a causal language model, asked greedily, its score read from its text.

It uses the resident base of a study, or one of its own, in the tokenizer's chat template where
there is one. Where prompt and answer do not fit the model's context, less of the user's background
is shown. Small models make poor judges: many answers hold no score, or always the same. Look at the
losses, at the spread of the scores, and at the agreement with people before a win rate is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from typing import Literal

from milp_ray.config.judging import LocalModelSettings
from milp_ray.config.models import PromptSettings
from milp_ray.data.chat_template import template_source
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import Sample
from milp_ray.evaluation.judges import Answer, Loss, Request, Tokens, register
from milp_ray.evaluation.judges.prompt import Limits, prompt_of, read_answer
from milp_ray.evaluation.measure import measure_responses, run_through
from milp_ray.model.base import BaseModel, load_base
from milp_ray.model.fingerprint import base_fingerprint

_ROUND = 8  # batches between two looks at the disk
_UNCUT = 1 << 24  # tokens: a prompt that is too long is made anew, not cut


class LocalModelJudge:
    """See the module, and :class:`milp_ray.evaluation.judges.Judge`.

    Args:
        base: without an adapter while it is asked.
        batch_size: prompts decoded at once.
        max_new_tokens: of an answer.
    """

    compares = True
    prices = (0.0, 0.0)

    def __init__(self, base: BaseModel, batch_size: int = 8, max_new_tokens: int = 16) -> None:
        self._base, self._batch_size, self._max_new_tokens = base, batch_size, max_new_tokens
        style: Literal["chat", "plain"] = "chat" if template_source(base.tokenizer) else "plain"
        self._prompts = Prompts(PromptSettings(style=style, max_length=_UNCUT))
        self._room = base.architecture.context - max_new_tokens
        files = json.dumps(base_fingerprint(base.settings), sort_keys=True)
        digest = hashlib.sha256(files.encode()).hexdigest()[:16]
        self.name = f"local model {digest[:6]}"
        self.identity = f"local_model {digest} {base.dtype} {style} {max_new_tokens} {self._room}"

    def content(self, request: Request) -> str:
        """The prompt, with as much background as fits."""
        return self._fitting(request)[0]

    def tokens(self, requests: Sequence[Request]) -> Tokens:
        """Counted."""
        read = sum(len(self._fitting(request)[1]) for request in requests)
        return Tokens(read, len(requests) * self._max_new_tokens, exact=True)

    def answers(self, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
        """Some batches at a time.

        Raises:
            RuntimeError: an adapter is on the base.
        """
        if self._base.attached is not None:
            raise RuntimeError("an adapter is on the base: a memory would judge")
        step = _ROUND * self._batch_size
        for start in range(0, len(requests), step):
            part = requests[start : start + step]
            encoded = [self._fitting(request)[1] for request in part]
            fitting = [index for index, ids in enumerate(encoded) if ids]
            texts = run_through(
                measure_responses(
                    self._base,
                    [encoded[index] for index in fitting],
                    self._prompts,
                    self._max_new_tokens,
                    self._batch_size,
                )
            )
            said = dict(zip(fitting, texts, strict=True))
            for index, request in enumerate(part):
                text = said.get(index)
                yield start + index, Loss.TOO_LONG if text is None else read_answer(request, text)

    def _fitting(self, request: Request) -> tuple[str, list[int]]:
        """The prompt and its tokens; no tokens where even the shortest one is too long."""
        limits = Limits()
        while True:
            prompt = prompt_of(request, limits)
            ids = self._prompts.encode_prompt(self._base.tokenizer, Sample(prompt, ""))
            if len(ids) <= self._room:
                return prompt, ids
            if (smaller := limits.smaller()) is None:
                return prompt, []
            limits = smaller


@register("local_model")
def _local_model(settings: LocalModelSettings, base: BaseModel | None = None) -> LocalModelJudge:
    return LocalModelJudge(base or load_base(settings.model), settings.batch_size, settings.max_new_tokens)
