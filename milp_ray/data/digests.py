"""Which data a run was begun with: a keyed digest of each user's, kept under the alias.

One digest a user, so that a run goes on for all others when one user's data is deleted or has
changed; keyed, so that whoever has the run folder without its key cannot test whether a guessed
text is somebody's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping

from milp_ray.data.records import Sample, UserRecord

# Alias -> digest, in the order of the aliases; where users are divided, with the part that the user
# is in before it ("test:0f3a..."). A text is the SHA-256 of the whole file: so said
# runs of format 1, whose users are in the file's order.
Fingerprint = str | Mapping[str, str]

_PURPOSE = b"user data\0"  # no user id holds a NUL, so this key is nobody's alias
_DIGITS = 32


def user_digest(record: UserRecord, alias: str, key: bytes, part: str = "") -> str:
    """Digest (HMAC-SHA-256, 128 bits in hex) of all that was read of a user but the id.

    Args:
        record: as read, before any split.
        alias: of the user; two users with the same texts have different digests.
        key: of the run's aliases.
        part: of a population that the user is in; "" where users are not divided.
    """
    profile = None if record.profile is None else sorted(record.profile.items())
    samples = [[s.query, s.response, s.context, s.n_hist, *_marks(s)] for s in record.samples]
    content = json.dumps([alias, profile, record.history, samples], separators=(",", ":")).encode()
    own = hmac.digest(key, _PURPOSE, hashlib.sha256)
    digest = hmac.new(own, content, hashlib.sha256).hexdigest()[:_DIGITS]
    return f"{part}:{digest}" if part else digest


def parts_of(fingerprint: Fingerprint) -> dict[str, str]:
    """The part of each user, where users are divided; else nothing."""
    if isinstance(fingerprint, str):
        return {}
    divided = ((alias, digest.partition(":")) for alias, digest in fingerprint.items())
    return {alias: part for alias, (part, colon, _) in divided if colon}


def _marks(sample: Sample) -> list[object]:
    """What only some data sets have; nothing where one has none, as in digests of older runs."""
    marks: list[object] = [sample.label, sample.choices, sample.source_id]
    return marks if any(marks) else []
