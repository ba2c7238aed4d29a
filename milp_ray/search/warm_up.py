"""What proposals need that takes seconds to import or compile, done ahead of the first proposal.

JAX's compiled samplers go into a cache folder, where later processes find them. Our own acquisition
compiles nothing; the C++ extension that BoTorch's log-NEHVI would otherwise build inside its first
call is built here on request, for Ax's own generators. Safe for several processes at once: they
take turns on a file lock, which the operating system drops with its owner, so a killed build blocks
no one. Nothing about users is in these caches.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from milp_ray.errors import StorageError
from milp_ray.search.engine import Engine
from milp_ray.search.surrogates import Sampler, make_surrogate
from milp_ray.search.surrogates.saas import Saas
from milp_ray.storage import ownership_fault, writing

_WHAT = "the folder of compiled programs"
_EXTENSION = "logei_fused_ext"  # the name BoTorch gives it


@dataclass(frozen=True)
class WarmedUp:
    """What was done.

    Attributes:
        folder: of the caches of this kind of machine.
        compiled: largest numbers of observations that samplers were compiled (or loaded) for.
        extension: whether BoTorch's C++ extension is loaded; without it BoTorch computes the same
            in Python.
        seconds: it took.
    """

    folder: Path
    compiled: tuple[int, ...]
    extension: bool
    seconds: float


def warm_up(
    folder: str | os.PathLike[str] | None = None,
    *,
    engine: Engine | None = None,
    trials: int | None = None,
    extension: bool = False,
) -> WarmedUp:
    """Import, and compile into a cache, what the proposals of a search will need.

    Args:
        folder: of the caches; None: ``MILP_RAY_CACHE``, else ``milp_ray`` in the user's cache
            folder.
        engine: one of the search's engines (all users share samplers); None: imports only.
        trials: up to how many observations to compile for; None: the engine's limit, else its
            initial design plus one batch.
        extension: whether to build BoTorch's C++ extension, too (seconds; minutes on a busy
            machine).

    Raises:
        StorageError: the folder cannot be written.
    """
    began = time.monotonic()
    cache = use_cache(folder)
    compiled: tuple[int, ...] = ()
    with _exclusive(cache):
        if engine is not None:
            compiled = _compile(engine, trials)
        built = _build_extension(cache) if extension else False
    return WarmedUp(cache, compiled, built, time.monotonic() - began)


def use_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Let this process keep compiled programs in ``folder``; returns this kind of machine's part.

    Call it in every process that proposes, before its first proposal. A setting of
    ``TORCH_EXTENSIONS_DIR`` or ``JAX_COMPILATION_CACHE_DIR`` that is there already stands.

    Compiled programs are run by whoever finds them, so the folder must hold no other user's.

    Raises:
        StorageError: the folder cannot be written, or others can put programs into it.
    """
    root = Path(folder or os.environ.get("MILP_RAY_CACHE") or _user_cache())
    root = root.expanduser().resolve()
    cache = root / _machine()
    _make_private(root, cache)
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "torch"))
    from milp_ray.search.surrogates import nuts

    nuts.keep_compiled(cache / "jax")
    return cache


def _make_private(root: Path, cache: Path) -> None:
    """Make the cache's folders, which only their owner can write in."""
    with writing(cache):
        for folder in (root, cache, cache / "jax", cache / "torch"):
            folder.mkdir(mode=0o700, parents=folder == root, exist_ok=True)
        fault = ownership_fault(root, _WHAT)
        if root.stat().st_mode & stat.S_ISVTX and root.stat().st_uid in (0, os.getuid()):
            fault = ""  # as /tmp is: nobody can take another's folder away
        fault = fault or _foreign(cache)
        # Made by an earlier version under a lenient umask, but nobody has put anything there.
        if not fault and cache.stat().st_uid == os.getuid():
            cache.chmod(0o700)
    if fault:
        raise StorageError(
            fault,
            where=str(cache),
            expected="a folder that you alone write in: what is compiled there is run",
            remedy="chmod go-w, or remove it, or set MILP_RAY_CACHE to a folder of yours",
        )


def _foreign(cache: Path) -> str:
    """The fault that another user made a folder, or put anything into it; empty: nobody did."""
    owners = {cache.lstat().st_uid}
    for above, folders, files in os.walk(cache):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):  # another process of ours put a program in place
                owners.add((Path(above) / name).lstat().st_uid)
    return "" if owners <= {os.getuid(), 0} else f"{_WHAT} holds another user's files"


def _compile(engine: Engine, trials: int | None) -> tuple[int, ...]:
    settings = engine.settings
    surrogate = make_surrogate(settings.surrogate, settings.surrogate_options)
    if isinstance(surrogate, Sampler):
        return ()
    import milp_ray.search.acquisition.log_nehvi  # noqa: F401  (torch and BoTorch)

    if not isinstance(surrogate, Saas):
        return ()
    from milp_ray.search.surrogates import nuts

    first = nuts.bucket_of(max(1, settings.initial))
    last = nuts.bucket_of(max(settings.initial + settings.batch, trials or settings.trials or 0))
    rows = tuple(range(first, last + 1, nuts.BUCKET))
    for count in rows:
        surrogate.compile_for(count, engine.space.num_features)
    return rows


def _build_extension(cache: Path) -> bool:
    if os.environ["TORCH_EXTENSIONS_DIR"] == str(cache / "torch"):
        # We hold the file lock of this folder, so torch's own lock is that of a killed build.
        (cache / "torch" / _EXTENSION / "lock").unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a compiler BoTorch says so, and goes on in Python
        from botorch.acquisition.multi_objective import logei

        logei._try_load_fused_kernel()
    return logei._C is not None


@contextmanager
def _exclusive(cache: Path) -> Iterator[None]:
    with writing(cache), (cache / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milp_ray"


def _machine() -> str:
    """A name for processors that run the same compiled code: clusters share home folders."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
