"""Control tokens of a vocabulary, and texts as tokens in which a user never writes one.

Control tokens are the special tokens and every added token that the chat template spells: role and
thinking tokens are often added without the flag ``special``, and ``split_special_tokens`` does not
touch those. Bare words and white space that a vocabulary adds are no control tokens: users write
them, and servers encode them as they are. Does *not* render templates
(:mod:`milp_ray.data.chat_template`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "|")  # what a text is encoded after, so that no prefix is put before its first word


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a prompt: of the template, or of a user, in which nothing is a control token."""

    text: str
    of_user: bool = False

    def __repr__(self) -> str:
        return f"Segment(characters={len(self.text)}, of_user={self.of_user})"


class ControlTokens:
    """The control tokens of a tokenizer with a chat template.

    Args:
        tokenizer: whose vocabulary it is.
        template: what the chat template spells; empty where there is none.

    Attributes:
        ids: the control tokens' ids. The unknown token is not among them: it stands for a user's
            characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "") -> None:
        self._tokenizer = tokenizer
        special, flagless = _contents(tokenizer, template)
        everything = {**special, **flagless}
        unknown = tokenizer.unk_token_id
        self.ids = frozenset(everything.values()) - {unknown}
        self._id_of = everything
        self._spelling = _any_of(everything)
        self._special_spelling = _any_of(special)
        self._flagless_spelling = _any_of(flagless)

    def spelled(self, text: str) -> bool:
        """Whether a control token is spelled in ``text``."""
        return self._spelling.search(text) is not None

    def spellings(self, text: str) -> list[str]:
        """The control tokens that are spelled in ``text``, in order."""
        return self._spelling.findall(text)

    def replaced(self, text: str, stand_in: str) -> tuple[str, list[str]]:
        """The text with ``stand_in`` and a number for every spelling, and the spellings."""
        found: list[str] = []

        def replace(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{stand_in}{len(found) - 1}x"

        return self._spelling.sub(replace, text), found

    def among(self, ids: Sequence[int]) -> list[int]:
        """The control tokens of ``ids``, in order."""
        return [token for token in ids if token in self.ids]

    def without(self, text: str) -> str:
        """The text without special tokens, as ``decode(skip_special_tokens=True)`` leaves it."""
        return self._special_spelling.sub("", text)

    def id_of(self, spelling: str) -> int:
        """The id of a control token."""
        return self._id_of[spelling]

    def encode_rendered(self, text: str) -> list[int]:
        """The tokens of a rendered template, as ``apply_chat_template`` makes them."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False) if text else []
        return ids

    def encode_text(self, text: str, *, continued: bool = False) -> list[int]:
        """The tokens of a user's text, control tokens never among them.

        Args:
            text: what was written.
            continued: other text goes before it, so it gets none of the blank that SentencePiece
                vocabularies put before a text.
        """
        out: list[int] = []
        for number, part in enumerate(self._cut(text)):
            for token in self._encode(part, continued or number > 0):
                if token in self.ids:
                    # Some vocabularies reach "</s>" by ordinary merges of "<", "/", "s", ">": spell
                    # it out.
                    spelling = self._tokenizer.convert_ids_to_tokens(token)
                    spelled = [self._encode(char, True) for char in spelling]
                    out.extend(one for ids in spelled for one in ids if one not in self.ids)
                else:
                    out.append(token)
        return out

    def encode_segments(self, segments: Sequence[Segment], *, continued: bool = False) -> list[int]:
        """The tokens of a prompt where only the template's spellings make control tokens.

        What stands between two control tokens is encoded at once, so that the rest is as it is
        served.
        """
        out: list[int] = []
        for run, control in self._runs(segments):
            if run:
                out += self.encode_text(run, continued=continued if not out else not self._prefixes_anew)
            if control:
                out.append(self._id_of[control])
        return out

    def _runs(self, segments: Sequence[Segment]) -> Iterator[tuple[str, str]]:
        """Text and the control token after it; the last is empty."""
        run, strip = "", False
        for segment in segments:
            pieces = (
                [segment.text] if segment.of_user else re.split(f"({self._spelling.pattern})", segment.text)
            )
            for number, piece in enumerate(pieces):
                if number % 2 == 0:
                    run += piece.lstrip() if strip and not run else piece
                    continue
                added = self._tokenizer.added_tokens_decoder.get(self._id_of[piece])
                yield (run.rstrip() if getattr(added, "lstrip", False) else run), piece
                run, strip = "", getattr(added, "rstrip", False)
        yield run, ""

    @cached_property
    def _prefixes_anew(self) -> bool:
        """Whether a text after a control token begins as at the start (old SentencePiece files)."""
        control = next((spelling for spelling in self._id_of if self._id_of[spelling] in self.ids), None)
        return control is None or self.encode_rendered(f"{control}a")[1:] == self._raw("a")

    def _cut(self, text: str) -> Iterator[str]:
        """The text, cut behind the first character of added tokens that are not ``special``."""
        begin = 0
        while match := self._flagless_spelling.search(text, begin):
            yield text[begin : match.start() + 1]
            begin = match.start() + 1
        yield text[begin:]

    def _encode(self, text: str, continued: bool) -> list[int]:
        for anchor in _ANCHORS if continued else ():
            before, ids = self._raw(anchor), self._raw(anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._raw(text)

    def _raw(self, text: str) -> list[int]:
        # verbose=False: texts longer than the model are expected and cut afterwards, not warned
        # about.
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return ids


def _contents(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[dict[str, int], dict[str, int]]:
    """Control tokens and their ids: those that are flagged as special, and those that are not."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    flagless: dict[str, int] = {}
    for number, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            special[added.content] = number
        elif added.content in template and not added.content.isspace() and not added.content.isalnum():
            flagless[added.content] = number
    return special, {content: number for content, number in flagless.items() if content not in special}


def _any_of(contents: Sequence[str] | dict[str, int]) -> re.Pattern[str]:
    """Longer ones first: a token goes before those it contains."""
    longest = sorted((re.escape(content) for content in contents if content), key=len, reverse=True)
    return re.compile("|".join(longest) or "(?!)")
