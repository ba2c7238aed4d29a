"""What a run was begun with: the frozen study, versions, formats, fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import milp_ray
from milp_ray.config.loading import dump_study
from milp_ray.report.html.run_data import RunData


@dataclass(frozen=True)
class Origin:
    """The study as YAML, and rows of a name and a value."""

    study: str
    rows: list[tuple[str, str]]


def origin(run: RunData) -> Origin:
    """Where a run comes from; no key, and of the data only one digest of all digests."""
    meta = run.meta
    packages = meta.get("packages")
    rows = [
        ("run", run.location),
        ("run format", str(meta.get("format", ""))),
        ("begun", str(meta.get("created", ""))),
        ("milp_ray, at the begin", str(meta.get("milp_ray", ""))),
        ("milp_ray, of this report", milp_ray.__version__),
        *((name, str(version)) for name, version in (packages.items() if isinstance(packages, dict) else ())),
        ("data", _digest(meta.get("data_fingerprint"), "users")),
        ("base model", _digest(meta.get("base"), "entries")),
    ]
    return Origin(dump_study(run.study), rows)


def _digest(found: object, what: str) -> str:
    """A fingerprint in short: the first digits of its own digest, and of how much it is."""
    if not found:
        return "no fingerprint was taken"
    text = found if isinstance(found, str) else json.dumps(found, sort_keys=True)
    count = f" over {len(found):,} {what}" if isinstance(found, Mapping) else ""
    return f"{hashlib.sha256(str(text).encode()).hexdigest()[:16]}{count}"
