from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milp_ray.data.leaks import Answers, answer_of, check_no_leak, check_parts, repeated
from milp_ray.data.records import Sample, UserSplit
from milp_ray.data.words import words_of
from milp_ray.errors import LeakError

LONG = "The old lighthouse keeper sold seven green boats."


def sample(name: str, n_hist: int) -> Sample:
    words = f"alpha{name} beta{name} gamma{name} delta{name} epsilon{name}"
    return Sample(f"what of {name} is it then this time", words, n_hist=n_hist)


CLEAN = UserSplit(
    alias="u-x",
    history=tuple(f"text number {i}" for i in range(8)),
    train=(sample("a", 1), sample("b", 2)),
    validation=(sample("c", 4),),
    test=(sample("d", 6),),
    search_cut=4,
    final_cut=6,
)


def test_a_clean_split_passes() -> None:
    check_no_leak(CLEAN)


def with_text(place: int, text: str) -> UserSplit:
    history = list(CLEAN.history)
    history[place] = text
    return replace(CLEAN, history=tuple(history))


VALIDATION, TEST = CLEAN.validation[0], CLEAN.test[0]
LEAKS = {
    "validation answer in the search history": with_text(3, VALIDATION.response),
    "test answer in the search history": with_text(0, TEST.response),
    "test answer in the final history": with_text(5, TEST.response),
    "answer with a tag, other case, more spaces": with_text(0, f"Doctor:  {TEST.response.upper()} "),
    "answer inside a longer text": with_text(0, f"He said: '{TEST.response}.' And left."),
    "the same exchange in train and test": replace(CLEAN, train=(TEST,)),
    "the same exchange in train and validation": replace(CLEAN, train=(VALIDATION,)),
    "the same exchange in validation and test": replace(CLEAN, validation=(replace(TEST, n_hist=4),)),
    "a short exchange in train and test": replace(
        CLEAN, train=(Sample("hi", "yo", n_hist=0),), test=(Sample("Hi ", "yo", n_hist=6),)
    ),
    "the same exchange in another Unicode form": replace(
        CLEAN, train=(Sample("für", "nu\u0308n"),), test=(Sample("fu\u0308r", "nün", n_hist=6),)
    ),
    "a train sample with a test answer in its context": replace(
        CLEAN, train=(replace(CLEAN.train[0], context=TEST.response),)
    ),
    "search_cut after the first validation sample": replace(CLEAN, search_cut=5),
    "final_cut after the first test sample": replace(CLEAN, final_cut=7),
}  # fmt: skip


@pytest.mark.parametrize("split", LEAKS.values(), ids=LEAKS.keys())
def test_leaks_raise_without_text(split: UserSplit) -> None:
    with pytest.raises(LeakError) as caught:
        check_no_leak(split)
    assert str(caught.value).startswith("u-x: ")
    assert "alpha" not in str(caught.value).lower()


@pytest.mark.parametrize(
    "split",
    [
        with_text(5, VALIDATION.response),  # the final job may train on validation samples
        with_text(7, TEST.response),  # after everything
        replace(with_text(0, "thank you"), test=(Sample("what", "Thank you", n_hist=6),)),
        replace(CLEAN, train=(Sample("Go on", "a b"),), test=(Sample("go on", "c d", n_hist=6),)),
        replace(CLEAN, train=(replace(TEST, response="other"),)),
    ],
    ids=["validation answer before test", "late text", "short answer", "short query", "same query"],
)
def test_what_is_no_leak_passes(split: UserSplit) -> None:
    check_no_leak(split)


def test_short_responses_and_tags_are_no_evidence() -> None:
    assert answer_of(Sample("q", "yes, thank you so")) == ()  # 17 characters
    assert answer_of(Sample("q", "incomprehensibilities notwithstanding")) == ()  # 2 words
    assert answer_of(Sample("q", f"Doctor: {LONG}")) == words_of(LONG)
    assert answer_of(Sample("q", "請多喝水並且好好休息三天如果發燒請立即回診謝謝您"))


word = st.sampled_from(["red", "blue", "green", "white", "black", "orange"])


@given(st.lists(word, min_size=4, max_size=7), st.lists(word, max_size=30))
def test_an_answer_is_inside_exactly_where_its_words_follow_one_another(
    answer: list[str], text: list[str]
) -> None:
    answers = Answers([Sample("q", " ".join(answer), n_hist=1)])
    evidence = len(" ".join(answer)) >= 20
    expected = evidence and f" {' '.join(answer)} " in f" {' '.join(text)} "
    assert bool(answers.inside(" ".join(text))) == expected
    assert answers.before_due([" ".join(text)] * 2) == ([0] if expected else [])


def test_repeated_finds_places() -> None:
    early = [Sample("hi", "yo"), Sample("x", "y"), Sample(LONG, "z"), Sample("w", LONG)]
    late = [Sample("Hi", "yo"), Sample(LONG, "other"), Sample("v", LONG.lower())]
    assert repeated(early, late) == [0, 2, 3]
    assert repeated(early, []) == []
    assert repeated([Sample(LONG, "z"), Sample(LONG, "z", context="c")], [Sample(LONG, "y")]) == []


def test_by_the_first_rules_a_long_query_that_comes_again_is_a_leak() -> None:
    early = [Sample(LONG, "z"), Sample(LONG, "z", context="c"), Sample("hi", "z")]
    late = [Sample(LONG, "y"), Sample("hi", "y")]
    assert (repeated(early, late, rules=1), repeated(early, late)) == ([0], [])
    split = replace(CLEAN, train=(replace(TEST, response="other"),))
    check_no_leak(split)
    with pytest.raises(LeakError, match="1 train samples repeat"):
        check_no_leak(split, rules=1)


def test_answers_are_found_in_other_forms_and_in_scripts_without_spaces() -> None:
    answer = "ฉันดื่มชาทุกเช้าก่อนไปทำงาน"
    assert Answers([Sample("q", answer, n_hist=1)]).inside(f"เมื่อวานเขาบอกว่า{answer}แล้วก็ไป")
    german = "Über große Dörfer fährt ein müder Bäcker"
    apart = unicodedata.normalize("NFD", f"Er sagt: {german.upper()}!")
    assert Answers([Sample("q", german, n_hist=1)]).inside(apart)


def one(alias: str, part: str, *samples: Sample) -> UserSplit:
    parts = {name: samples if name == part else () for name in ("train", "validation", "test")}
    return UserSplit(alias, ("x",), search_cut=1, final_cut=1, **parts)


def test_parts_of_a_population() -> None:
    train, validation, test = (
        one("a", "train", sample("a", 1)),
        one("b", "validation", sample("b", 1)),
        one("c", "test", sample("c", 1)),
    )
    check_parts([train], [validation], [test])
    with pytest.raises(LeakError, match="in two parts"):
        check_parts([train], [validation], [test, replace(test, alias="a")])
    with pytest.raises(LeakError, match="1 train samples"):
        check_parts([replace(train, train=test.test)], [validation], [test])
    with pytest.raises(LeakError, match="1 validation samples"):
        check_parts([train], [replace(validation, validation=test.test)], [test])
    with pytest.raises(LeakError, match="history texts"):
        check_parts([train], [validation], [replace(test, history=(test.test[0].response,))])
