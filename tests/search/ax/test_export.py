from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from milp_ray.errors import SearchError, StorageError
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Engine, Objective
from milp_ray.search.ax.export import build_client, parameters_of, save_client
from tests.search.problems import LOSS_AND_ROUGE, measure, size, small_space


def engine(space: MemorySpace, objectives: tuple[Objective, ...] = LOSS_AND_ROUGE) -> Engine:
    """8 proposals, of which the third failed and the fourth is running."""
    made = Engine(space, objectives, initial=8, surrogate="random")
    measured = [o.name for o in objectives if o.exact is None]
    for proposal in made.ask(8):
        if proposal.id == 2:
            made.fail(proposal.id, "out of memory")
        elif proposal.id != 3:
            made.tell(proposal.id, {name: measure(proposal.placement)[name] for name in measured})
    return made


def test_ax_reads_back_every_trial(tmp_path: Path) -> None:
    from ax.api.client import Client

    made = engine(small_space(), (*LOSS_AND_ROUGE, Objective("size", "min", exact=size)))
    made.set_reference({"loss": 3.0, "rouge_l": 0.0})
    path = tmp_path / "experiments" / "u.json"
    save_client(build_client("u-abc", made), path)
    loaded = Client.load_from_json_file(str(path))
    table = loaded.summarize().set_index("trial_index")
    assert list(table.index) == list(range(8))
    assert table.trial_status.value_counts().to_dict() == {"COMPLETED": 6, "FAILED": 1, "RUNNING": 1}
    assert table.loc[2, "status_reason"] == "out of memory"
    for seen in made.observations:
        row = table.loc[seen.id]
        assert {name: row[name] for name in ("loss", "rouge_l", "size")} == pytest.approx(dict(seen.values))
        assert tuple(bool(row[f"gate_{layer}"]) for layer in range(4)) == seen.config.gates
        assert (row["num_loras"], row["rank"]) == (seen.config.num_loras, seen.config.rank)
    front = {trial for _, _, trial, _ in loaded.get_pareto_frontier()}
    assert front <= {seen.id for seen in made.front()}
    assert front


def test_ax_predicts_and_analyses_what_is_read_back(tmp_path: Path) -> None:
    """With one objective that is constant, as ROUGE of nothing but wrong words."""
    from ax.analysis.plotly.cross_validation import CrossValidationPlot
    from ax.analysis.plotly.sensitivity import SensitivityAnalysisPlot
    from ax.api.client import Client

    made = Engine(small_space(), LOSS_AND_ROUGE, initial=8, surrogate="random")
    for proposal in made.ask(8):
        made.tell(proposal.id, {"loss": measure(proposal.placement)["loss"], "rouge_l": 0.0})
    save_client(build_client("u-abc", made), tmp_path / "u.json")
    loaded = Client.load_from_json_file(str(tmp_path / "u.json"))
    analyses = [CrossValidationPlot(metric_names=["loss"]), SensitivityAnalysisPlot(metric_name="loss")]
    titles = [card.title for card in flat(loaded.compute_analyses(analyses, display=False))]
    assert len(titles) >= 2 and not any("Not Available" in title for title in titles), titles
    # Only now: Ax saves no fitted model, and fits none to predict
    # (findings/ax-predict-after-load.sh).
    (found,) = loaded.predict([dict(parameters_of(made.space, made.observations[0].config))])
    assert found["loss"][0] == pytest.approx(made.observations[0].values["loss"], abs=0.5)


