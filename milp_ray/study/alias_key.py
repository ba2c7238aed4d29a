"""A key of aliases that a study brings, so that its runs can be repeated and compared.

Aliases, orders and seeds follow from the key. Where it is made anew for each run, two runs of one
study have other aliases, and other random numbers for the same user. Keeping the key of a run that
is there is :mod:`milp_ray.study.run_folder`'s.
"""

from __future__ import annotations

from pathlib import Path

from milp_ray.config.models import Study
from milp_ray.errors import DataError, Problem
from milp_ray.ids import KEY_BYTES
from milp_ray.storage import NotPrivateError, is_url, read_private


def given_key(study: Study) -> bytes | None:
    """The key in the file that ``data.alias_key`` names; None where it names none.

    Raises:
        DataError: it cannot be read, is no key, or others than its owner may read it.
    """
    name = study.data.alias_key
    if name is None:
        return None
    make = f"make one: (umask 077; head -c {KEY_BYTES} /dev/urandom > {Path(name).name})"
    if is_url(name):
        raise _unusable(name, "is a URL", "a file on the driver's machine", make)
    try:
        key = read_private(Path(name), KEY_BYTES + 1)
    except NotPrivateError as error:
        expected = "mode 0600: the key tells whose alias it is"
        raise _unusable(name, str(error), expected, "chmod 600 the file") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise _unusable(name, f"cannot be read: {reason}", "a file with a key", make) from None
    if len(key) != KEY_BYTES:
        size = f"more than {KEY_BYTES}" if len(key) > KEY_BYTES else str(len(key))
        raise _unusable(name, f"holds {size} bytes", f"{KEY_BYTES} random bytes", make)
    return key


def _unusable(name: str, fact: str, expected: str, remedy: str) -> DataError:
    return DataError("data.alias_key", [Problem(name, fact, expected, remedy)])
