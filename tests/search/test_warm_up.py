from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from milp_ray.errors import StorageError
from milp_ray.search import Engine
from milp_ray.search import warm_up as module
from milp_ray.search.surrogates import nuts
from milp_ray.search.warm_up import use_cache, warm_up
from tests.search.problems import LOSS_AND_ROUGE, TINY_SAAS, small_space


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_EXTENSIONS_DIR", "MILP_RAY_CACHE"):
        monkeypatch.setenv(name, "x")  # so that monkeypatch restores what warm_up sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(nuts, "keep_compiled", lambda folder: None)  # global state of JAX


def engine(surrogate: str) -> Engine:
    options = TINY_SAAS if surrogate == "saas" else {}
    return Engine(small_space(), LOSS_AND_ROUGE, initial=6, surrogate=surrogate, surrogate_options=options)


def test_compiles_the_samplers_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nuts, "compile_for", lambda rows, d, **settings: compiled.append((rows, d)))
    done = warm_up(tmp_path, engine=engine("saas"), trials=70)
    assert done.compiled == (32, 64, 96)
    assert compiled == [(32, 5), (64, 5), (96, 5)]
    assert warm_up(tmp_path, engine=engine("saas")).compiled == (32,)
    assert warm_up(tmp_path, engine=engine("random"), trials=70).compiled == ()
    assert warm_up(tmp_path, engine=engine("gp"), trials=70).compiled == ()
    assert warm_up(tmp_path).compiled == ()


def test_what_was_compiled_is_what_a_fit_uses(tmp_path: Path) -> None:
    made = engine("saas")
    warm_up(tmp_path, engine=made)
    misses = nuts._program.cache_info().misses
    for proposal in made.ask(6):
        made.tell(proposal.id, {"loss": 1.0 + proposal.id, "rouge_l": 0.1 * proposal.id})
    assert made.ask(1)[0].source == "saas"
    assert nuts._program.cache_info().misses == misses


def test_the_lock_of_a_killed_build_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botorch.acquisition.multi_objective import logei

    folder = use_cache(tmp_path)
    lock = folder / "torch" / module._EXTENSION / "lock"
    lock.parent.mkdir()
    lock.touch()
    seen = []
    monkeypatch.setattr(logei, "_try_load_fused_kernel", lambda: seen.append(lock.exists()))
    monkeypatch.setattr(logei, "_C", object())
    assert warm_up(tmp_path, extension=True).extension
    assert seen == [False]
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(folder / "torch")


def test_a_lock_in_someone_elses_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botorch.acquisition.multi_objective import logei

    theirs = tmp_path / "theirs"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(theirs))
    lock = theirs / module._EXTENSION / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setattr(logei, "_try_load_fused_kernel", lambda: None)
    monkeypatch.setattr(logei, "_C", None)
    assert not warm_up(tmp_path, extension=True).extension
    assert lock.exists()


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from milp_ray.search import warm_up
with warm_up._exclusive(Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with module._exclusive(tmp_path):
        pass


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILP_RAY_CACHE", str(tmp_path / "mine"))
    assert use_cache().parent == tmp_path / "mine"
    monkeypatch.delenv("MILP_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert use_cache().parent == tmp_path / "xdg" / "milp_ray"


def test_an_unwritable_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="remedy"):
        warm_up(tmp_path / "file")


def test_only_their_owner_writes_where_compiled_programs_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    lenient = use_cache(tmp_path / "cache")
    lenient.chmod(0o777)  # as an earlier version may have made it
    again = use_cache(tmp_path / "cache")
    assert again == lenient and not again.stat().st_mode & 0o077
    again.parent.chmod(0o777)  # whoever may take it away, and put one in its place
    with pytest.raises(StorageError, match="others may write"):
        use_cache(tmp_path / "cache")
    tmp_path.chmod(0o1777)
    assert use_cache(tmp_path).parent == tmp_path, "a folder of one's own in a shared one, as /tmp is"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("planted", ["", "jax/program", "torch/logei_fused_ext/logei_fused_ext.so", ".."])
def test_another_users_compiled_programs_are_refused(tmp_path: Path, planted: str) -> None:
    place = use_cache(tmp_path / "cache")
    (place / "torch/logei_fused_ext").mkdir()
    for name in ("jax/program", "torch/logei_fused_ext/logei_fused_ext.so"):
        (place / name).touch()
    os.chown((place / planted).resolve(), 12345, -1)
    with pytest.raises(StorageError, match="another user's") as refused:
        use_cache(tmp_path / "cache")
    assert "MILP_RAY_CACHE" in str(refused.value)
