"""What a word is, in scripts of every kind."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milp_ray.data.words import joined_words, text_rules, words_of, words_or_symbols


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He's 3.14 times well-off, snake_case!", "he s 3 14 times well off snake case"),
        ("Der Bäcker hört Gänse", "der bäcker hört gänse"),
        ("STRASSE Straße", "strasse strasse"),
        ("ΟΔΟΣ οδοσ", "οδοσ οδοσ"),
        ("Я люблю чай", "я люблю чай"),
        ("हिन्दी में लिखो", "हिन्दी में लिखो"),  # signs of vowels are marks
        ("أُحِبُّ القهوة", "أُحِبُّ القهوة"),
        ("می‌خواهم بروم", "میخواهم بروم"),  # a joiner stands inside a word
        ("ดื่มชา", "ดื่ ม ช า"),  # one word a character, with its marks
        ("他们2024年买了GPU", "他 们 2024 年 买 了 gpu"),
        ("コーヒー", "コ ー ヒ ー"),
        ("좋아해", "좋 아 해"),
        ("မာစာ", "မာ စာ"),
        ("foo\u200bbar\u00adbaz", "foo barbaz"),
        ("1️⃣ First 👍🏽", "1 first"),
    ],
)
def test_words(text: str, words: str) -> None:
    assert words_of(text) == tuple(unicodedata.normalize("NFC", words).split())


def test_an_apostrophe_joins_where_asked() -> None:
    assert joined_words("Don’t! It's l'été, 'quoted'") == ("don't", "it's", "l'été", "quoted")
    assert words_of("Don’t") == ("don", "t")


def test_symbols_are_words_only_where_there_is_no_other() -> None:
    assert words_or_symbols("👍🏽 ❤️") == ("👍", "🏽", "❤")
    assert words_or_symbols("good 👍") == ("good",)
    assert words_or_symbols(" \n") == ()


@given(st.text())
def test_the_form_of_a_text_changes_no_word(text: str) -> None:
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    for words in (words_of, joined_words, words_or_symbols):
        assert words(composed) == words(apart)


def test_the_first_rules_are_as_they_were() -> None:
    first = text_rules(1)
    assert first.rouge("Bäcker чай don't") == ("b", "cker", "don", "t")
    assert first.persona("हिन्दी don’t") == ("ह", "न", "द", "don't")
    assert first.leaks("snake_case 猫坐 Gänse") == ("snake_case", "猫", "坐", "gänse")
    assert first.same_query and not text_rules(2).same_query
