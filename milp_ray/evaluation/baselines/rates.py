"""How a trained method chooses its learning rate: the same way for every one.

The rates of a declared grid (``options.rate_factors`` times the study's, or times what the method
names instead) are tried on a few background users: trained as the final job trains, but for their
validation samples and what is later, and measured on those. The rate with the lowest mean loss is
taken for all users. Without a background each measured user's own validation samples choose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from milp_ray.data.records import UserSplit
from milp_ray.errors import StorageError, TrialFailed
from milp_ray.evaluation.baselines.interface import Bench
from milp_ray.storage import write_json

RATE = "rate.json"

# Trains with a rate; gives the loss on validation samples, and the tokens trained on.
Try = Callable[[float], tuple[float, int]]


@dataclass(frozen=True, slots=True)
class Rate:
    """A learning rate, how it was chosen, and the tokens that the choice took."""

    value: float
    note: str
    tokens: int = 0


def choose_rate(bench: Bench, center: float, attempt: Try | None, by_whom: str) -> Rate:
    """The best of the grid; without anything to try by, or with one rate alone, the grid's middle.

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
    found, tokens = [], 0
    for rate in grid:
        try:
            loss, used = attempt(rate)
        except TrialFailed:
            loss, used = math.inf, 0
        found.append(loss if math.isfinite(loss) else math.inf)
        tokens += used
    if min(found) == math.inf:
        raise TrialFailed("no learning rate of the grid gives a finite loss")
    value = grid[found.index(min(found))]
    tried = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in zip(grid, found, strict=True))
    return Rate(value, f"learning rate {value:g}, by {by_whom} ({tried})", tokens)


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
