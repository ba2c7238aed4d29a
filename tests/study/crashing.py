"""Ends a process at any one of its writes, and runs studies in one process without Ray, to try them
all.

A forked child ends by ``os._exit`` right before its n-th write to the folders that are watched:
nothing is cleaned up, nothing that was buffered is written, locks go with the process, as after
``kill -9``. A write is whatever changes a file system (a file made, written, flushed, renamed,
deleted, a folder made), and a put or a deletion at a store, which are whole by themselves. What a
power cut takes of what was not flushed is *not* tried.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from milp_ray.storage import url_driver, write_json
from milp_ray.storage.objects import Objects
from milp_ray.study import driver, run
from milp_ray.tune.cluster import dashboard, shared
from milp_ray.tune.final import run as final
from milp_ray.tune.final import worker as final_worker
from milp_ray.tune.search import run as search_run
from milp_ray.tune.workers import trial_runner

KILLED, FAILED = 9, 1


class Writes:
    """Counts writes below some folders, and ends the process at one of them.

    Args:
        folders: that are watched.
        last: the number of the write that does not happen, from 1; 0: none.
    """

    def __init__(self, folders: Sequence[Path], last: int) -> None:
        self.folders = [str(folder) for folder in folders]
        self._last = last
        self.names: list[str] = []

    def watch(self) -> None:
        """From now on, for the rest of this process."""
        for name in ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "utime"):
            self._wrap(os, name, lambda first, *_: first)
        for name in ("fsync", "ftruncate"):
            self._wrap(os, name, lambda handle, *_: _path_of(handle))
        self._wrap(os, "open", lambda path, flags, *_: path if flags & (os.O_CREAT | os.O_TRUNC) else None)
        for module in (builtins, io):
            self._wrap(module, "open", lambda path, mode="r", *_: path if set(mode) & set("wax+") else None)
        write = os.write

        def torn(handle: int, data: bytes) -> int:
            if self._counts("write", _path_of(handle)):
                write(handle, data[: len(data) // 2])
                os._exit(KILLED)
            return write(handle, data)

        os.write = torn
        for name in ("put", "delete", "delete_folder"):
            self._wrap(Objects, name, lambda objects, name="", *_: f"{self.folders[0]}/{objects.url}/{name}")

    def _wrap(self, module: Any, name: str, where: Callable[..., Any]) -> None:
        inner = getattr(module, name)

        def counted(*words: Any, **named: Any) -> Any:
            if self._counts(name, where(*words), named.get("dir_fd")):
                os._exit(KILLED)
            return inner(*words, **named)

        setattr(module, name, counted)

    def _counts(self, kind: str, path: Any, folder: int | None = None) -> bool:
        """Whether this is the write that does not happen."""
        if not isinstance(path, (str, os.PathLike)):
            return False
        text = os.fspath(path) if folder is None else f"{_path_of(folder)}/{os.fspath(path)}"
        if not text.startswith(tuple(self.folders)):
            return False
        self.names.append(f"{kind} {Path(text).name}")
        return len(self.names) == self._last


def _path_of(handle: Any) -> str | None:
    try:
        return str(Path(f"/proc/self/fd/{handle}").readlink())
    except OSError:
        return None


def in_a_child(work: Callable[[], object], folders: Sequence[Path], last: int = 0) -> tuple[int, list[str]]:
    """Do something in a forked child that ends at its ``last``-th write.

    Returns:
        Its exit code and, if it came to its end, what ``work`` gave back, or else all its writes.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _in_child(work, Writes(folders, last), write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    found = pickle.loads(told) if told else []
    if isinstance(found, str):
        raise AssertionError(found)
    return os.waitstatus_to_exitcode(status), found


def _in_child(work: Callable[[], object], writes: Writes, pipe: int) -> None:
    code = FAILED
    plain = os.write
    try:
        if writes.folders:
            writes.watch()
        given = work()
        plain(pipe, pickle.dumps(given if isinstance(given, list) else writes.names))
        code = 0
    except BaseException:
        plain(pipe, pickle.dumps(traceback.format_exc()))
    finally:
        os._exit(code)


class _Direct:
    """An actor's handle whose calls happen here and now."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        class Call:
            remote = staticmethod(method)

        return Call


def without_ray(base: object = None) -> None:
    """Have the product's driver and workers run in this process from now on, one trial after the
    other.

    Everything but Ray is the product's own: run folder, engines, trials on ``base`` (None:
    simulated ones), the final job's ranks and coordinator, tables. For a forked child, which needs
    nothing put back.
    """
    ray.get = lambda given: given  # type: ignore[assignment]
    ray.put = lambda given: given  # type: ignore[assignment]
    for module in (dashboard, trial_runner, final_worker):
        module.log_line = lambda *_: None  # type: ignore[attr-defined]
    dashboard.describe_job = lambda *_: None
    shared.check_shared = lambda *_: None
    run.ray_session = lambda *_: contextlib.nullcontext()  # type: ignore[assignment]
    run.stop_on_signals = lambda *_: contextlib.nullcontext(lambda: False)  # type: ignore[assignment]
    run.PrometheusExporter = _NoExporter  # type: ignore[misc, assignment]
    final_worker.this_process = lambda: None  # type: ignore[assignment, return-value]
    driver.preflight = lambda *_, **__: types.SimpleNamespace(faults=[], notes=[])  # type: ignore
    final_worker.resident_base = lambda *_: base  # type: ignore[assignment]
    search_run.run_search = _search(base)  # type: ignore[assignment]
    final.run_final = _final  # type: ignore[assignment]
    sys.modules["milp_ray.search.ax.export"] = _experiments()
    url_driver.LogUploader = _UploadsAtOnce  # type: ignore[misc, assignment]


def _experiments() -> types.ModuleType:
    """In place of Ax, which takes its time to be imported: what is written is small, and written
    alike."""
    module: Any = types.ModuleType("milp_ray.search.ax.export")
    module.has_parameters = lambda *_: True
    module.build_client = lambda alias, engine: {"trials": engine.counts.asked}
    module.save_client = lambda client, path: write_json(path, client)
    return module  # type: ignore[no-any-return]


class _NoExporter:
    def __init__(self, *_: object) -> None:
        pass

    def watching(self, *_: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        pass


class _UploadsAtOnce:
    """The uploader without its thread, so that writes come in the same order in every process."""

    lazy = False  # whether nothing is uploaded before the end

    def __init__(self, upload: Callable[[Path], None]) -> None:
        self._upload = upload
        self._marked: dict[Path, None] = {}

    def check(self) -> None:
        pass

    def mark(self, path: Path) -> None:
        self._marked[path] = None
        if not self.lazy:
            self.close()

    def close(self) -> None:
        while self._marked:
            path = next(iter(self._marked))
            del self._marked[path]
            self._upload(path)

    def drop(self) -> None:
        self._marked.clear()


def upload_late() -> None:
    """Have logs uploaded at the end only, as where a store is slow."""
    _UploadsAtOnce.lazy = True


def _search(base: object) -> Callable[..., dict[str, str]]:
    from milp_ray.trial.records import BASELINE, TrialRequest
    from milp_ray.tune.workers.trial_runner import TrialRunner

    def real(spec: Any) -> Callable[..., Mapping[str, Any]]:
        slices = TrialRunner(spec, base)  # type: ignore[arg-type]

        def measure(alias: str, number: int, placement: Any) -> Mapping[str, Any]:
            slices.begin(TrialRequest(alias, number, placement))
            while not (report := slices.step()).is_over:
                pass
            return {"reason": report.reason, "by_user": report.by_user, **report.values}

        return measure

    def simulated(spec: Any) -> Callable[..., Mapping[str, Any]]:
        def measure(alias: str, number: int, placement: Any) -> Mapping[str, Any]:
            if spec.fails(alias, number):
                return {"reason": "simulated failure"}
            return dict(spec.measure(alias, None if number == BASELINE else placement))

        return measure

    def search(spec: Any, engines: Mapping[str, Any], *_: object, **__: object) -> dict[str, str]:
        from milp_ray.memory.placement import Placement

        measure = (simulated if base is None else real)(spec)
        names = [name for name in spec.study.objectives if name != "trainable_params"]
        for alias, engine in list(engines.items()):
            if engine.reference is None:
                found = measure(alias, BASELINE, Placement(()))
                values = {name: found[name] for name in names}
                engine.set_reference(values, by_user=_measured(found, names))
            while proposals := list(engine.pending) or engine.ask():
                for proposal in proposals:
                    found = measure(alias, proposal.id, proposal.placement)
                    if found.get("reason"):
                        engine.fail(proposal.id, found["reason"])
                    else:
                        values = {name: found[name] for name in names}
                        engine.tell(proposal.id, values, by_user=_measured(found, names))
        return {}

    return search


def _measured(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, float]]:
    by_user = found.get("by_user", {})
    return {alias: {name: values[name] for name in names} for alias, values in by_user.items()}


def _final(spec: Any, stop_requested: object, listener: Callable[[Any], None], *_: object) -> None:
    from milp_ray.errors import from_plain
    from milp_ray.tune.final.coordinator import Coordinator
    from milp_ray.tune.final.worker import FinalLoop, RankAssignment, _assign

    coordinator = Coordinator(spec, 1)
    direct = _Direct(coordinator)
    coordinator.begin(1)
    _assign(RankAssignment(0, 0, 1, ""))
    FinalLoop(direct, 1)()
    update = coordinator.update()
    for result in update.results:
        listener(result)
    if update.fatal is not None:
        raise from_plain(update.fatal)
