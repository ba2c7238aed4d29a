"""Environment variables that a driver sets for Ray and workers' libraries, each with a reason.

A variable that is left over in a shell, a batch system or a container breaks a run hours in: Tune
refuses to begin, Ray Train has another version, a base is loaded as rank 3 of 8. So every variable
that a run depends on has its row here, and all others are the user's. Ray reads many of them when
it is first imported, and a private Ray's processes inherit them. So they are set before either, and
put back when the session ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from milp_ray.config.models import RaySettings


@dataclass(frozen=True)
class Variable:
    """One variable, or several with a common beginning, as a row of a table below.

    Attributes:
        name: of the variable; with ``*`` at its end, of all that begin so and have no row of their
            own.
        value: its value during a session; None: the variable is removed.
        why: what would happen otherwise.
        yields: a value that the user has set stays.
    """

    name: str
    value: str | None
    why: str
    yields: bool = False


EVERYWHERE = (
    Variable("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0", "`uv run` would send the project's folder to the cluster"),
    Variable("RAY_USAGE_STATS_ENABLED", "0", "Ray would report usage statistics", yields=True),
    Variable("RAY_DEBUG_POST_MORTEM", None, "a failed trial would wait for a debugger, with its GPU"),
    Variable("RAY_DEBUG", None, "the same, by a debugger of Ray's on a socket"),
    Variable("RAY_PICKLE_VERBOSE_DEBUG", None, "Ray's slow pickler does not take what its fast one does"),
    Variable("RAY_CLIENT_MODE", "0", "Ray would take the head for a server of its client protocol"),
    # Ray Tune
    Variable("RAY_AIR_NEW_OUTPUT", "0", "Tune would print boxes between our lines"),
    Variable("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1", "Tune would write eight files a trial"),
    Variable("TUNE_DISABLE_SIGINT_HANDLER", "1", "Tune would lose results of running trials on Ctrl-C"),
    Variable("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1", "a failed trial would end the run"),
    Variable("TUNE_RESULT_BUFFER_LENGTH", "1", "results would wait for each other in the workers"),
    Variable("RAY_CHDIR_TO_TRIAL_DIR", "0", "workers would look for relative paths in Tune's folders"),
    Variable("TUNE_GLOBAL_CHECKPOINT_S", "3600", "Tune would write all trials again and again", yields=True),
    Variable("TUNE_MAX_PENDING_TRIALS_PG", None, "only slows the start; Tune's own", yields=True),
    Variable("RAY_AIR_FULL_TRACEBACKS", None, "longer traces in Tune's log", yields=True),
    Variable("TUNE_WARN_*", None, "thresholds of warnings in Tune's log", yields=True),
    Variable("TUNE_*", None, "Tune refuses TUNE_RESULT_DIR; others change what is reported, or its names"),
    Variable("RAY_AIR_*", None, "Tune refuses RAY_AIR_LOCAL_CACHE_DIR"),
    Variable("RAY_TUNE_CALLBACKS", None, "a callback that cannot be imported would end the search"),
    # Ray Train
    Variable("RAY_TRAIN_V2_ENABLED", "1", "the final job needs Ray Train's second version"),
    Variable("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0", "warnings of what we do not use", yields=True),
    Variable("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5", "a lost rank would show late", yields=True),
    Variable("RAY_TRAIN_CALLBACKS", None, "a callback that cannot be imported would end the final job"),
    Variable("TRAIN_ENABLE_WORKER_SPREAD", None, "groups of ranks would be torn over nodes"),
    Variable("TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES", None, "ranks would see each other's GPUs"),
)

# What a launcher around milp-ray leaves (torchrun, accelerate, mpirun, a batch script's template).
LAUNCHERS = tuple(
    Variable(name, None, "a worker would take itself for a rank of another group")
    for name in (
        *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"),
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
        *("TORCHELASTIC_*", "OMPI_COMM_WORLD_*", "PMI_RANK", "PMI_SIZE", "ACCELERATE_*", "FSDP_*"),
    )
)

PRIVATE = (
    Variable("RAY_ADDRESS", None, "a process that Ray starts would join the cluster of that address"),
    Variable("RAY_AUTH_TOKEN", None, "it would win over the file of the session's own token"),
    # Despite its name this is Ray's only switch that keeps every server of a session on loopback.
    # An explicit node address of 127.0.0.1 is replaced by the machine's outer one.
    Variable("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0", "Ray's servers would listen on every interface"),
    Variable("RAY_USAGE_STATS_ENABLED", "0", "Ray would report usage statistics"),
    Variable("RAY_USE_TLS", None, "certificates are made for a cluster's hosts, not for 127.0.0.1"),
    Variable("RAY_REDIS_ADDRESS", None, "the session's tables would go to a cluster's database"),
    Variable("RAY_JOB_CONFIG_JSON_ENV_VAR", None, "the packages of a job are on the job's cluster"),
    Variable("RAY_RUNTIME_ENV_HOOK", None, "a cluster's hook would be asked, which may upload folders"),
    Variable("__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR", None, "inherited from a cluster's worker"),
    Variable("RAY_RAYLET_PID", None, "inherited from a cluster's worker"),
    Variable("RAY_NODE_ID", None, "inherited from a cluster's worker"),
    Variable("RAY_JOB_ID", None, "inherited from a cluster's worker"),
    Variable("RAY_OVERRIDE_*", None, "resources, labels and node ids of a cluster's node"),
    Variable("RAY_LOG_TO_STDERR", None, "Ray's own logs would come between the progress lines"),
    Variable("RAY_EXPERIMENTAL_NOSET_*", None, "every worker would use the first GPU"),
)


def train_rows(settings: RaySettings, foreign: bool) -> list[Variable]:
    """Ray Train's variables that follow from the study. Ray Train passes them on to its workers.

    Args:
        settings: of the study.
        foreign: the run joins a cluster, and has no private Ray.
    """
    silence = f"{settings.group_timeout:g}"
    rows = [Variable("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", silence, "ray.group_timeout", yields=True)]
    if settings.dashboard or foreign:
        why = "the dashboard would not list the final job; an actor more"
        rows.append(Variable("RAY_TRAIN_ENABLE_STATE_TRACKING", "1", why, yields=True))
    if not foreign:
        why = "an actor more, though nobody takes nodes away from a Ray of our own"
        rows.append(Variable("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0", why, yields=True))
    return rows


def chosen(rows: Iterable[Variable], environ: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """The value of every variable that the rows change in an environment; None: it is removed.

    Of two rows with one name the later one counts. A row with the full name goes before a ``*``.
    """
    rows = tuple(rows)
    exact = {row.name: row for row in rows if not row.name.endswith("*")}
    families = sorted((row for row in rows if row.name.endswith("*")), key=lambda row: -len(row.name))
    found: dict[str, str | None] = {}
    for name in (*exact, *(name for name in environ if name not in exact)):
        row = exact.get(name) or next((f for f in families if fnmatchcase(name, f.name)), None)
        if row is None or (row.yields and name in environ) or environ.get(name) == row.value:
            continue
        found[name] = row.value
    return found


def forget_launchers() -> None:
    """Remove launchers' variables from a worker, which has its node's environment."""
    change(chosen(LAUNCHERS))


@contextlib.contextmanager
def environment(rows: Iterable[Variable]) -> Iterator[None]:
    """Give the process the environment that the rows want, and its own one back in the end."""
    wanted = chosen(rows)
    saved = {name: os.environ.get(name) for name in wanted}
    change(wanted)
    try:
        yield
    finally:
        change(saved)


def change(values: Mapping[str, str | None]) -> None:
    """Set these variables, and remove those whose value is None."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
