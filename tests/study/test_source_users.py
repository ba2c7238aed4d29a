"""Who learns from whom: every later cohort, from whoever measured something, and it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.study.population import Population
from milp_ray.study.source_users import SourceUsers
from tests.study.test_population import ALIASES, population_of, search

COLD, LATER = ALIASES[:2], ALIASES[2:]


def failing(population: Population, alias: str) -> None:
    """A user all of whose trials fail."""
    with population.opened([alias]) as engines:
        for proposal in engines[alias].ask(3):
            engines[alias].fail(proposal.id, "out of memory")
        engines[alias].set_reference({"loss": 2.5, "rouge_l": 0.1})


def gathered(tmp_path: Path, transfer: str = "prior") -> tuple[Population, SourceUsers, list[str]]:
    population, folder, inputs = population_of(tmp_path, transfer=transfer, transfer_users=2)
    said: list[str] = []
    return population, SourceUsers(folder.study, inputs, population, said.append), said


def test_a_cold_user_without_a_result_takes_nothing_from_the_others(tmp_path: Path) -> None:
    population, sources, said = gathered(tmp_path)
    failing(population, COLD[0])
    search(population, COLD[1], 3)
    with population.opened(LATER) as engines:
        give = sources.gather(LATER)
        assert give is not None and give(engines[LATER[0]])
        data = engines[LATER[0]].transferred
    assert data is not None and len(data.sources) == 1
    assert said == ["3 users learn from 1 that are done"]


def test_where_nobody_measured_anything_it_is_said(tmp_path: Path) -> None:
    population, sources, said = gathered(tmp_path)
    for alias in COLD:
        failing(population, alias)
    assert sources.gather(LATER) is None
    assert said == ["3 users learn from nobody: no user that is done has a trial that was measured"]


def test_cold_users_stay_cold_when_some_of_them_are_resumed(tmp_path: Path) -> None:
    population, sources, said = gathered(tmp_path)
    search(population, COLD[0], 3)
    assert sources.gather(COLD[1:]) is None and not said


@pytest.mark.parametrize("begun", [True, False])
def test_who_has_begun_is_not_counted(tmp_path: Path, begun: bool) -> None:
    population, sources, said = gathered(tmp_path)
    for alias in COLD:
        search(population, alias, 3)
    if begun:
        search(population, LATER[0], 1)
    assert sources.gather(LATER[:1]) is not None
    assert said == ([] if begun else ["1 users learn from 2 that are done"])


def test_without_transfer_nothing_is_gathered(tmp_path: Path) -> None:
    population, sources, said = gathered(tmp_path, "none")
    search(population, COLD[0], 3)
    assert sources.gather(LATER) is None and not said
