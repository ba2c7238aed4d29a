from dataclasses import replace
from pathlib import Path

from milp_ray.config.comparison import MethodOptions
from milp_ray.config.models import Study
from milp_ray.memory.placement import Placement
from milp_ray.tune.comparison.worker import MethodTask, Task, Worker

STUDY = Study.model_validate({"name": "a", "model": {"path": "m"}, "data": {"path": "d"}})


def worker(placements: dict[str, Placement]) -> Worker:
    """One without a base: what is asked here needs none."""
    found = Worker.__new__(Worker)
    method = MethodTask("milp", "milp", Path("learned"), searched=True, placements=placements)
    found._task = Task(STUDY, MethodOptions(), Path("common"), 0, {"milp": method}, {}, {}, {})
    return found


def test_a_user_whose_search_chose_nothing_is_lost_and_no_other() -> None:
    found = worker({"u-b": Placement(((0, 2),))}).learn(["milp"], "u-a")
    assert found["milp"].reason == "its search has no measured trial to choose from"


def test_a_method_of_which_no_search_chose_anything_is_not_fitted() -> None:
    found = worker({})
    found._methods = {}
    assert found.fit_groups(["milp"]) == [["milp"]]
    assert not found._fits("milp")


class Fitted:
    """A method of which nothing is asked but what its fit fills."""

    def __init__(self, *folders: str) -> None:
        self.fitted = frozenset(map(Path, folders))


def test_methods_that_share_what_they_fit_are_fitted_by_one_worker() -> None:
    found = worker({})
    methods = {
        "none": (),
        "multi": ("multi",),
        "all": ("all",),
        "own": ("own",),
        "both": ("all", "x", "own"),
        "last": ("x",),
    }
    found._methods = {name: Fitted(*folders) for name, folders in methods.items()}  # type: ignore[misc]
    plan = MethodTask("", "", Path(), searched=False, placements={})
    assert found._task is not None
    found._task = replace(found._task, methods=dict.fromkeys(methods, plan))
    groups = found.fit_groups(list(methods))
    assert groups == [["all", "own", "both", "last"], ["none"], ["multi"]]
