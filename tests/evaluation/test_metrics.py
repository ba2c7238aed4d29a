"""Text metrics, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from milp_ray.evaluation.metrics import STOP_WORDS, persona_f1, rouge

STOP = {"i", "my", "and", "is", "have", "a"}


@pytest.mark.parametrize(
    ("prediction", "reference", "one", "longest"),
    [
        ("the patient should rest and drink water", "the patient needs rest and water", 10 / 13, 10 / 13),
        ("a b c d", "d c b a", 1.0, 0.25),
        ("resting", "rested", 0.0, 0.0),  # no stemming
        ("", "a b", 0.0, 0.0),
        ("a b", "", 0.0, 0.0),
    ],
)
def test_rouge(prediction: str, reference: str, one: float, longest: float) -> None:
    assert rouge([prediction], [reference]) == pytest.approx({"rouge_1": one, "rouge_l": longest})


def test_rouge_is_the_mean_over_pairs() -> None:
    scores = rouge(["a b c d", "x y"], ["d c b a", "z"])
    assert scores == pytest.approx({"rouge_1": 0.5, "rouge_l": 0.125})
    assert all(math.isnan(value) for value in rouge([], []).values())
    with pytest.raises(ValueError, match="argument"):
        rouge(["a"], [])


def test_persona_f1() -> None:
    history = ["my dog is old", "i have a cat"]
    assert persona_f1(["i love my dog and my cat"], [history], STOP) == pytest.approx(2 / 3)
    assert persona_f1(["i love my dog and my cat", "fish"], [history, history], STOP) == pytest.approx(1 / 3)


def test_persona_f1_sees_only_the_given_history() -> None:
    assert persona_f1(["dog"], [[]], STOP) == 0.0
    assert persona_f1(["my and"], [["my and"]], STOP) == 0.0
    assert persona_f1(["Dog!", "dog"], [["DOG"], ["cat"]], STOP) == 0.5
    assert math.isnan(persona_f1([], []))
    with pytest.raises(ValueError, match="argument"):
        persona_f1(["a"], [])


def test_words_of_any_script_and_apostrophes() -> None:
    assert persona_f1(["жить хорошо"], [["Хорошо"]], STOP) == pytest.approx(2 / 3)
    assert persona_f1(["don’t"], [["you"]]) == 0.0
    assert persona_f1(["o’clock"], [["o'clock"]]) == 1.0


def test_stop_words_are_words() -> None:
    assert {"the", "and", "i", "don't"} <= STOP_WORDS
    assert all(word == word.lower() for word in STOP_WORDS)
