"""A mirror is read and written as the run folder; what counts is at the URL."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from milp_ray.errors import StorageError
from milp_ray.storage import (
    close_mirrors,
    get_file,
    local_copy,
    location_of,
    mirror_at,
    names_in,
    pull,
    put_file,
    remove_file,
    remove_folder,
    write_folder,
    write_json,
)
from milp_ray.storage import mirror as mirror_module
from milp_ray.storage.file_set import FileSet
from milp_ray.storage.mirror import Mirror
from milp_ray.storage.objects import Objects, objects_at
from tests.storage.conftest import Failing

EVERY = FileSet(("run.json", "alias.key"), {"events": "*", "scores": "*", "tables": "*"})


def test_a_file_is_at_the_url_when_the_call_returns(url: str, other_machine: Mirror) -> None:
    root = mirror_at(url).root
    write_json(root / "scores" / "u-a.json", {"a": 1})
    assert objects_at(url).get("scores/u-a.json") == b'{\n "a": 1\n}'
    other_machine.pull(EVERY)
    assert (other_machine.root / "scores" / "u-a.json").read_bytes() == b'{\n "a": 1\n}'
    assert location_of(root / "scores" / "u-a.json") == f"{url}/scores/u-a.json" and location_of(root) == url
    remove_file(root / "scores" / "u-a.json")
    remove_file(root / "scores" / "u-a.json")
    assert objects_at(url).list_below() == [] and not (root / "scores" / "u-a.json").exists()


def test_a_put_that_fails_leaves_the_old_file_at_both_ends(
    url: str, failing: Callable[[Objects], Failing]
) -> None:
    mirror = mirror_at(url)
    path = mirror.root / "scores" / "u-a.json"
    write_json(path, {"a": 1})
    between = failing(mirror.objects)
    between.error, between.left = OSError("AWS Error NETWORK_CONNECTION"), 99
    with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
        write_json(path, {"a": 2})
    between.error = None
    assert path.read_text() == '{\n "a": 1\n}' and get_file(path) == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["u-a.json"]


def adapter(draft: Path, weights: bytes = b"w") -> None:
    (draft / "adapter_config.json").write_bytes(b"{}")
    (draft / "adapter_model.safetensors").write_bytes(weights)


def test_a_folder_of_one_process_is_read_in_another(url: str, other_machine: Mirror) -> None:
    folder = mirror_at(url).root / "memories" / "u-a"
    write_folder(folder, adapter, commit_marker="adapter_config.json")
    assert names_in(folder.parent) == {"u-a"} and names_in(folder) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not folder.exists(), "a worker's disk would fill with what it has written"
    with other_machine.local_copy(other_machine.root / "memories" / "u-a") as copy:
        assert copy.name == "u-a" and (copy / "adapter_model.safetensors").read_bytes() == b"w"
    assert not copy.exists()
    with local_copy(folder.parent / "u-b") as copy:
        assert not copy.exists()
    write_folder(folder, lambda draft: (draft / "adapter_config.json").write_bytes(b"new"))
    assert names_in(folder) == {"adapter_config.json"}


def test_a_folder_without_its_last_file_is_none_whenever_it_fails(
    url: str, failing: Callable[[Objects], Failing]
) -> None:
    mirror = mirror_at(url)
    folder = mirror.root / "memories" / "u-a"
    between = failing(mirror.objects)
    for file in ("adapter_config", "adapter_model"):
        write_folder(folder, adapter, commit_marker="adapter_config.json")
        between.error, between.left, between.matching = OSError("AWS Error INTERNAL"), 99, file
        with pytest.raises(StorageError):
            write_folder(folder, lambda draft: adapter(draft, b"new"), commit_marker="adapter_config.json")
        between.error = None
        assert "adapter_config.json" not in names_in(folder)
        pull(folder.parent, "*/adapter_config.json")
        assert not (folder / "adapter_config.json").exists()
    remove_folder(folder, commit_marker="adapter_config.json")
    assert names_in(folder) == set()


def test_what_others_wrote_is_seen_on_request(url: str, other_machine: Mirror) -> None:
    root = mirror_at(url).root
    other_machine.objects.put("scores/u-a.json", b"{}")
    other_machine.objects.put("memories/u-a/adapter_config.json", b"{}")
    other_machine.objects.put("memories/u-a/adapter_model.safetensors", b"large")
    pull(root / "scores", "*.json")
    pull(root / "memories", "*/adapter_config.json")
    assert (root / "scores" / "u-a.json").exists()
    assert [p.name for p in (root / "memories" / "u-a").iterdir()] == ["adapter_config.json"]


def test_only_plain_names_go_out_and_come_in(url: str) -> None:
    mirror = mirror_at(url)
    for name in ("alice@example.org", "a b", "-x", "é"):
        with pytest.raises(StorageError, match="not a plain file name"):
            write_json(mirror.root / "scores" / name, {})
    assert mirror.objects.list_below() == []
    mirror.objects.put("scores/a b.json", b"{}")
    mirror.objects.put("scores/fine.json", b"{}")
    mirror.pull(EVERY)
    assert [p.name for p in (mirror.root / "scores").iterdir()] == ["fine.json"]


@pytest.mark.parametrize("name", ["events/../../../../evil", "/etc/passwd", "a//b", "..", ".x", "a/-rf", ""])
def test_a_bucket_cannot_write_outside_the_mirror(name: str) -> None:
    assert not mirror_module._is_plain(name)


def test_a_mirror_is_private_and_goes_with_its_process(url: str, tmp_path: Path) -> None:
    mirror = mirror_at(url)
    assert mirror.folder.stat().st_mode & 0o077 == 0 and mirror.folder.parent.stat().st_mode & 0o077 == 0
    close_mirrors()
    assert not list((tmp_path / "cache" / "twins").iterdir())
    (tmp_path / "cache" / "twins").chmod(0o755)
    with pytest.raises(StorageError, match="not private"):
        mirror_at(url)


def _use(path: Path) -> None:
    assert get_file(path / "a.json") == b"{}"
    put_file(path / "b.json", b"from the other process")


def test_a_path_sent_to_another_process_is_the_same_place(s3: str) -> None:
    root = mirror_at(f"{s3}/run").root
    write_json(root / "tables" / "a.json", {})
    assert pickle.loads(pickle.dumps(root / "tables")) == root / "tables"
    assert pickle.loads(pickle.dumps(root)) == root
    process = multiprocessing.get_context("spawn").Process(target=_use, args=(root / "tables",))
    process.start()
    process.join()
    assert process.exitcode == 0 and not (root / "tables" / "b.json").exists()
    assert get_file(root / "tables" / "b.json") == b"from the other process"


def test_mirrors_of_killed_workers_are_cleaned_up(s3: str, tmp_path: Path) -> None:
    made = "import os, sys; from milp_ray.storage import mirror_at; mirror_at(sys.argv[1])"
    code = f"{made}; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, f"{s3}/run"], check=False)
    left = list((tmp_path / "cache" / "twins").iterdir())
    assert len(left) == 1
    assert mirror_at(f"{s3}/other").folder not in left and not left[0].exists()
