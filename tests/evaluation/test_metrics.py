"""Text metrics, against values worked out by hand."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from milp_ray.data.personas import generate_personas
from milp_ray.evaluation.compare import TestScores
from milp_ray.evaluation.metrics import SCORES, STOP_WORDS, chrf, persona_f1, rouge

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


_PUNCTUATED = [
    "Don't panic: it's 3.14 (or 22/7), isn't it?",
    "Dont panic; its 3,14 or 22:7 -- isn t it",
    "“A well-known snake_case name,” she said… — for £5 or 5€, 100%!",
    "a well known snake case name she said for 5 or 5 100",
    "e.g. https://example.com/a_b?c=d&e#f, user@example.org\t\nU.S.A. O'Neill’s",
    "e g https example com a b c d e f user example org U S A O Neill s",
    "",
    " -- ... !!! ",
]


def rouge_by_the_package(prediction: str, reference: str) -> dict[str, float]:
    found = RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score(reference, prediction)
    return {"rouge_1": found["rouge1"].fmeasure, "rouge_l": found["rougeL"].fmeasure}


def test_rouge_of_english_is_the_packages_own() -> None:
    users = generate_personas(6, seed=3)
    texts = [text for user in users for text in (*user.history[:8], *(s.response for s in user.samples[:4]))]
    pairs = [(one, other) for one in _PUNCTUATED[:6] for other in _PUNCTUATED]
    pairs += [(texts[i], texts[j]) for i in range(len(texts)) for j in (i, (7 * i + 1) % len(texts))]
    assert len(pairs) > 150
    for one, other in pairs:
        assert rouge([one], [other]) == rouge_by_the_package(one, other), (one, other)


@given(
    *[st.text(st.characters(max_codepoint=127), min_size=1).filter(lambda t: any(map(str.isalnum, t)))] * 2
)
def test_rouge_of_ascii_is_the_packages_own(one: str, other: str) -> None:
    assert rouge([one], [other]) == rouge_by_the_package(one, other)


SCRIPTS = {
    "Chinese": "我今天早上去公园散步。",
    "Japanese": "私は毎朝コーヒーを飲みます。",
    "Korean": "저는 매일 아침 차를 마셔요",
    "Thai": "ฉันดื่มชาทุกเช้า",
    "Burmese": "ကျွန်တော် လက်ဖက်ရည် သောက်တယ်",
    "Khmer": "ខ្ញុំផឹកតែរាល់ព្រឹក",
    "Hindi": "मैं हर सुबह चाय पीता हूँ",
    "Tamil": "நான் தினமும் தேநீர் குடிக்கிறேன்",
    "Arabic": "أحب القهوة في الصباح",
    "Persian": "می‌خواهم چای بنوشم",
    "Hebrew": "אני אוהב תה",
    "Russian": "Я люблю чай",
    "Greek": "Μου αρέσει ο καφές",
    "Georgian": "მე მიყვარს ჩაი",
    "Amharic": "ሻይ እወዳለሁ",
    "accents": "Der Bäcker hört Gänse; où est l’élève?",
    "emoji": "👍🏽❤️",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_an_identical_response_scores_1_in_any_script_and_form(text: str) -> None:
    for said in (text, unicodedata.normalize("NFD", text)):
        assert rouge([said], [text]) == {"rouge_1": 1.0, "rouge_l": 1.0}
        assert chrf([said], [text]) == pytest.approx(1.0)
        if text != SCRIPTS["emoji"]:  # which are no words of a history
            assert persona_f1([said], [[text]]) == 1.0


def test_what_texts_share_is_counted_in_any_script() -> None:
    other_year = rouge(["他们2024年买了房子"], ["我在2024年去了北京"])
    assert other_year["rouge_1"] == pytest.approx(3 / 8)  # 2024, 年 and 了 of 8 words each
    assert rouge(["für"], ["far"])["rouge_1"] == 0.0
    assert rouge(["Der Bäcker sieht Gänse"], ["Der Bäcker hört Gänse"])["rouge_l"] == pytest.approx(3 / 4)
    assert persona_f1(["किताब बहुत सुन्दर है"], [["हिन्दी में लिखो"]]) == 0.0
    assert persona_f1(["猫坐在河边"], [["一只猫坐在大河边看船"]]) == pytest.approx(2 * 5 / (5 + 10))


def test_a_run_that_was_begun_with_the_first_rules_goes_on_with_them() -> None:
    assert rouge(["Я люблю чай"], ["Я люблю чай"], rules=1)["rouge_1"] == 0.0
    assert persona_f1(["猫坐"], [["猫坐在河边"]], rules=1) == 0.0


# By sacrebleu 2.5.1, sentence_chrf(prediction, [reference]).score / 100.
SACREBLEU = [
    ("the patient should rest and drink water", "the patient needs rest and water", 0.571110960242),
    ("a b c d", "d c b a", 0.25),
    ("resting", "rested", 0.335254372019),
    ("Hello", "hello", 0.543333333333),
    ("ab", "abcdefgh", 0.234042553191),
    ("", "a", 0.0),
    ("x", "y", 0.0),
    ("the cat  sat\n on the mat.", "the cat sat on the mat.", 1.0),
    ("我今天下午去公园散步。", "我今天早上去公园散步。", 0.48351972102),
    ("मैं हर सुबह चाय पीता हूँ", "मैं चाय पीता हूँ", 0.707723879832),
    ("Я люблю чёрный чай", "Я люблю кофе", 0.386785740262),
    ("aaaaaa", "aaa", 0.756578947368),
    ("ฉันดื่มชาทุกเช้า", "ฉันดื่มกาแฟทุกเช้า", 0.587149445501),
    ("👍👍 great", "👍 great!", 0.734523809524),
]


@pytest.mark.parametrize(("prediction", "reference", "score"), SACREBLEU)
def test_chrf_is_sacrebleus(prediction: str, reference: str, score: float) -> None:
    assert chrf([prediction], [reference]) == pytest.approx(score, abs=1e-11)


def test_chrf_is_the_mean_over_pairs() -> None:
    assert chrf(["a", "x"], ["a", "y"]) == 0.5
    assert math.isnan(chrf([], []))
    with pytest.raises(ValueError, match="argument"):
        chrf(["a"], [])


def test_the_final_test_gives_the_declared_scores() -> None:
    assert tuple(field.name for field in fields(TestScores)) == SCORES


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
