"""Everything that people look at of a comparison: tables, figures and the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from milp_ray.comparison.cells import CellRecord
from milp_ray.comparison.folder import ComparisonFolder
from milp_ray.comparison.plan import SPACES
from milp_ray.comparison.rendering import Table
from milp_ray.comparison.scores import score_frame
from milp_ray.comparison.sizes import memory_figure, parameters_table
from milp_ray.comparison.tables import costs_table, gains_table, main_table, ranges_table, subset_table
from milp_ray.comparison.verdict import verdict
from milp_ray.storage import atomic_write, reading

_COMPONENTS = {
    "milp_instruct": "instruction tuning",
    "milp_inject": "memory injection",
    "milp": "full MiLP",
}


def write_results(
    folder: ComparisonFolder,
    records: Sequence[CellRecord],
    cells: int,
    configs: Mapping[str, Any],
    more: Sequence[Table] = (),
) -> list[Path]:
    """Write the tables of what is finished, and the verdict; returns the files that people read.

    Args:
        folder: of the comparison.
        records: the finished cells.
        cells: how many there are.
        configs: transformers configurations of the base models, by name.
        more: tables that need more than finished cells.

    Raises:
        StorageError: the folder cannot be written.
    """
    frame = score_frame(records)
    chosen = {
        name: [
            round(r.cost.trainable_params) for r in records if _is_milp(r) and r.cell.condition.model == name
        ]
        for name in configs
    }
    memory = folder.comparison.memory
    tables = [*more, ranges_table(folder.comparison), parameters_table(configs, memory.ranks, chosen)]
    if len(frame):
        tables += _score_tables(frame)
        tables.append(costs_table(records))
    for table in tables:
        table.write(folder.tables)
    _draw_memory(folder, memory.defaults.size, configs)
    page = verdict(frame, records, cells - len(records))
    atomic_write(folder.verdict, lambda draft: draft.write_text(page, encoding="utf-8"))
    scores = folder.tables / "scores.csv"
    atomic_write(scores, lambda draft: frame.to_csv(draft, index=False))
    return [folder.verdict, scores, *(folder.tables / f"{table.name}.md" for table in tables)]


def _is_milp(record: CellRecord) -> bool:
    return record.cell.method == "milp"


def _draw_memory(folder: ComparisonFolder, rank: int, names: Iterable[str]) -> None:
    measured = {}
    for name in names:
        path = folder.memory_use(name)
        if path.exists():
            with reading(path):
                measured[name] = json.loads(path.read_text(encoding="utf-8"))
    folder.figures.mkdir(exist_ok=True)
    memory_figure(folder.figures / "figure_3_memory.png", rank, measured)


def _score_tables(frame: pd.DataFrame) -> list[Table]:
    methods = set(frame.method)
    tables = [main_table(frame)]
    tables += [gains_table(frame, over) for over in ("none", "tplp", "random_lora") if over in methods]
    spaces = SPACES | {"milp": "num+size+layer"}
    if methods & set(SPACES):
        caption = "Persona-F1 x 100 and loss by what is searched; the other factors have their defaults."
        shown = {name: label for name, label in spaces.items() if name in methods}
        tables.append(subset_table(frame, "table_4_spaces", caption, shown, ("persona_f1", "loss")))
    if methods & {"milp_inject", "milp_instruct"}:
        caption = "Scores by stage of training, at the placements that the search chose."
        shown = {name: label for name, label in _COMPONENTS.items() if name in methods}
        metrics = ("loss", "rouge_1", "rouge_l", "persona_f1")
        tables.append(subset_table(frame, "table_5_components", caption, shown, metrics))
    return tables
