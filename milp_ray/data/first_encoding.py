"""Chat prompts of runs that began before prompts followed ``apply_chat_template`` exactly.

Trials of one search are compared with each other, so such a run goes on with what its first trials
were measured on: a template rendered once, its three pieces and the texts encoded apart. New runs
use :mod:`milp_ray.data.chat_template`.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from milp_ray.data.chat_template import QUERY, RESPONSE, bad_template, no_room, render, source_of, with_clock
from milp_ray.data.control_tokens import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FirstChat:
    """A chat template's pieces: before the query, between it and the response, and after.

    Args:
        tokenizer: with a chat template.
        control: its special tokens.
        now: where the template's clock stands.

    Raises:
        ModelError: the template cannot be used.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens, now: datetime.datetime
    ) -> None:
        self._control = control
        template = with_clock(source_of(tokenizer), now)
        opening, whole = render(tokenizer, template, QUERY), render(tokenizer, template, QUERY, RESPONSE)
        if whole.count(QUERY) != 1 or whole.count(RESPONSE) != 1:
            raise bad_template("does not hold the query and the response once each")
        prompt, _, after = whole.partition(RESPONSE)
        before, found, between = prompt.partition(QUERY)
        if not found or not prompt.startswith(opening):
            raise bad_template("opens a response for generation unlike one that is given")
        eos = tokenizer.eos_token_id
        ending = control.encode_rendered(after)
        self._after = [*ending[: ending.index(eos)], eos] if eos in ending else [*ending, eos]
        self._before, self._between = control.encode_rendered(before), control.encode_rendered(between)

    def encode(self, query: str, response: str, room: int, max_length: int) -> tuple[list[int], list[int]]:
        """The prompt, of ``room`` tokens at most, and the response with its end.

        Raises:
            ModelError: there is no room for a query.
        """
        frame = len(self._before) + len(self._between)
        if frame >= room:
            raise no_room(frame, max_length)
        kept = self._control.encode_text(query)[frame - room :]
        return (
            [*self._before, *kept, *self._between],
            [*self._control.encode_text(response), *self._after],
        )
