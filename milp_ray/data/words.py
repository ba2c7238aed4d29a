"""The words of a text, in any script: what metrics compare and leaks are found by.

Text is brought to Unicode's composed form (NFC) and folded in case first. A word is a run of
letters and digits with their combining marks. Scripts without spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, …) and Korean syllables give one word per character with its marks, so that no
dictionary decides. Symbols, punctuation and underscores are no words. On text in ASCII the words
are those of the package rouge_score.

How texts are taken apart decides what a run measures: a run keeps the :class:`TextRules` it was
begun with.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import regex

Words = tuple[str, ...]

_SCRIPTS = (  # one word a character; not by Unicode's line breaking, which leaves Han and Hangul out
    "Han Hiragana Katakana Bopomofo Hangul Yi Thai Lao Khmer Myanmar "
    "Tai_Le New_Tai_Lue Tai_Tham Tai_Viet Ahom Javanese Balinese"
)
_UNSPACED = "".join(rf"\p{{{script}}}" for script in _SCRIPTS.split())
_CHARACTER = rf"[[\p{{L}}\p{{Nl}}]&&[{_UNSPACED}\u30fc]]"  # U+30FC prolongs a vowel of both kana scripts
_LETTER = rf"[[\p{{L}}\p{{Nd}}\p{{Nl}}]--{_CHARACTER}]"
# Variation selectors and enclosing marks make emoji of letters and digits: "1" and a keycap is
# still "1".
_MARK = r"[\p{M}--[\p{Me}\ufe00-\ufe0f\U000e0100-\U000e01ef]]"
_RUN = rf"{_LETTER}(?:{_LETTER}|{_MARK})*"
_WORD = regex.compile(rf"(?V1){_CHARACTER}{_MARK}*|{_RUN}")
_JOINED = regex.compile(rf"(?V1){_CHARACTER}{_MARK}*|{_RUN}(?:['’]{_RUN})*")
# Joiners, soft hyphens and marks of direction stand inside words; the zero-width space ends one.
_INVISIBLE = regex.compile(r"(?V1)[\p{Cf}--\u200b]")
_SYMBOL = regex.compile(r"(?V1)[^\s\p{Cf}\p{Cc}\p{M}]")


def words_of(text: str) -> Words:
    """The words of a text, without case and punctuation; "don't" is two."""
    if text.isascii():
        return tuple(re.findall("[a-z0-9]+", text.lower()))
    return tuple(_WORD.findall(_folded(text)))


def joined_words(text: str) -> Words:
    """The same, but an apostrophe within a word is its own: "don't" and "don’t" are don't."""
    return tuple(word.replace("’", "'") for word in _JOINED.findall(_folded(text)))


def words_or_symbols(text: str) -> Words:
    """The words of a text; of one without any, as of emoji alone, its symbols."""
    return words_of(text) or tuple(_SYMBOL.findall(unicodedata.normalize("NFC", text)))


@dataclass(frozen=True)
class TextRules:
    """How a run takes texts apart.

    Attributes:
        leaks: words by which answers are found in texts.
        rouge: words that ROUGE counts.
        persona: words that Persona-F1 counts, stop words included.
        folded: a text without case and form, by which samples are equal.
        same_query: whether a sample gives away a later one by asking the same, whatever the answers
            are.
    """

    leaks: Callable[[str], Words]
    rouge: Callable[[str], Words]
    persona: Callable[[str], Words]
    folded: Callable[[str], str]
    same_query: bool


def text_rules(number: int) -> TextRules:
    """The rules of ``data.text_rules``."""
    return _RULES[number]


def _folded(text: str) -> str:
    visible = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", visible.casefold())  # folding may take composed letters apart


# The first rules, for runs that were begun with them: ROUGE knew Latin letters without accents
# only, words fell apart at combining marks, and a query that came again was a leak.
_KANA_TO_HANGUL = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_FIRST_LEAKS = re.compile(rf"[{_KANA_TO_HANGUL}]|[^\W{_KANA_TO_HANGUL}]+")
_FIRST_PERSONA = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_FIRST = TextRules(
    leaks=lambda text: tuple(_FIRST_LEAKS.findall(text.casefold())),
    rouge=lambda text: tuple(re.findall("[a-z0-9]+", text.lower())),
    persona=lambda text: tuple(word.replace("’", "'") for word in _FIRST_PERSONA.findall(text.lower())),
    folded=str.casefold,
    same_query=True,
)
_RULES: Mapping[int, TextRules] = {
    1: _FIRST,
    2: TextRules(words_of, words_or_symbols, joined_words, _folded, same_query=False),
}
NEWEST = max(_RULES)
