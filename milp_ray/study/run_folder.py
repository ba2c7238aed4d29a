"""The run folder: who may write it, and how it is written whole or not at all.

Where storage.path is a URL, the run is at the URL, and :attr:`RunFolder.root` is this process's mirror of it
(:mod:`milp_ray.storage.mirror`). Where each file is says :mod:`milp_ray.layout`; what the files mean is for
their writers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import milp_ray
from milp_ray.config.loading import dump_study, load_study
from milp_ray.config.models import Study
from milp_ray.data.digests import Fingerprint
from milp_ray.errors import MilpRayError, Problem, RunBusyError, RunFolderError, StudyError
from milp_ray.ids import KEY_BYTES, alias_of, is_alias, new_key
from milp_ray.layout import (
    DELETED_LAST,
    DRAFT_FOLDERS,
    EVENTS,
    EXPERIMENTS,
    FIRST,
    KEY,
    LOCK,
    MEMORIES,
    META,
    OF_UNUSED,
    SCORES,
    STUDY,
    TABLES,
    Layout,
)
from milp_ray.model.fingerprint import COMMIT
from milp_ray.storage import (
    GROUP,
    FileSet,
    Mirror,
    Session,
    atomic_write,
    clean_up_drafts,
    driving,
    follow,
    has_credentials,
    is_url,
    mirror_at,
    mirror_of,
    next_session,
    reading,
    remove_run,
    shown,
    sync_folder,
    url_fault,
    write_json,
    writing,
)
from milp_ray.storage.folder_lock import confirm_held, folder_lock
from milp_ray.storage.lease import Lease
from milp_ray.storage.stale_drafts import is_young
from milp_ray.study.alias_key import given_key
from milp_ray.study.location import is_run, refuse_existing, run_location
from milp_ray.study.prompt_frame import with_frame
from milp_ray.study.provenance import differences, packages, without_ids

# 2: texts are taken apart by the second rules (data.text_rules), and the data's fingerprint is one of each
# user, whose number follows from the alias. In 1 it is one of the whole file, and users are numbered by their
# places in it (milp_ray.study.users).
FORMAT = 2
# What a run of an earlier format goes on with, whatever is usual now: overrides of its frozen study.
_AS_BEGUN = {1: ["data.text_rules=1"], FORMAT: []}
# What those who look at a run at a URL need of it, and a driver: no weights, only that they are there.
_READERS = FileSet(FIRST, {TABLES: "*"})
_DRIVERS = FileSet(
    FIRST,
    {TABLES: "*", EVENTS: "*", SCORES: "*", EXPERIMENTS: "*", MEMORIES: "*/*.json"},
)


class RunFolder(Layout):
    """An existing run folder. Make one with :meth:`create`, or open one with :meth:`open`.

    Example:
        >>> study = Study.model_validate(
        ...     {
        ...         "name": "example",
        ...         "model": {"path": "a-model"},
        ...         "data": {"path": "users.jsonl"},
        ...         "storage": {"path": str(folder)},
        ...     }
        ... )
        >>> run = RunFolder.create(study, fingerprint="f" * 64)
        >>> sorted(path.name for path in run.root.iterdir())
        ['alias.key', 'lock', 'run.json', 'study.yaml']
        >>> RunFolder.open(run.root).study.name
        'example'

    Attributes:
        root: the folder; of a run at a URL this process's mirror.
        location: its path or URL, for people and commands.
        study, key, meta: what it holds of these.
        session: of the driver that holds it, which is this process; None outside :meth:`lock`.
    """

    def __init__(self, root: Path, study: Study, key: bytes, meta: dict[str, object]) -> None:
        super().__init__(root)
        self.location = shown(root)
        self.study = study
        self.key = key
        self.meta = meta
        self.session: Session | None = None
        self._is_new = False

    @classmethod
    def create(
        cls,
        study: Study,
        fingerprint: Fingerprint,
        key: bytes | None = None,
        base: Mapping[str, str] | None = None,
        prompts: Mapping[str, object] | None = None,
    ) -> RunFolder:
        """Make the folder of a new run: all of its first files, or nothing.

        Args:
            study: resolved (see :func:`milp_ray.config.loading.resolved`).
            fingerprint: of the users' data, so that a resume notices other data.
            key: of the aliases; a fresh one if None.
            base: fingerprint of the base model, likewise; None if it plays no part.
            prompts: what is kept of its prompts (:func:`milp_ray.study.prompt_frame.prompt_frame`).

        Raises:
            RunFolderError: there is one already.
            StorageError: the folder cannot be written.
        """
        location = run_location(study)
        key = key or new_key()
        frozen = without_ids(study, key)
        meta: dict[str, object] = {
            "format": FORMAT,
            "milp_ray": milp_ray.__version__,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "data_fingerprint": fingerprint if isinstance(fingerprint, str) else dict(fingerprint),
            "base": dict(base or {}),
            "packages": packages(),
            "prompts": dict(prompts or {}),
        }
        refuse_existing(location)
        first = {
            STUDY: (_HEADER + dump_study(frozen)).encode(),
            KEY: key,
            META: json.dumps(meta, indent=1).encode(),
        }
        if is_url(location):
            return cls(_create_at(mirror_at(location), first), frozen, key, meta)._made()
        root = Path(location)
        with writing(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            _clean_up_creations(root)
            draft = Path(tempfile.mkdtemp(prefix=f".{study.name}-", suffix=_DRAFT, dir=root.parent))
            try:
                _write_first(draft, first)
                (draft / LOCK).touch()
                if study.storage.readable_by == "group":
                    draft.chmod(GROUP)  # else as it is made: for its owner alone
                for file in draft.iterdir():
                    if file.name != KEY:
                        follow(file)
                sync_folder(draft)
                draft.rename(root)  # fails if somebody made a filled folder there meanwhile
                sync_folder(root.parent)
            except OSError as error:
                shutil.rmtree(draft, ignore_errors=True)
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    refuse_existing(location)
                raise
        return cls(root, frozen, key, meta)._made()

    def _made(self) -> RunFolder:
        self._is_new = True
        return self.pinned()

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open a run folder that :meth:`create` made.

        Raises:
            RunFolderError: no run folder there, or of a newer format.
            StorageError: it cannot be read.
        """
        if is_url(path):
            _check_url(str(path))
            mirror = mirror_at(str(path))
            mirror.refresh(_READERS)
            root = mirror.root
        else:
            root = Path(path).expanduser().resolve()
        layout = Layout(root)
        if not layout.meta_file.is_file() or not layout.study_file.is_file():
            there = root.exists() and not is_url(path)
            fact = "is not a run folder" if there else "no such run folder"
            raise RunFolderError(
                fact,
                where=str(path),
                expected="a folder with study.yaml and run.json, made by milp-ray search",
                remedy="name the folder that the search printed: <storage.path>/<study name>",
            )
        with reading(root):
            meta = json.loads(layout.meta_file.read_text(encoding="utf-8"))
            key = layout.key_file.read_bytes()
        if meta.get("format") not in _AS_BEGUN or len(key) != KEY_BYTES:
            raise RunFolderError(
                f"the run folder has format {meta.get('format')}, or its alias.key is damaged",
                where=str(path),
                expected=f"format {min(_AS_BEGUN)} to {FORMAT}",
                remedy="open it with the version of milp_ray in run.json",
            )
        return cls(root, load_study(layout.study_file, _AS_BEGUN[meta["format"]]), key, meta)

    @classmethod
    def of(cls, study: Study) -> RunFolder | None:
        """The run of a resolved study, to be worked on with the study's own ``ray`` section and data.

        None where there is none.

        Raises:
            StudyError: the run is of another study; every value that differs is named.
            RunFolderError, StorageError: as :meth:`open`.
        """
        location = run_location(study)
        if not is_run(location):
            return None
        folder = cls.open(location)
        if problems := folder.differences(study):
            raise StudyError(f"the run {location} is of another study", problems)
        users = without_ids(study, folder.key).data.users
        data = folder.study.data.model_copy(update={"path": study.data.path, "users": users})
        folder.study = folder.study.model_copy(update={"ray": study.ray, "data": data})
        return folder.with_trials(study.search.trials).pinned()

    def with_trials(self, trials: int) -> RunFolder:
        """Itself, with as many trials a user if these are more; :meth:`keep_trials` writes them down."""
        if trials > self.study.search.trials:
            search = self.study.search.model_copy(update={"trials": trials})
            self.study = self.study.model_copy(update={"search": search})
        return self

    def keep_trials(self) -> None:
        """Write the number of trials into the frozen study, where it has grown; by who holds the lock.

        Nothing else of the study changes. Where another driver wrote more meanwhile, these count.

        Raises:
            StorageError: it cannot be written; the study is as it was.
        """
        frozen = self._frozen()
        self.with_trials(frozen.search.trials)
        if frozen.search.trials < self.study.search.trials:
            search = frozen.search.model_copy(update={"trials": self.study.search.trials})
            text = _HEADER + dump_study(frozen.model_copy(update={"search": search}))
            atomic_write(self.study_file, lambda draft: draft.write_text(text, encoding="utf-8"))

    def _frozen(self) -> Study:
        """The study as it lies in the folder."""
        return load_study(self.study_file, _AS_BEGUN[int(str(self.meta["format"]))])

    def pinned(self) -> RunFolder:
        """Itself, with the prompts and, as the hub model's revision, the commit that the run was begun with.

        So every node loads that one, also once the revision of ``study.yaml`` means another commit, and makes
        the prompts of the day on which the run began.
        """
        self.study = with_frame(self.study, self.meta)
        if commit := self.base.get(COMMIT):
            model = self.study.model.model_copy(update={"revision": commit})
            self.study = self.study.model_copy(update={"model": model})
        return self

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the data that the run was made from."""
        found = self.meta["data_fingerprint"]
        return found if isinstance(found, dict) else str(found)

    @property
    def base(self) -> Mapping[str, str]:
        """Fingerprint of the base model that the run was made with; empty where none was taken."""
        found = self.meta.get("base")
        return found if isinstance(found, dict) else {}

    def alias(self, user: str) -> str:
        """The alias of a user given by raw id or by alias."""
        return user if is_alias(user) else alias_of(user, self.key)

    def differences(self, study: Study) -> list[Problem]:
        """Where a resolved study is another than the run's: :func:`milp_ray.study.provenance.differences`."""
        if self.meta["format"] == 1:  # of which the study's author need not know
            rules = {"text_rules": self.study.data.text_rules}
            study = study.model_copy(update={"data": study.data.model_copy(update=rules)})
        whole = isinstance(self.fingerprint, str)
        found = differences(self.study, without_ids(study, self.key), whole)
        if given_key(study) not in (None, self.key):
            fact, remedy = "is another key than the run's", "name the run's own, or none"
            found.append(Problem("data.alias_key", fact, "the key that the run was begun with", remedy))
        return found

    def no_such_user(self, expected: str = "a raw user id or an alias of the run") -> RunFolderError:
        """The error that a user who is not in the run stands for."""
        return RunFolderError(
            "the run has no such user",
            where=self.location,
            expected=expected,
            remedy="list the aliases with: milp-ray fronts RUN",
        )

    def remove_unused(self) -> bool:
        """Delete the whole run if this process made it and no trial was ever asked for; whether it did.

        For its driver, inside :meth:`lock`: what another driver has worked on is never deleted.

        Raises:
            RunBusyError: the run is not this process's any more.
            StorageError: it could not be read or deleted.
        """
        if self.session is None:
            raise RuntimeError("only the driver of a run removes it")
        if not self._is_new or self.session.number != 1 or not self._unused():
            return False
        if (mirror := mirror_of(self.root)) is not None:
            remove_run(mirror, last=DELETED_LAST)
            return True
        confirm_held(self.root)
        with writing(self.root):
            # At once, so that nobody finds a part of it; what a crash leaves goes with the next of the name.
            gone = self.root.with_name(f".{self.root.name}-{self.session.id}{_REMOVED}")
            self.root.rename(gone)
            shutil.rmtree(gone)
        return True

    def _unused(self) -> bool:
        """Whether there is nothing but what creation and a search without any trial write. At a URL what is
        there counts, and what this process has still to upload."""
        with reading(self.root):
            logs = {f"here/{log.name}": log.read_bytes() for log in (self.root / EVENTS).glob("*.jsonl")}
            if (mirror := mirror_of(self.root)) is None:
                names = {path.name for path in self.root.iterdir()}
            else:
                found = [each.name for each in mirror.objects.list_below()]
                names = {name.partition("/")[0] for name in found}
                logs |= {name: mirror.objects.get(name) for name in found if name.startswith(f"{EVENTS}/")}
        return names <= OF_UNUSED and all(log.count(b"\n") <= 1 for log in logs.values())

    def _keep_tune_log(self, mirror: Mirror) -> None:
        """Tune's own errors, which a person may be told to look into, go to the URL as well."""
        log = self.tune_log
        with contextlib.suppress(MilpRayError):
            if log.exists():
                mirror.put(log, log.read_bytes())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this driver, and remove what a killed one left half-made.

        In a folder it is a lock and a lease (:mod:`milp_ray.storage.folder_lock`), at a URL a lease alone
        (:mod:`milp_ray.storage.lease`), and event logs are uploaded while it is held. A session of the run
        begins, so that workers of an earlier driver publish nothing more.

        Raises:
            RunBusyError: another driver holds it, or removed it.
            StorageError: the URL cannot be read or, at the end, not be written.
        """
        if (mirror := mirror_of(self.root)) is not None:
            with driving(mirror, _DRIVERS):
                try:
                    with self._in_session():
                        yield
                finally:
                    self._keep_tune_log(mirror)
            return
        self._check_same()
        with folder_lock(self.root):
            self._clean_up()
            with self._in_session():
                yield

    @contextmanager
    def _in_session(self) -> Iterator[None]:
        """A session of the run, which is held."""
        self._check_same()
        self.session = next_session(self.root)
        write_json(self.session_file, self.session.to_plain())
        try:
            yield
        finally:
            self.session = None

    def _check_same(self) -> None:
        """Make sure that what is there is still this run: a key is new in every one."""
        with reading(self.root):
            key = self.key_file
            if self.meta_file.exists() and key.exists() and key.read_bytes() == self.key:
                return
        raise RunBusyError(
            "the run was removed meanwhile, or replaced by another of its name",
            where=self.location,
            expected="the run that this process made or opened",
            remedy="search again; where there is a run now, it goes on with: "
            f"milp-ray resume {self.location}",
        )

    def _clean_up(self) -> None:
        """Remove what drivers that were killed, and their workers, left half-made."""
        for scratch in (*self.tune.glob("search-*"), self.train):
            shutil.rmtree(scratch, ignore_errors=True)
        with reading(self.root):
            folders = [self.root]
            folders += [path for kind in DRAFT_FOLDERS for path in self.root.glob(kind) if path.is_dir()]
        for folder in folders:
            clean_up_drafts(folder)


_DRAFT, _REMOVED = ".draft", ".removed"
_HEADER = (
    "# The frozen study of this run: every value spelled out, user ids replaced by aliases.\n"
    "# It is read by `milp-ray resume`; changing it has no good effect. To search anew, copy your own study\n"
    "# file, give it another name, and run `milp-ray search` on it.\n"
)


def _write_first(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        mode = 0o600 if name == KEY else 0o644
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _clean_up_creations(root: Path) -> None:
    """Remove what is left of runs of this name whose making, or removal, was killed: drafts that hold nothing
    but first files, and all that was removed."""
    for gone in root.parent.glob(f".{root.name}-*{_REMOVED}"):
        shutil.rmtree(gone, ignore_errors=True)
    for draft in root.parent.glob(f".{root.name}-*{_DRAFT}"):
        with contextlib.suppress(OSError):
            if not is_young(draft) and {path.name for path in draft.iterdir()} <= {*FIRST, LOCK}:
                shutil.rmtree(draft)


def _create_at(mirror: Mirror, first: Mapping[str, bytes]) -> Path:
    """Put a run's first files at a URL, ``run.json`` last, so that it is there whole or not at all."""
    mirror.refresh(_DRIVERS)  # of an earlier run of the name, which was removed elsewhere
    with Lease(mirror.objects) as lease:
        refuse_existing(mirror.url)
        for name in FIRST:
            mirror.objects.guarded(lease).put(name, first[name])
    with writing(mirror.root):
        _write_first(mirror.root, first)
    return mirror.root


def _check_url(url: str) -> None:
    if fault := url_fault(url):
        raise RunFolderError(
            "the URL cannot be used",
            where="" if has_credentials(url) else url,
            expected=fault,
            remedy="correct it",
        )
