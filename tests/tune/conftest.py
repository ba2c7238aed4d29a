"""A private Ray that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from milp_ray.config.models import RaySettings


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """As a run without a cluster of its own starts it."""
    from milp_ray.tune.cluster.session import ray_session

    with ray_session(RaySettings()):
        yield
