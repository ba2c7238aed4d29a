"""Where each sample stands in its user's history, and where a timeline may be cut into three.

Neither chooses what is dropped as a leak (:mod:`milp_ray.data.leaks`) nor which users can be used
(:mod:`milp_ray.data.splits`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from milp_ray.config.models import SplitSettings
from milp_ray.data.records import Sample, UserRecord

_MAX_TAG = 40


def in_time_order(record: UserRecord) -> list[Sample]:
    """A user's samples with ``n_hist`` resolved, in its order, equal ones in the source's.

    A missing ``n_hist`` is the place of the history text that is the response, alone or after a tag
    such as "Doctor: ", searched forward from the sample before (the source's order is taken for the
    order in time). A response that is nowhere after that stands where the sample before it does. If
    no sample at all can be found, the whole history is taken to come before all samples.
    """
    if any(sample.n_hist is None for sample in record.samples):
        samples = _derived(record)
    else:
        samples = list(record.samples)
    return sorted(samples, key=_position)


def cuts(samples: Sequence[Sample], history: Sequence[str], settings: SplitSettings) -> tuple[int, int]:
    """Where validation and test begin among 3 or more samples in time order; no part is empty.

    The shares are met as nearly as dialogues allow: no cut inside one dialogue where that moves it
    by at most a fifth of the samples, else none between samples of equal ``n_hist``, else wherever
    the shares say. Two samples are known to be of one dialogue when the second's query follows the
    first's response at once in the history.
    """
    count = len(samples)
    test = count - max(1, _round(settings.test * count))
    test = min(max(test, 2), count - 1)
    validation = min(max(test - max(1, _round(settings.validation * count)), 1), test - 1)
    places = range(1, count)
    apart = [i for i in places if samples[i - 1].n_hist != samples[i].n_hist]
    between = [i for i in apart if not _continues(samples[i - 1], samples[i], history)]
    for allowed, furthest in ((between, max(1, count // 5)), (apart, count)):
        found = _nearest(allowed, validation, test)
        if found and max(abs(found[0] - validation), abs(found[1] - test)) <= furthest:
            return found
    return validation, test


def shares(count: int, settings: SplitSettings) -> tuple[int, int, int]:
    """How many of ``count`` (3 or more) users are in train, validation, test; each at least 1."""
    test = min(max(1, _round(settings.test * count)), count - 2)
    validation = min(max(1, _round(settings.validation * count)), count - test - 1)
    return count - test - validation, validation, test


def _derived(record: UserRecord) -> list[Sample]:
    places: dict[str, list[int]] = {}
    for i, text in enumerate(record.history):
        places.setdefault(text, []).append(i)
        tag, colon, said = text.partition(": ")
        if colon and len(tag) <= _MAX_TAG:
            places.setdefault(said, []).append(i)
    out: list[Sample] = []
    position, start, found_any = 0, 0, False
    for sample in record.samples:
        known = places.get(sample.response, [])
        if sample.n_hist is not None:
            position = sample.n_hist
            found, found_any = position in known, True
        else:
            at = bisect_left(known, start)
            found = at < len(known)
            position = known[at] if found else position
            found_any = found_any or found
        start = position + 1 if found else max(start, position)
        out.append(replace(sample, n_hist=position))
    if found_any:
        return out
    return [replace(sample, n_hist=len(record.history)) for sample in record.samples]


def _continues(before: Sample, sample: Sample, history: Sequence[str]) -> bool:
    if before.n_hist is None or sample.n_hist != before.n_hist + 2 or sample.n_hist > len(history):
        return False
    asked = history[sample.n_hist - 1]
    return asked == sample.query or asked.endswith(": " + sample.query)


def _nearest(allowed: Sequence[int], validation: int, test: int) -> tuple[int, int] | None:
    if len(allowed) < 2:
        return None
    second = min(allowed[1:], key=lambda place: abs(place - test))
    first = min((place for place in allowed if place < second), key=lambda place: abs(place - validation))
    return first, second


def _position(sample: Sample) -> int:
    return sample.n_hist or 0


def _round(value: float) -> int:
    return int(value + 0.5 + 1e-9)  # halves up: round() takes 2.5 to 2, and 0.7 * 5 is a little under 3.5
