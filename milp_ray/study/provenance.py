"""What a run was begun with, and how a study or an installation of today differs from it.

The data and the base model are told by their fingerprints (:mod:`milp_ray.study.inputs`), not here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping

import milp_ray
from milp_ray.config.models import Study
from milp_ray.errors import Problem
from milp_ray.ids import alias_of, is_alias

# Where the data and a key of one's own lie; who may read the folder; who else is told.
_MAY_DIFFER = ("data.path", "data.alias_key", "storage.readable_by", "tracking")
_TRIALS, _UNIT = "search.trials", "search.unit"
_MAY_DIFFER_WITHIN = ("ray.", "data.files.")
PACKAGES = ("ray", "torch", "transformers", "peft", "botorch", "ax-platform", "deepspeed")


def packages() -> dict[str, str]:
    """Versions of the installed packages that results may depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def changed_packages(meta: Mapping[str, object]) -> str:
    """What ``run.json`` names in another version than is installed now; empty if nothing."""
    before = {"milp_ray": meta.get("milp_ray")}
    if isinstance(listed := meta.get("packages"), dict):
        before |= listed
    now = {"milp_ray": milp_ray.__version__} | packages()
    return ", ".join(
        f"{name} {version} (now {now.get(name, 'absent')})"
        for name, version in before.items()
        if version and now.get(name) != version
    )


def differences(mine: Study, theirs: Study, whole: bool = False) -> list[Problem]:
    """Where a resolved study is another than the run's, user ids replaced by aliases in both.

    Where a run is worked on (``ray``), its data's place, readers and trackers may differ:
    that it is the same data, its fingerprint says. So may the number of trials, which can grow, and
    users may be taken out of a list of them, but where the data is known as a ``whole``. Values are
    not repeated where they may name users.
    """
    before, now = (dict(_leaves(one.model_dump(mode="json"))) for one in (mine, theirs))
    fewer_users = _fewer(mine.data.users, theirs.data.users, whole)
    now["data.users"] = before["data.users"] if fewer_users else now["data.users"]
    before[_UNIT], now[_UNIT] = mine.unit, theirs.unit  # auto means one of the others
    fewer = fewer_trials(mine, theirs)
    now[_TRIALS] = before[_TRIALS]
    return fewer + [
        Problem(
            path,
            "differs from the run's"
            if path.startswith("data.users")
            else f"is {now.get(path)!r}, and was {before.get(path)!r}",
            "the study that the run was begun with",
            "put it back, or give the study another name",
        )
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path)
        and not path.startswith(_MAY_DIFFER_WITHIN)
        and path not in _MAY_DIFFER
    ]


def _fewer(mine: object, theirs: object, whole: bool) -> bool:
    """Whether ``theirs`` lists users of ``mine`` alone; all of them, if ``whole``."""
    if not (isinstance(mine, tuple) and isinstance(theirs, tuple) and theirs):
        return False
    return set(theirs) <= set(mine) and not (whole and len(theirs) < len(mine))


def fewer_trials(mine: Study, theirs: Study) -> list[Problem]:
    """The problem that a run's budget would shrink; none where it stays or grows."""
    before, now = mine.search.trials, theirs.search.trials
    if now >= before:
        return []
    fact = f"is {now}, and the run was given {before}: what was measured cannot be taken back"
    return [
        Problem(_TRIALS, fact, f"{before} or more", "leave it out, or start a new run under another name")
    ]


def without_ids(study: Study, key: bytes) -> Study:
    """The study with aliases for raw user ids, in the order of the aliases."""
    users = study.data.users
    if not isinstance(users, tuple):
        return study
    aliases = tuple(sorted({user if is_alias(user) else alias_of(user, key) for user in users}))
    return study.model_copy(update={"data": study.data.model_copy(update={"users": aliases})})


def _leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted paths and values; lists are values."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
