"""How a trained method chooses its learning rate: the same way for every one.

The rates of a declared grid (``options.rate_factors`` times the study's, or times what the method
names instead) are tried on a few background users: trained as the final job trains, but for their
validation samples and what is later, and measured on those. The study's own rate is taken for all
users, unless another one is better by more than a standard error of the paired difference: else a
few users' chance would decide, and a rate's effect would pass for a method's. Without a background
each measured user's own validation samples choose, by the lowest mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from milp_ray.data.records import UserSplit
from milp_ray.errors import StorageError, TrialFailed
from milp_ray.evaluation.baselines.interface import Bench
from milp_ray.storage import write_json

RATE = "rate.json"

_FEW = 3  # losses, below which they say nothing of their own noise
# Trains with a rate; gives the losses on validation samples, by user or by sample, and the tokens
# trained on.
Try = Callable[[float], tuple[Sequence[float], int]]


@dataclass(frozen=True, slots=True)
class Rate:
    """A learning rate, how it was chosen, and the tokens that the choice took."""

    value: float
    note: str
    tokens: int = 0


def choose_rate(bench: Bench, center: float, attempt: Try | None, by_whom: str) -> Rate:
    """The rate of a grid that a method takes.

    It is ``center``, or the middle of a grid that lacks it, unless another rate's losses are lower
    by more than a standard error; of several such rates the one with the lowest mean. With fewer
    than three losses the lowest mean decides, and without anything to try by nothing is tried.

    Args:
        bench: see there.
        center: what the factors multiply.
        attempt: tries a rate; one that fails counts as the worst.
        by_whom: whose validation samples choose, for the note.

    Raises:
        TrialFailed: no rate works.
    """
    grid = [float(f"{center * factor:.6g}") for factor in sorted(bench.options.rate_factors)]
    if attempt is None or len(grid) == 1:
        return Rate(grid[len(grid) // 2], f"learning rate {grid[len(grid) // 2]:g}, not chosen")
    found: dict[float, Sequence[float]] = {}
    tokens = 0
    for rate in grid:
        try:
            losses, used = attempt(rate)
        except TrialFailed:
            losses, used = [math.inf], 0
        found[rate] = losses if all(map(math.isfinite, losses)) else [math.inf]
        tokens += used
    value = best_rate(found, min(grid, key=lambda rate: abs(math.log(rate / center))))
    tried = ", ".join(f"{rate:g}: {fmean(losses):.3f}" for rate, losses in found.items())
    return Rate(value, f"learning rate {value:g}, by {by_whom} ({tried})", tokens)


def best_rate(losses: Mapping[float, Sequence[float]], own: float) -> float:
    """The rate that losses speak for; see :func:`choose_rate`.

    Args:
        losses: by rate, of the same users or samples in the same order; ``[inf]`` where it failed.
        own: what is taken if no other is better by more than a standard error.

    Raises:
        TrialFailed: no rate works.

    Example:
        >>> best_rate({1e-4: [2.0, 3.0, 4.0], 1e-3: [1.9, 3.3, 3.7]}, own=1e-4)
        0.0001
        >>> best_rate({1e-4: [2.0, 3.0, 4.0], 1e-3: [1.8, 2.9, 3.7]}, own=1e-4)
        0.001
    """
    means = {rate: fmean(of) for rate, of in losses.items()}
    working = [rate for rate, mean in means.items() if math.isfinite(mean)]
    if not working:
        raise TrialFailed("no learning rate of the grid gives a finite loss")
    if own in working and len(losses[own]) >= _FEW:
        working = [rate for rate in working if _is_better(losses[rate], losses[own])] or [own]
    return min(working, key=lambda rate: means[rate])


def _is_better(losses: Sequence[float], than: Sequence[float]) -> bool:
    gains = [own - other for own, other in zip(than, losses, strict=True)]
    return fmean(gains) > stdev(gains) / math.sqrt(len(gains))


def rate_users(bench: Bench, background: Sequence[UserSplit]) -> list[UserSplit]:
    """The background users whose validation samples choose."""
    usable = [user for user in background if user.validation and user.search_history]
    return usable[: bench.options.rate_users]


def keep_rate(folder: Path, rate: Rate) -> None:
    """Write down a rate for all users.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RATE, asdict(rate))


def kept_rate(folder: Path) -> Rate | None:
    """The rate for all users; None where each chooses.

    Raises:
        StorageError: it is damaged.
    """
    try:
        return Rate(**json.loads((folder / RATE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"a learning rate could not be read ({type(error).__name__})",
            where=f"{folder.name}/{RATE}",
            remedy=f"delete the folder {folder.name}, and it is chosen again",
        ) from error
