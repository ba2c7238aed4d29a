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
    assert worker({}).fit("milp").reason
