"""What the driver decides of the environment, whatever a shell or a batch system left in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from milp_ray.config.models import RaySettings
from milp_ray.tune.cluster.environment import (
    EVERYWHERE,
    LAUNCHERS,
    PRIVATE,
    Variable,
    chosen,
    environment,
    train_rows,
)


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("RAY_TRAIN_V2_ENABLED", "0", "1"),
        ("RAY_AIR_NEW_OUTPUT", "1", "0"),
        ("RAY_CHDIR_TO_TRIAL_DIR", "1", "0"),
        ("RAY_PICKLE_VERBOSE_DEBUG", "1", None),
        ("RAY_CLIENT_MODE", "1", "0"),
        ("TUNE_RESULT_BUFFER_LENGTH", "100", "1"),
        *((name, "x", None) for name in ("TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR", "TUNE_RESULT_DELIM")),
        *(
            (name, "x", None)
            for name in ("RAY_TUNE_CALLBACKS", "RAY_TRAIN_CALLBACKS", "RAY_DEBUG_POST_MORTEM")
        ),
        *((name, "1", None) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK")),
        *((name, "x", None) for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP", "FSDP_VERSION")),
    ],
)
def test_what_breaks_a_run_is_not_there_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, becomes: str | None
) -> None:
    monkeypatch.setenv(name, value)
    with environment((*EVERYWHERE, *LAUNCHERS)):
        assert os.environ.get(name) == becomes
    assert os.environ[name] == value


def test_a_private_ray_is_told_nothing_of_another_cluster() -> None:
    names = ["RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_REDIS_ADDRESS", "RAY_USE_TLS", "RAY_OVERRIDE_RESOURCES"]
    names += [
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_RUNTIME_ENV_HOOK",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
    ]
    found = chosen(PRIVATE, dict.fromkeys(names, "x"))
    assert {name: found[name] for name in names} == dict.fromkeys(names)
    assert found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_what_is_the_users_stays() -> None:
    mine = {
        "TUNE_GLOBAL_CHECKPOINT_S": "10",
        "TUNE_MAX_PENDING_TRIALS_PG": "3",
        "TUNE_WARN_THRESHOLD_S": "9",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "3",
        "RAY_memory_usage_threshold": "0.8",
        "RAY_BACKEND_LOG_LEVEL": "debug",
        "CUDA_VISIBLE_DEVICES": "",
        "SLURM_PROCID": "0",
    }
    rows = (*EVERYWHERE, *LAUNCHERS, *PRIVATE, *train_rows(RaySettings(), foreign=False))
    assert not mine.keys() & chosen(rows, mine).keys()
    assert chosen(rows, {})["TUNE_GLOBAL_CHECKPOINT_S"] == "3600"


def test_a_name_counts_before_a_family_and_a_longer_family_before_a_shorter_one() -> None:
    rows = [Variable("A_*", None, ""), Variable("A_B_*", "2", ""), Variable("A_B_C", "3", "")]
    given = {"A_X": "0", "A_B_X": "0", "A_B_C": "0", "B": "0"}
    assert chosen(rows, given) == {"A_X": None, "A_B_X": "2", "A_B_C": "3"}


def test_the_final_jobs_variables_follow_from_the_study() -> None:
    settings = RaySettings(group_timeout=45.0)
    foreign = chosen(train_rows(settings, foreign=True), {})
    assert foreign["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] == "45"
    assert foreign["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in foreign
    private = chosen(train_rows(settings, foreign=False), {})
    assert "RAY_TRAIN_ENABLE_STATE_TRACKING" not in private
    assert private["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"


def test_every_variable_that_tune_knows_is_decided_about() -> None:
    """Also those of a later Ray: Tune lists its own."""
    constants = pytest.importorskip("ray.tune.constants")
    names = constants.TUNE_ENV_VARS
    assert len(names) > 10
    rows = [row.name for row in EVERYWHERE]
    for name in names:
        assert any(re.fullmatch(row.replace("*", ".*"), name) for row in rows), name


def test_no_other_module_sets_a_variable_of_tunes_or_trains() -> None:
    setting = re.compile(
        r"environ(?:\.setdefault\(|\[)\s*[\"'](?:RAY|TUNE|TRAIN)_\w+[\"']\s*(?:,|\]\s*=[^=])"
    )
    package = Path(__file__).parents[3] / "milp_ray"
    found = {path.name for path in package.rglob("*.py") if setting.search(path.read_text(encoding="utf-8"))}
    assert found == {"connection.py"}  # which tells Ray's own job client what cluster is meant


def test_a_rank_forgets_what_a_launcher_left_on_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from milp_ray.tune.workers.worker_group import Rank

    for name in ("LOCAL_RANK", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    Rank(None, 1.0)  # type: ignore[arg-type]
    assert "LOCAL_RANK" not in os.environ and "ACCELERATE_USE_FSDP" not in os.environ
