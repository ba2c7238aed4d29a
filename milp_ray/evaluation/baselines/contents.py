"""What a prompt holds: the query alone, or texts of the user before it.

A sample sees ``history[:n_hist]`` and the user's profile, never more. Texts stand in the study's
history phrase, a line each; the profile is a line a field. How many texts there may be is bounded
by ``prompt_room``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from milp_ray.data.records import Sample, UserSplit
from milp_ray.evaluation.baselines.interface import Bench
from milp_ray.evaluation.measure import encode_prompts


@dataclass(frozen=True, slots=True)
class Chosen:
    """Texts for one prompt.

    Attributes:
        head: what stands first, such as a profile.
        texts: the most important first; the prompt has it last, right before the query.
    """

    head: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Chosen(head={len(self.head)}, texts={len(self.texts)})"


Choose = Callable[[UserSplit, Sample], Chosen]


def prompt_room(bench: Bench) -> int:
    """Tokens of a prompt at most: what a response, generated or given, leaves of the context."""
    response = max(bench.study.trial.max_new_tokens, bench.study.prompts.max_length // 2)
    room = bench.base.architecture.context - response
    asked = bench.options.max_prompt_tokens
    return room if asked is None else min(room, asked)


def texts_before(user: UserSplit, sample: Sample) -> tuple[str, ...]:
    """What the user had written before a sample, oldest first."""
    return user.history[: user.final_cut if sample.n_hist is None else sample.n_hist]


def profile_lines(user: UserSplit) -> tuple[str, ...]:
    """The user's profile, a line a field."""
    return tuple(f"{name}: {value}" for name, value in user.profile)


class QueryAlone:
    """The query, as in training and in a study's own test.

    Args:
        bench: see there.
        reserved: tokens that something else takes of the context.
    """

    def __init__(self, bench: Bench, reserved: int = 0) -> None:
        self._bench, self._reserved = bench, reserved

    def prompts(self, user: UserSplit, samples: Sequence[Sample]) -> list[list[int]]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Contents`."""
        base = self._bench.base
        half = self._bench.study.prompts.max_length // 2
        taken = max(self._bench.study.trial.max_new_tokens, half) + self._reserved
        return [list(ids) for ids in encode_prompts(base, samples, self._bench.prompts, taken)]


class TextsBefore:
    """Texts of the user, then the query.

    Args:
        bench: see there.
        choose: which texts.
        skip: whether a text that does not fit is passed over, rather than ending the list. The
            first one is always there, its beginning cut if need be.
    """

    def __init__(self, bench: Bench, choose: Choose, *, skip: bool) -> None:
        self._bench, self._choose, self._skip = bench, choose, skip
        self._prompts = bench.prompts
        self._lengths: dict[str, int] = {}

    def prompts(self, user: UserSplit, samples: Sequence[Sample]) -> list[list[int]]:
        """See :class:`~milp_ray.evaluation.baselines.interface.Contents`."""
        return [self._prompt(self._choose(user, sample), sample) for sample in samples]

    def _prompt(self, chosen: Chosen, sample: Sample) -> list[int]:
        tokenizer, room = self._bench.base.tokenizer, prompt_room(self._bench)
        alone = self._prompts.encode_prompt_after(tokenizer, "", sample, room)
        left = room - len(alone) - sum(map(self._length, chosen.head))
        kept: list[str] = []
        for text in chosen.texts:
            line = self._prompts.history(text)
            if kept and self._length(line) > left:
                if self._skip:
                    continue
                break
            kept.append(line)
            left -= self._length(line)
        before = "\n".join([*chosen.head, *reversed(kept)])
        return self._prompts.encode_prompt_after(tokenizer, before, sample, room)

    def _length(self, line: str) -> int:
        """Tokens of a line with its end."""
        if line not in self._lengths:
            tokens = self._prompts.encode_text(self._bench.base.tokenizer, f"{line}\n")
            self._lengths[line] = len(tokens)
        return self._lengths[line]
