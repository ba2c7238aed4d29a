"""The digest of a user's data."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

from milp_ray.data.digests import user_digest
from milp_ray.data.records import Sample, UserRecord

KEY = b"k" * 32
PLAIN = UserRecord("a", ("x",), (Sample("q", "r", "c", 1), Sample("s", "t")))


def test_a_digest_is_that_of_older_runs_where_a_data_set_has_no_labels() -> None:
    content = json.dumps(
        ["u-1", None, ["x"], [["q", "r", "c", 1], ["s", "t", None, None]]], separators=(",", ":")
    )
    own = hmac.digest(KEY, b"user data\0", hashlib.sha256)
    assert user_digest(PLAIN, "u-1", KEY) == hmac.new(own, content.encode(), hashlib.sha256).hexdigest()[:32]


def test_a_label_choices_and_an_id_of_a_sample_count() -> None:
    asked = PLAIN.samples[0]
    others = [replace(asked, label="1"), replace(asked, choices=("r", "s")), replace(asked, source_id="7")]
    records = [PLAIN, *(replace(PLAIN, samples=(other, PLAIN.samples[1])) for other in others)]
    assert len({user_digest(record, "u-1", KEY) for record in records}) == 4
