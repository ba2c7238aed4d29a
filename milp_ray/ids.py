"""Aliases of users, names of trials, and paths that cannot escape their folder.

Raw user ids never leave the process that reads the data: everything that is written, logged or
shown uses the alias, a keyed hash (HMAC-SHA-256) of the id. Without the key an alias can neither be
computed from an id nor be tested against a guessed one. What this module does *not* do: keep the
key (that is the run folder's).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from milp_ray.errors import StorageError

ALIAS_PATTERN = re.compile(r"u-[a-z2-7]{13}")
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
KEY_BYTES = 32
POPULATION = "population"
"""Stands where an alias does, for all users of a run together; it has no alias's shape."""


def new_key() -> bytes:
    """A fresh key for :func:`alias_of`, from the operating system's random source."""
    return secrets.token_bytes(KEY_BYTES)


def alias_of(user_id: str, key: bytes) -> str:
    """The alias of a user id: ``u-`` and 13 characters of base 32 (65 bits of the keyed hash).

    65 bits keep the chance of any collision among a million users under 1 in 50 million; the driver
    still checks for one.
    """
    digest = hmac.new(key, user_id.encode("utf-8"), hashlib.sha256).digest()
    number = int.from_bytes(digest[:9], "big")
    return "u-" + "".join(_BASE32[(number >> (5 * i)) & 31] for i in range(13))


def number_of(alias: str) -> int:
    """A user's own number (48 bits), from which seeds derive.

    It follows from the alias alone: seeds stand in files that others may read, and neither a user's
    place in the data nor its id may be found from them.
    """
    return int.from_bytes(hashlib.sha256(f"number of {alias}".encode()).digest()[:6], "big")


def is_alias(text: str) -> bool:
    """Whether ``text`` has the shape of an alias; such a user need not exist."""
    return ALIAS_PATTERN.fullmatch(text) is not None


def trial_name(alias: str, number: int, placement: str) -> str:
    """A trial's name in Ray Tune, its folder, logs and the dashboard; it tells nothing of a user.

    Alias, trial number, and a digest of the placement's key, by which equal placements of several
    users are recognised: ``u-46uuhep4l4blc-t0007-3f9c2a``; ``-base`` is the no-memory measurement.
    """
    digest = f"-{hashlib.sha256(placement.encode()).hexdigest()[:6]}" if number >= 0 else ""
    return f"{alias}-{trial_label(number)}{digest}"


def trial_label(number: int) -> str:
    """A trial's name within its user; number -1 is the no-memory measurement."""
    return "base" if number < 0 else f"t{number:04d}"


def child(root: Path, *parts: str) -> Path:
    """``root / parts``, where no part may climb out, be absolute, hidden or empty.

    Raises:
        StorageError: a part is not a plain file name.
    """
    for part in parts:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", part):
            raise StorageError(
                "a name from outside is not a plain file name",
                expected="letters, digits, '.', '_' and '-', at most 128, not starting with '.' or '-'",
                remedy="use an alias (see ids.alias_of) instead of a raw user id in paths",
            )
    return root.joinpath(*parts)
