"""Users whose answers can be told from all else, and a bench for them on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from milp_ray.config.comparison import MethodOptions
from milp_ray.config.models import (
    DataSettings,
    FinalSettings,
    MemoryDefaults,
    MemorySettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    SearchSettings,
    Study,
    TrialSettings,
)
from milp_ray.data.records import Sample, UserSplit
from milp_ray.evaluation.baselines import Bench
from milp_ray.evaluation.common_batches import Batching
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel

STUDY = Study(
    name="t",
    model=ModelSettings(path="models/tiny"),
    data=DataSettings(path="x"),
    prompts=PromptSettings(max_length=64),
    memory=MemorySettings(ranks=(2, 4), defaults=MemoryDefaults(size=2)),
    optimizer=OptimizerSettings(learning_rate=1e-2, batch_size=4),
    trial=TrialSettings(epochs=1, max_new_tokens=6, eval_batch_size=8),
    final=FinalSettings(epochs=1, instruct_epochs=1),
    search=SearchSettings(trials=2, initial=1),
)
OPTIONS = MethodOptions(rate_factors=(1.0,), rate_users=1, soft_tokens=2, random_trials=2)
BATCHING = Batching(rows=6, adapters=3)
_WORDS = ("dog", "walk", "cat", "stove", "sleep", "warm", "long", "day", "old", "near", "all", "my", "likes")


def text(seed: int, words: int) -> str:
    return " ".join(_WORDS[(seed * 5 + 3 * index) % len(_WORDS)] for index in range(words))


def person(number: int) -> UserSplit:
    """A user whose test answers, and texts after the first test sample, say ZQX and nothing else
    does."""
    alias = "u-" + "abcdefgh"[number] * 13
    seen = tuple(text(17 * number + i, 3 + i % 4) for i in range(6))
    late = (f"ZQX{number} late {text(number, 2)}",)

    def sample(place: int, n_hist: int, answer: str) -> Sample:
        return Sample(text(31 * number + place, 2 + place), answer, n_hist=n_hist)

    train = tuple(sample(i, 2 + i, text(7 * number + i, 3)) for i in range(3))
    validation = (sample(3, 5, text(7 * number + 3, 3)),)
    test = tuple(sample(4 + i, 6, f"ZQX{number} {text(number + i, 2)}") for i in range(2))
    return UserSplit(alias, seen + late, train, validation, test, 5, 6, profile=(("site", "kennel"),))


def bench(base: BaseModel, folder: Path, **changed: Any) -> Bench:
    users = [person(0), person(1)]
    placements = {users[0].alias: Placement.from_key("1:2,3:4"), users[1].alias: Placement.from_key("2:2")}
    values: dict[str, Any] = {"options": OPTIONS, "batching": BATCHING, "placements": placements} | changed
    return Bench(base, values.pop("study", STUDY), 3, folder, **values)
