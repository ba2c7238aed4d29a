"""A run for trackers: what of it they are told, and their followers while it is worked on."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING

from milp_ray.config.models import Study
from milp_ray.ids import POPULATION
from milp_ray.search.core.events import events_so_far
from milp_ray.search.replay import search_of
from milp_ray.storage import mirror_of
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.selection import select_from_log
from milp_ray.study.tables import known_scores
from milp_ray.tracking.follower import Follower
from milp_ray.tracking.interface import Step, TrackedSearch, TrackedStudy, Tracker, Value
from milp_ray.tracking.records import tracked_trials

if TYPE_CHECKING:
    from milp_ray.config.objectives import Objective
    from milp_ray.search.view import SearchView

# What of a study trackers are told: no paths, no address, no prompts.
_SECTIONS = ("memory", "optimizer", "trial", "search", "choose", "final", "simulation")


def run_digest(folder: RunFolder) -> str:
    """What tells a run from every other; it follows from the run's key and gives nothing of it."""
    words = json.dumps([folder.study.name, folder.meta.get("created")])
    return hmac.new(folder.key, words.encode(), hashlib.sha256).hexdigest()[:16]


def begun_at(folder: RunFolder) -> float:
    """When a run was made, in seconds since 1970."""
    try:
        return datetime.strptime(str(folder.meta.get("created")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return folder.layout.meta_file.stat().st_mtime


@contextlib.contextmanager
def followed(
    folder: RunFolder, aliases: tuple[str, ...], notify: Callable[[str], object]
) -> Iterator[list[Follower]]:
    """Followers of a run, one for each tracker that its study names, for a ``with`` block."""
    study = tracked_study(folder)
    begun = begun_at(folder)

    def read(alias: str) -> TrackedSearch | None:
        return tracked_search(folder, alias, begun)

    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Follower(name, make_tracker(name), study, aliases, read, notify))
            for name in folder.study.tracking
        ]


def make_tracker(name: str) -> Tracker:
    """The tracker that a study calls by this name; its client is imported when it begins."""
    if name == "mlflow":
        from milp_ray.tracking.mlflow_runs import MlflowRuns

        return MlflowRuns()
    if name == "wandb":
        from milp_ray.tracking.wandb_runs import WandbRuns

        return WandbRuns()
    from milp_ray.tracking.tensorboard_events import TensorboardEvents

    return TensorboardEvents()


def tracked_study(folder: RunFolder) -> TrackedStudy:
    """A run as a tracker's parent run."""
    at_url = mirror_of(folder.root) is not None
    return TrackedStudy(
        folder.study.name,
        run_digest(folder),
        _settings(folder.study),
        None if at_url else folder.layout.tracking,
    )


def tracked_search(folder: RunFolder, alias: str, begun: float) -> TrackedSearch | None:
    """A search as its event log and score file have it now; None where it has not begun.

    Raises:
        StorageError: they cannot be read.
    """
    log = folder.layout.events(alias)
    view = search_of(events_so_far(log), log)
    if view is None or not view.proposals:
        return None
    counts, budget = view.counts, folder.study.search.trials
    is_over = not counts.pending and counts.told + counts.failed >= budget
    steps = tuple(_steps(view, begun))
    return TrackedSearch(alias, steps, _summary(folder, alias, view), is_over, counts.failed)


def _steps(view: SearchView, begun: float) -> Iterator[Step]:
    ended = {trial.number: trial.ended or begun for trial in tracked_trials(view, begun)}
    best: dict[str, float] = {}
    for seen in view.observations:
        for objective in view.objectives:
            best[objective.name] = _better(objective, best, seen.values)
        ranks = [rank for _, rank in seen.placement.ranks]
        yield Step(
            ended[seen.id],
            {
                **seen.values,
                **{f"best_{name}": value for name, value in best.items()},
                "trial": seen.id,
                "layers": len(ranks),
                "largest_rank": max(ranks, default=0),
            },
        )


def _better(objective: Objective, best: Mapping[str, float], values: Mapping[str, float]) -> float:
    value = values[objective.name]
    return objective.best((best.get(objective.name, value), value))


def _summary(folder: RunFolder, alias: str, view: SearchView) -> dict[str, Value]:
    """What a search has come to, by names that no step has."""
    counts = view.counts
    found: dict[str, Value] = {"trials_done": counts.told, "trials_failed": counts.failed}
    found |= {f"no_memory_{name}": value for name, value in (view.reference or {}).items()}
    if front := view.front():
        found |= {"front_size": len(front), "hypervolume": view.hypervolume()}
    if (chosen := select_from_log(view, folder.study.choose)) is not None:
        found |= {"chosen_trial": chosen.id, "chosen_placement": chosen.placement.key}
        found |= {f"chosen_{name}": value for name, value in chosen.values.items()}
    if alias != POPULATION:
        for model, values in known_scores(alias, folder.layout.scores(alias)).items():
            found |= {f"test_{model}_{name}": value for name, value in values.items()}
    return found


def _settings(study: Study) -> dict[str, Value]:
    plain = study.model_dump(mode="json")
    found: dict[str, Value] = {
        "seed": study.seed,
        "model": PurePath(study.model.path).name,
        "objectives": ", ".join(study.objectives),
        "unit": study.unit,
    }
    for section in _SECTIONS:
        found |= dict(_leaves(plain[section], section))
    return found


def _leaves(tree: object, path: str) -> Iterator[tuple[str, Value]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{path}.{name}")
    elif isinstance(tree, int | float | str):
        yield path, tree
    elif tree is not None:
        yield path, json.dumps(tree)
