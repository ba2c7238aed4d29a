"""The results of a run, written from whatever is finished: its tables and its Ax experiments.

What the tables hold is :mod:`milp_ray.study.tables`'s. Every engine is looked at once, so a
population of any size needs the memory of its tables only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from milp_ray.memory.architectures import Architecture
from milp_ray.storage import check_intact
from milp_ray.study.population import Population
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import (
    TableBuilder,
    by_user_rows,
    chosen_table,
    hypervolume_rows,
    scores_table,
    trial_rows,
    write_table,
)

if TYPE_CHECKING:
    from milp_ray.search import Engine

# A quarter of a second each; those of larger populations are made on request (`milp-ray
# experiment`).
_MOST_EXPERIMENTS = 50


def write_tables(folder: RunFolder, population: Population, architecture: Architecture) -> None:
    """Write all tables; nothing while no trial was ever asked for.

    Raises:
        StorageError: a table cannot be written, or what it is made from is gone: then none is.
    """
    check_intact(folder.root)
    trials, volumes = TableBuilder(), TableBuilder("user", "finished", "hypervolume")
    by_user = TableBuilder("trial", "user")
    over = all(summary.over for _, summary in population.summaries())
    experiments = over and len(population.aliases) <= _MOST_EXPERIMENTS
    if experiments:
        from milp_ray.search.ax.export import has_parameters
    for alias in population.aliases:
        if not population.begun(alias):
            continue
        engine = population.engine(alias)
        trials.add(trial_rows(alias, engine, architecture))
        volumes.add(hypervolume_rows(alias, engine))
        by_user.add(by_user_rows(folder.layout.events(alias)))
        if experiments and has_parameters(engine.space):
            save_experiment(folder, alias, engine)
    table = trials.table()
    if table.empty:
        return
    write_table(table, folder.layout.table("trials"))
    write_table(table[table.on_front], folder.layout.table("fronts"))
    chosen = chosen_table(population.chosen(), folder.study.choose.policy, architecture)
    write_table(chosen, folder.layout.table("chosen"))
    scores = scores_table({alias: folder.layout.scores(alias) for alias in population.units.owners})
    write_table(scores, folder.layout.table("scores"))
    write_table(volumes.table(), folder.layout.table("hypervolume"))
    if not (measured := by_user.table()).empty:
        write_table(measured, folder.layout.table("by_user"))


def save_experiment(folder: RunFolder, alias: str, engine: Engine) -> Path:
    """Save a user's search as an experiment that Ax's own tools open; returns its path.

    An experiment that is newer than the event log is left as it is.
    """
    path = folder.layout.experiment(alias)
    if not path.exists() or path.stat().st_mtime < folder.layout.events(alias).stat().st_mtime:
        from milp_ray.search.ax.export import build_client, save_client

        save_client(build_client(alias, engine), path)
    return path