@pytest.mark.nightly
def test_all_of_axs_analyses_come_of_what_is_read_back_and_then_it_predicts(tmp_path: Path) -> None:
    """With three objectives, a failed and a running trial, as `milp-ray experiment` saves them."""
    from ax.api.client import Client

    made = engine(small_space(), (*LOSS_AND_ROUGE, Objective("size", "min", exact=size)))
    made.set_reference({"loss": 3.0, "rouge_l": 0.0})
    save_client(build_client("u-abc", made), tmp_path / "u.json")
    loaded = Client.load_from_json_file(str(tmp_path / "u.json"))
    cards = flat(loaded.compute_analyses(display=False))
    assert [card.title for card in cards if "Not Available" in card.title] == []
    names = {card.name for card in cards}
    assert names >= {
        "ArmEffectsPlot", "ScatterPlot", "SensitivityAnalysisPlot", "SlicePlot", "ContourPlot",
        "CrossValidationPlot", "BestTrials", "Summary", "UtilityProgressionAnalysis",
    }  # fmt: skip
    found = loaded.predict([dict(parameters_of(made.space, seen.config)) for seen in made.observations])
    assert [set(one) for one in found] == [{"loss", "rouge_l", "size"}] * len(made.observations)


def flat(cards: Iterable[Any]) -> list[Any]:
    """The cards in groups of cards."""
    result = []
    for card in cards:
        children = getattr(card, "children", None)
        result += flat(children) if children else [card]
    return result


def test_thresholds_and_directions() -> None:
    made = engine(small_space())
    assert "objective_thresholds=[]" in repr(build_client("x", made)._experiment.optimization_config)
    made.set_reference({"loss": 3.5, "rouge_l": -2e-7})
    shown = repr(build_client("x", made)._experiment.optimization_config)
    assert "loss <= 3.5" in shown
    assert "rouge_l >= -0.0000002" in shown
    assert '"-loss, rouge_l"' in shown


def test_the_constraint_of_an_active_layer_is_in_the_space() -> None:
    client = build_client("x", engine(small_space()))
    space = client._experiment.search_space
    off = {"gate_0": 0, "gate_1": 0, "gate_2": 0, "gate_3": 0, "num_loras": 1, "rank": 8}
    assert not space.check_membership(off)
    assert space.check_membership({**off, "gate_2": 1})
    assert not space.check_membership({**off, "gate_2": 1, "num_loras": 0})
    assert not space.check_membership({**off, "gate_2": 1, "rank": 24})


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (MemorySpace(3, 8, (8, 16, 32), factors="num+size"), {"num_loras", "rank"}),
        (MemorySpace(12, 12, (8,), factors="size+layer"), {f"gate_{i:02d}" for i in range(12)}),
        (MemorySpace(1, 8, (8, 16)), {"num_loras", "rank"}),
    ],
)
def test_fixed_factors_are_left_out(space: MemorySpace, names: set[str]) -> None:
    made = engine(space)
    assert set(parameters_of(space, made.proposals[0].config)) == names
    assert set(build_client("x", made)._experiment.search_space.parameters) == names


def test_one_objective() -> None:
    client = build_client("x", engine(small_space(), LOSS_AND_ROUGE[:1]))
    _, values, index, _ = client.get_best_parameterization()
    assert "loss" in values
    assert index not in (2, 3)


def test_a_space_of_one_is_no_search_space() -> None:
    with pytest.raises(SearchError, match="one configuration"):
        build_client("x", Engine(MemorySpace(1, 1, (8,)), LOSS_AND_ROUGE, surrogate="random"))


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = build_client("x", engine(small_space()))
    path = tmp_path / "u.json"
    path.write_text("before")

    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(client, "save_to_json_file", full)
    with pytest.raises(StorageError, match="No space left"):
        save_client(client, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_ax_does_not_chatter(capfd: pytest.CaptureFixture[str]) -> None:
    build_client("x", engine(small_space()))
    shown = capfd.readouterr()
    assert "Trial" not in shown.out + shown.err


def test_ax_says_nothing_when_it_is_imported() -> None:
    """In a new process: Ax speaks once, of its own storage, which nobody here uses."""
    words = """
from milp_ray.memory.space import MemorySpace
from milp_ray.search import Objective
from milp_ray.search.ax.export import has_parameters, new_client
space = MemorySpace(num_layers=2, max_loras=2, ranks=(4,))
assert has_parameters(space)
new_client("x", space, (Objective("loss", "min"),))
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert "ax." not in done.stdout + done.stderr
