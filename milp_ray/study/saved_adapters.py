"""Which adapters of trials are kept: those of the trials on a user's front.

A trial saves its adapter if nothing beats it when it ends; later ones may. Those that are beaten go
when the user's search is over, and in the next session where that one was cut off in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from milp_ray.ids import trial_label
from milp_ray.layout import ADAPTER_CONFIG, ADAPTERS
from milp_ray.storage import folders_below, remove_folder
from milp_ray.study.run_folder import RunFolder


def drop_beaten(folder: RunFolder, fronts: Mapping[str, Iterable[int]]) -> None:
    """Delete the adapters of trials that are not on their user's front.

    Args:
        folder: of the run, which is held.
        fronts: alias -> numbers of the trials on the front, of users whose search is over. Adapters
            of others are left alone.

    Raises:
        StorageError: one could not be deleted.
    """
    kept = {alias: {trial_label(number) for number in front} for alias, front in fronts.items()}
    saved = folder.root / ADAPTERS
    for alias, name in folders_below(saved):
        if alias in kept and name not in kept[alias]:
            remove_folder(saved / alias / name, commit_marker=ADAPTER_CONFIG)
