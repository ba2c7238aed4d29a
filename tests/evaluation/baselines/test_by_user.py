"""Divided users: stage 2 is everybody's, on background users; stage 1 starts from there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from milp_ray.config.models import SplitSettings, Study
from milp_ray.data.records import UserSplit
from milp_ray.evaluation.baselines import Bench, make
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.adapters import read_adapter
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel
from milp_ray.trial.lifecycle import Trial
from milp_ray.trial.unit import SharedTrial, shared_user
from tests.evaluation.baselines.common import OPTIONS, STUDY, bench, person
from tests.evaluation.baselines.test_trained import same

PLACEMENT = Placement.from_key("1:2,3:4")


def divided(study: Study) -> Study:
    """Users are divided, and validation samples teach nothing."""
    data = study.data.model_copy(update={"split": SplitSettings(regime="by_user")})
    final = study.final.model_copy(update={"train_on": "train"})
    return study.model_copy(update={"data": data, "final": final})


def part(number: int, kind: str) -> UserSplit:
    """A user of one part: all samples are there."""
    whole = person(number)
    kept = {name: getattr(whole, name) if name == kind else () for name in ("train", "validation", "test")}
    return dataclasses.replace(whole, **kept)


TEST, TRAIN, VALIDATION = part(0, "test"), [part(2, "train"), part(3, "train")], [part(4, "validation")]


def by_user(base: BaseModel, folder: Path, **changed: Any) -> Bench:
    return bench(base, folder, study=divided(STUDY), placements={TEST.alias: PLACEMENT}, **changed)


def test_milp_is_what_the_final_job_trains(llama: BaseModel, tmp_path: Path) -> None:
    here = by_user(llama, tmp_path)
    method = make("milp", here)
    method.fit([*TRAIN, *VALIDATION])
    method.learn(TEST)
    shared = shared_user("population", TRAIN, VALIDATION)
    with SharedTrial(llama, shared, PLACEMENT, here.study, phase="final", seed=here.seed) as trial:
        trial.run()
        start = trial.adapter()
    seed = here.seed_of(TEST.alias)
    with Trial(llama, TEST, PLACEMENT, here.study, phase="final", seed=seed, start=start) as trial:
        trial.run()
        trial.save(tmp_path / "final")
    [folder] = method.requests(TEST, TEST.test)[0].adapters
    assert same(folder / WEIGHTS, tmp_path / "final" / WEIGHTS)


def test_stage_2_alone_is_the_adapter_that_all_start_from(llama: BaseModel, tmp_path: Path) -> None:
    here = by_user(llama, tmp_path)
    for name in ("milp", "milp_instruct"):
        method = make(name, here)
        method.fit([*TRAIN, *VALIDATION])
        method.learn(TEST)
    [everybodys] = method.requests(TEST, TEST.test)[0].adapters
    assert everybodys == tmp_path / "shared" / "fit" / "adapter"
    assert method.learn(TEST).cost.trained_tokens == 0


def test_rates_are_chosen_by_samples_that_nothing_beneath_has_seen(llama: BaseModel, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"rate_factors": (1e-6, 1.0)})
    study = divided(STUDY)
    seen = study.model_copy(update={"final": STUDY.final})  # validation samples teach in the end
    here = by_user(llama, tmp_path, options=options)
    here = dataclasses.replace(here, study=seen)
    method = make("milp", here)
    learned = method.fit([*TRAIN, *VALIDATION])
    assert learned.note.count("learning rate 0.01, by the loss") == 2
    final, held_back = (
        read_adapter(tmp_path / "shared" / "fit" / name)[1] for name in ("adapter", "held_back")
    )
    assert final.keys() == held_back.keys()
    assert not list((tmp_path / "shared" / "fit").glob("held_back-*")), "of the chosen rate alone"
    assert any(not final[name].equal(held_back[name]) for name in final)
    # Without the validation users, the same training gives the adapter that was held back.
    alone = make("milp", by_user(llama, tmp_path / "alone"))
    alone.fit(TRAIN)
    assert same(tmp_path / "alone/shared/fit/adapter" / WEIGHTS, tmp_path / "shared/fit/held_back" / WEIGHTS)
