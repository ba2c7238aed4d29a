"""Stores on which the same tests run: S3, Google Cloud Storage, fsspec's memory, a folder."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milp_ray.storage.mirror import Mirror
from milp_ray.storage.objects import Objects, objects_at

STORES = ("s3", "gs", "memory", "folder")


@pytest.fixture(params=STORES)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty place of each kind of store; retries do not wait."""
    from pyarrow import fs

    if request.param == "gs":  # as objects_at would, but without credentials
        server = request.getfixturevalue("gcs_server")
        filesystem = fs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=server)
        root = f"bucket/{secrets.token_hex(6)}/run"
        found = Objects(filesystem, root, f"gs://{root}")
    elif request.param == "folder":
        found = Objects(fs.LocalFileSystem(), str(tmp_path / "store" / "run"), "folder://run")
    else:
        found = objects_at(request.getfixturevalue("url_of")(request.param))
    found._pauses = (0.0, 0.0)
    return found


@pytest.fixture
def url_of(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A fresh URL of a scheme."""

    def make(scheme: str) -> str:
        if scheme == "s3":
            return str(request.getfixturevalue("s3")) + "/deep/run"
        return f"memory://{secrets.token_hex(6)}/deep/run"

    return make


@pytest.fixture(params=("s3", "memory"))
def url(request: pytest.FixtureRequest, own_mirrors: None) -> Iterator[str]:
    """A fresh URL of each scheme, for mirrors."""
    yield request.getfixturevalue("url_of")(request.param)


class Failing:
    """A pyarrow file system that fails when it is told to."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.type_name = inner.type_name  # type: ignore[attr-defined]
        self.error: BaseException | None = None
        self.left = 0
        self.calls = 0
        self.matching = ""
        self.on_failure: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> object:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def call(*args: object, **kwargs: object) -> object:
            if name == "open_output_stream" and self.matching in str(args[0]):
                self.calls += 1
                if self.error is not None and self.left:
                    self.left -= 1
                    self.on_failure()
                    raise self.error
            return found(*args, **kwargs)

        return call


@pytest.fixture
def failing() -> Callable[[Objects], Failing]:
    """Puts a :class:`Failing` between a place and its store."""

    def make(objects: Objects) -> Failing:
        between = Failing(objects._fs)
        objects._fs = between
        objects._pauses = (0.0, 0.0)
        return between

    return make


@pytest.fixture
def other_machine(url: str, tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of the same URL elsewhere."""
    mirror = Mirror(url, objects_at(url), tmp_path / "elsewhere")
    yield mirror
    mirror.close()
