import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from milp_ray.comparison.cells import Cell, CellCost, CellRecord, Condition, UserResult
from milp_ray.comparison.scores import Scores, score_frame
from milp_ray.comparison.tables import costs_table, gains_table, main_table, ranges_table, subset_table
from milp_ray.comparison.verdict import verdict
from milp_ray.config.comparison import Comparison

USERS = [f"u-{letter}" for letter in "abcdefgh"]


def record(
    method: str,
    losses: Mapping[str, float],
    control: float | None = None,
    seed: int = 0,
    failed: Mapping[str, str] | None = None,
) -> CellRecord:
    """A cell whose scores follow from each user's loss; the control's loss is so much higher."""
    users = {
        alias: UserResult(
            4,
            {"loss": loss, "rouge_1": 0.4 - loss / 10, "rouge_l": 0.3 - loss / 10, "persona_f1": 0.01},
            {} if control is None else {"loss": loss + control, "rouge_l": 0.3 - (loss + control) / 10},
            20.0,
        )
        for alias, loss in losses.items()
    }
    cost = CellCost(80.0, 1000, 5e4, 2048, 1.5, 96 if method == "milp" else 0)
    return CellRecord(Cell(Condition("forum", "tiny", seed), method), "d", users, cost, "note", failed or {})


def spread(mean: float, step: float = 0.1) -> dict[str, float]:
    return {alias: mean + step * (place - 3.5) for place, alias in enumerate(USERS)}


NONE, MILP = record("none", spread(2.5)), record("milp", spread(2.3), control=0.05)


def test_a_user_counts_once_whatever_the_number_of_seeds() -> None:
    scores = Scores(
        score_frame([record("none", {"u-a": 1.0}), record("none", {"u-a": 3.0, "u-b": 4.0}, seed=1)])
    )
    assert scores.of("none", "loss") == {"u-a": 2.0, "u-b": 4.0}


def test_a_gain_is_positive_where_the_method_is_better_also_for_the_loss() -> None:
    scores = Scores(score_frame([NONE, MILP]))
    for metric, size in (("loss", 0.2), ("rouge_l", 0.02)):
        gain = scores.gain("milp", "none", metric)
        assert gain.interval.value == pytest.approx(size) and gain.word == "better" and gain.better == 1
        assert scores.gain("none", "milp", metric).word == "worse"


def test_a_gain_is_over_the_users_that_both_have() -> None:
    some = record("milp", dict.fromkeys(USERS[:6], 2.0), failed={"u-g": "why", "u-h": "why"})
    gain = Scores(score_frame([NONE, some])).gain("milp", "none", "loss")
    assert gain.interval.users == 6


def test_equal_methods_have_no_clear_difference() -> None:
    noisy = record("milp", {alias: 2.5 + (0.1 if place % 2 else -0.1) for place, alias in enumerate(USERS)})
    flat = record("none", dict.fromkeys(USERS, 2.5))
    assert Scores(score_frame([flat, noisy])).gain("milp", "none", "loss").word == "no clear difference"


def test_the_main_table_has_scores_times_100_and_controls_in_brackets() -> None:
    table = main_table(score_frame([NONE, MILP]))
    rows = {row[2]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert rows["milp"]["loss"].startswith("2.300 [2.") and rows["milp"]["loss"].endswith("(2.350)")
    assert rows["none"]["ROUGE-L"].startswith("5.00 [") and "(" not in rows["none"]["ROUGE-L"]
    numbers = table.numbers.set_index(["method", "metric"])
    assert numbers.loc[("milp", "loss"), "mean"] == pytest.approx(2.3)
    assert numbers.loc[("milp", "loss"), "control"] == pytest.approx(2.35)


def test_gains_are_marked_where_the_interval_leaves_0_out() -> None:
    table = gains_table(score_frame([NONE, MILP]), "none")
    [row] = table.rows
    assert row[2] == "milp" and re.fullmatch(r"\+0\.200 \[\+0\.200, \+0\.200\]\*, 100 %", row[3])


def test_a_subset_has_other_names_and_dashes_where_nothing_was_measured() -> None:
    methods = {"milp": "full MiLP", "milp_inject": "memory injection"}
    table = subset_table(score_frame([MILP]), "t", "c", methods, ("loss",))
    assert [row[0] for row in table.rows] == ["full MiLP", "memory injection"]
    assert table.rows[1][1] == "—"


def test_costs_are_a_user_and_failures_are_counted() -> None:
    table = costs_table([record("milp", spread(2.0), failed={"u-x": "why"})])
    [row] = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert row["training, s a user"] == "10.0" and row["trials"] == "96" and row["users failed"] == "1"
    assert row["stored, KiB a user"] == "2"


def test_ranges_are_the_studys() -> None:
    comparison = Comparison.model_validate(
        {
            "name": "a",
            "datasets": {"forum": {"path": "d"}},
            "models": {"tiny": {"path": "m"}},
            "methods": ("none",),
            "memory": {"ranks": (2, 4), "max_loras": 5},
        }
    )
    assert [row[1] for row in ranges_table(comparison).rows] == ["0, 1", "1 to 5", "2, 4"]


def test_tables_are_written_as_csv_markdown_and_latex(tmp_path: Path) -> None:
    main_table(score_frame([NONE, MILP])).write(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    latex = (tmp_path / "table_2_scores.tex").read_text(encoding="utf-8")
    assert r"\toprule" in latex and r"95 \%" in latex and "table_2" in latex


def test_the_verdict_says_who_wins_and_what_is_personal() -> None:
    records = [NONE, MILP]
    page = verdict(score_frame(records), records)
    assert "`milp` against the bare model: better (+0.200 nats per token of loss" in page
    assert "A user's own `milp` against another user's: better (+0.050 nats" in page
    assert "Best in nats per token of loss: `milp` (2.300)." in page
    assert "10.0 s of training in 96 trials, 2 KiB kept" in page


def test_the_verdict_says_where_it_loses_and_what_is_missing() -> None:
    worse = record("milp", spread(2.8), control=-0.1, failed={"u-x": "why"})
    page = verdict(score_frame([NONE, worse]), [NONE, worse], unfinished=3)
    assert (
        "3 cells are not finished" in page and "Users without a result, who are in no mean: milp 1." in page
    )
    assert "`milp` loses to `none`" in page
    assert "A user's own `milp` against another user's: worse" in page


def test_of_few_users_the_verdict_says_that_they_are_few() -> None:
    """Intervals of three users may leave 0 out, and mean nothing."""
    few = [
        record(r.cell.method, {u: r.users[u].scores["loss"] or 0 for u in USERS[:3]}) for r in (NONE, MILP)
    ]
    page = verdict(score_frame(few), few)
    assert "`milp` against the bare model: too few users to say (+0.200 nats" in page
    assert "no clear difference (" not in page and "Best in" not in page and "beats" not in page
