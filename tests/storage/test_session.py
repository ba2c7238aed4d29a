"""What a worker of an earlier driver's session writes is refused, whatever way it writes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milp_ray.errors import RunBusyError, StorageError, from_plain
from milp_ray.layout import SESSION
from milp_ray.storage import (
    driving,
    get_file,
    mirror_at,
    names_in,
    next_session,
    publish_for,
    put_file,
    remove_file,
    remove_folder,
    write_folder,
    write_json,
)
from milp_ray.storage.file_set import FileSet


@pytest.fixture(params=("folder", "memory"))
def root(request: pytest.FixtureRequest, tmp_path: Path, own_mirrors: None) -> Iterator[Path]:
    """A run in a folder, and at a URL, as a worker sees it."""
    if request.param == "folder":
        found = tmp_path / "run"
        found.mkdir()
    else:
        found = mirror_at(request.getfixturevalue("url_of")("memory")).root
    yield found
    publish_for(found, "")


def begin(root: Path) -> str:
    """A driver takes the run over."""
    session = next_session(root)
    write_json(root / SESSION, session.to_plain())
    return session.id


def two_files(draft: Path) -> None:
    for name in ("w.bin", "last.json"):
        (draft / name).write_bytes(b"new")


WAYS: list[Callable[[Path], object]] = [
    lambda root: write_json(root / "scores" / "u-a.json", {"a": 2}),
    lambda root: write_folder(root / "memories" / "u-a", two_files, commit_marker="last.json"),
    lambda root: put_file(root / "scores" / "u-a.json", b"new"),
    lambda root: remove_file(root / "scores" / "u-a.json"),
    lambda root: remove_folder(root / "memories" / "u-a", commit_marker="last.json"),
]


def everything(root: Path) -> dict[str, bytes]:
    names = ["scores/u-a.json", *(f"memories/u-a/{name}" for name in names_in(root / "memories" / "u-a"))]
    return {name: get_file(root / name) for name in names}


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_of_a_driver_that_lost_the_run_writes_nothing(
    root: Path, way: Callable[[Path], object]
) -> None:
    publish_for(root, begin(root))
    write_json(root / "scores" / "u-a.json", {"a": 1})
    write_folder(root / "memories" / "u-a", two_files, commit_marker="last.json")
    before = everything(root)
    publish_for(root, "")
    begin(root)  # of another driver, elsewhere
    publish_for(root, "the-first-one")
    with pytest.raises(RunBusyError, match="took over this run"):
        way(root)
    publish_for(root, "")
    assert everything(root) == before


def test_at_a_url_a_folder_that_is_under_way_when_the_run_is_taken_over_stays_without_its_last_file(
    own_mirrors: None, url_of: Callable[[str], str]
) -> None:
    root = mirror_at(url_of("memory")).root
    publish_for(root, begin(root))
    put = mirror_at(mirror_at_url(root)).put

    def slow(path: Path, content: bytes) -> None:
        put(path, content)
        if path.name == "w.bin":
            put(root / SESSION, b'{"id": "other", "number": 2}')

    mirror_at(mirror_at_url(root)).put = slow  # type: ignore[method-assign]
    with pytest.raises(RunBusyError):
        write_folder(root / "memories" / "u-a", two_files, commit_marker="last.json")
    publish_for(root, "")
    assert names_in(root / "memories" / "u-a") == {"w.bin"}


def mirror_at_url(root: Path) -> str:
    from milp_ray.storage import location_of

    return location_of(root)


def test_sessions_are_counted_and_each_is_another(root: Path) -> None:
    first, second = next_session(root), None
    write_json(root / SESSION, first.to_plain())
    second = next_session(root)
    assert (first.number, second.number) == (1, 2) and first.id != second.id


def test_a_run_that_is_gone_is_in_no_session(root: Path) -> None:
    publish_for(root, "mine")
    with pytest.raises(RunBusyError):
        write_json(root / "scores" / "u-a.json", {})


def test_a_damaged_session_is_said(root: Path) -> None:
    put_file(root / SESSION, b'{"id"')
    with pytest.raises(StorageError, match="damaged") as caught:
        next_session(root)
    assert "delete the file and resume" in str(caught.value)


def test_others_of_the_same_process_are_not_held_up(root: Path, tmp_path: Path) -> None:
    publish_for(root, "mine")
    write_json(tmp_path / "elsewhere" / "a.json", {})


def test_the_refusal_keeps_its_kind_on_every_way_to_the_driver() -> None:
    error = RunBusyError("taken over")
    for back in (from_plain(error.to_plain()), pickle.loads(pickle.dumps(error))):
        assert type(back) is RunBusyError and back.exit_code == 1


def test_a_driver_writes_its_session_under_its_lease(own_mirrors: None, url_of: Callable[[str], str]) -> None:
    mirror = mirror_at(url_of("memory"))
    with driving(mirror, FileSet()):
        begin(mirror.root)
    assert mirror.objects.exists(SESSION)
