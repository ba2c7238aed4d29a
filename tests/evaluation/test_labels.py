"""Labels in responses and their scores, against hand-worked values and scikit-learn's rules."""

from __future__ import annotations

import math
import random

import pytest

from milp_ray.evaluation.labels import LABELS, find_label, label_scores


@pytest.mark.parametrize(
    ("data", "response", "label"),
    [
        ("lamp_1", "[2]", "[2]"),
        ("lamp_1", " 2. ", "[2]"),
        ("lamp_1", "I would cite [1].", "[1]"),
        ("lamp_1", "[1] or [2]", None),
        ("lamp_1", "12", None),
        ("lamp_2", "Sci-Fi", "sci-fi"),
        ("lamp_2", "a dark comedy, surely", "dark comedy"),
        ("lamp_2", "dark comedy and comedy", None),
        ("lamp_2", "classical music", None),
        ("lamp_2_old", "Food & Drink!", "food & drink"),
        ("lamp_3", "5", "5"),
        ("lamp_3", "4.0", "4"),
        ("lamp_3", "I give it 4 stars: 4", "4"),
        ("lamp_3", "4/5", "4"),
        ("lamp_3", "4.5", None),
        ("lamp_3", "3-4", None),
        ("lamp_3", "3 – 4", None),
        ("lamp_3", "-4", None),
        ("lamp_3", "7", None),
        ("lamp_3", "", None),
        ("personamem", "c", "(c)"),
        ("personamem", "C) since you like it", "(c)"),
        ("personamem", "The answer is (c), not a cat", "(c)"),
        ("personamem", "(a), or (b)", None),
        ("personamem", "because", None),
    ],
)
def test_a_label_is_found_where_it_is_the_only_one(data: str, response: str, label: str | None) -> None:
    assert find_label(response, LABELS[data]) == label


def test_the_whole_rule_is_that_of_lamps_evaluator() -> None:
    assert find_label(" [1]\n", LABELS["lamp_1"], "whole") == "[1]"
    assert find_label("I would cite [1].", LABELS["lamp_1"], "whole") is None
    assert find_label("Comedy", LABELS["lamp_2"], "whole") is None


def test_accuracy_and_macro_f1_worked_by_hand() -> None:
    found = label_scores(["[1]", "[2]", "[1]", "no idea"], ["[1]", "[2]", "[2]", "[1]"], LABELS["lamp_1"])
    # [1]: one hit of 2 said and 2 gold; [2]: one hit of 1 said and 2 gold.
    assert (found.accuracy, found.unlabelled, found.count) == (0.5, 1, 4)
    assert found.macro_f1 == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert math.isnan(found.mae) and math.isnan(found.rmse)


def test_macro_f1_counts_labels_that_nobody_names() -> None:
    """scikit-learn, which LaMP's evaluator calls with all labels, gives these 0."""
    found = label_scores(["comedy", "action"], ["comedy", "action"], LABELS["lamp_2"])
    assert found.accuracy == 1.0 and found.macro_f1 == pytest.approx(2 / 15)


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_is_scikit_learns_as_lamp_calls_it(seed: int) -> None:
    """With all labels, unknown ones -1."""
    metrics = pytest.importorskip(
        "sklearn.metrics", reason="Ax brings scikit-learn; milp_ray does not need it"
    )
    labels, rng = LABELS["lamp_3"], random.Random(seed)
    gold, said = rng.choices(labels[:4], k=60), rng.choices([*labels, "none"], k=60)
    numbers = [[labels.index(x) if x in labels else -1 for x in texts] for texts in (gold, said)]
    expected = metrics.f1_score(*numbers, labels=range(5), average="macro", zero_division=0)
    found = label_scores(said, gold, labels, "whole")
    assert found.macro_f1 == pytest.approx(expected)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(*numbers))


def test_a_rating_that_cannot_be_read_is_at_the_far_end_of_the_scale() -> None:
    responses, gold = ["5", "2", "great", "9", "awful"], ["4", "2", "5", "2", "3"]
    found = label_scores(responses, gold, LABELS["lamp_3"])
    errors = [1, 0, 4, 3, 2]
    assert (found.accuracy, found.unlabelled) == (0.2, 3)
    assert found.mae == pytest.approx(sum(errors) / 5)
    assert found.rmse == pytest.approx(math.sqrt(sum(error**2 for error in errors) / 5))


def test_without_responses_there_is_no_score() -> None:
    found = label_scores([], [], LABELS["lamp_3"])
    assert all(math.isnan(v) for v in (found.accuracy, found.macro_f1, found.mae, found.rmse))


def test_what_does_not_fit_together_is_a_mistake_told_without_text() -> None:
    with pytest.raises(ValueError, match="1 responses beside 2 gold"):
        label_scores(["1"], ["1", "2"], LABELS["lamp_3"])
    with pytest.raises(ValueError, match="gold label 1 is none of the data set's 5") as caught:
        label_scores(["1", "2"], ["1", "secret"], LABELS["lamp_3"])
    assert "secret" not in str(caught.value)
