"""The run folder: what a run is, opened or new, and how it differs from a study of today.

Where storage.path is a URL, the run is at the URL, and :attr:`RunFolder.root` is in this process's
mirror of it (:mod:`milp_ray.storage.mirror`). Where each file is says :mod:`milp_ray.layout`; what
the files mean is for their writers. How a run is created whole is :mod:`milp_ray.study.creation`'s,
who may write it :mod:`milp_ray.study.run_lock`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import milp_ray
from milp_ray.config.loading import dump_study, load_study
from milp_ray.config.models import Study
from milp_ray.data.digests import Fingerprint
from milp_ray.errors import Problem, RunFolderError, StudyError
from milp_ray.ids import KEY_BYTES, POPULATION, alias_of, is_alias, new_key
from milp_ray.layout import (
    FIRST,
    KEY,
    META,
    STUDY,
    TABLES,
    Layout,
)
from milp_ray.model.fingerprint import COMMIT
from milp_ray.storage import (
    FileSet,
    Session,
    atomic_write,
    has_credentials,
    is_url,
    location_of,
    mirror_at,
    reading,
    url_fault,
)
from milp_ray.study.alias_key import given_key
from milp_ray.study.creation import create_run, delete_run, is_unused
from milp_ray.study.location import is_run, refuse_existing, run_location
from milp_ray.study.prompt_frame import with_frame
from milp_ray.study.provenance import differences, packages, without_ids
from milp_ray.study.run_lock import run_lock

# 2: texts are taken apart by the second rules (data.text_rules), and the data's fingerprint is one
# of each user, whose number follows from the alias. In 1 it is one of the whole file, and users are
# numbered by their places in it (milp_ray.study.users).
FORMAT = 2
# What a run of an earlier format goes on with, whatever is usual now: overrides of its frozen
# study.
_AS_BEGUN = {1: ["data.text_rules=1"], FORMAT: []}
# What those who look at a run at a URL need of it.
_READER_FILES = FileSet(FIRST, {TABLES: "*"})


class RunFolder:
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
        layout: where each file is.
        root: the folder; of a run at a URL in this process's mirror.
        location: its path or URL, for people and commands.
        study, key, meta: what it holds of these.
        session: of the driver that holds it, which is this process; None outside :meth:`lock`.
    """

    def __init__(self, root: Path, study: Study, key: bytes, meta: dict[str, object]) -> None:
        self.layout = Layout(root)
        self.root = root
        self.location = location_of(root)
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
            StorageError: the location cannot be written.
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
        group_reads = study.storage.readable_by == "group"
        folder = cls(create_run(location, first, group_reads=group_reads), frozen, key, meta)
        folder._is_new = True
        return folder.pinned()

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
            mirror.refresh(_READER_FILES)
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
        """The run of a resolved study, with the study's own ``ray`` section and data.

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
        moved = {"path": study.data.path, "files": study.data.files, "users": users}
        data = folder.study.data.model_copy(update=moved)
        folder.study = folder.study.model_copy(
            update={"ray": study.ray, "data": data, "tracking": study.tracking}
        )
        return folder.with_trials(study.search.trials).pinned()

    def with_trials(self, trials: int) -> RunFolder:
        """Itself, with more trials a user if asked; :meth:`keep_trials` writes them down."""
        if trials > self.study.search.trials:
            search = self.study.search.model_copy(update={"trials": trials})
            self.study = self.study.model_copy(update={"search": search})
        return self

    def keep_trials(self) -> None:
        """Write a grown number of trials into the frozen study; whoever holds the lock does.

        Nothing else of the study changes. Where another driver wrote more meanwhile, these count.

        Raises:
            StorageError: it cannot be written; the study is as it was.
        """
        frozen = self._frozen()
        self.with_trials(frozen.search.trials)
        if frozen.search.trials < self.study.search.trials:
            search = frozen.search.model_copy(update={"trials": self.study.search.trials})
            text = _HEADER + dump_study(frozen.model_copy(update={"search": search}))
            atomic_write(self.layout.study_file, lambda draft: draft.write_text(text, encoding="utf-8"))

    def _frozen(self) -> Study:
        """The study as it lies in the folder."""
        return load_study(self.layout.study_file, _AS_BEGUN[int(str(self.meta["format"]))])

    def pinned(self) -> RunFolder:
        """Itself, with the prompts and the hub model's commit that the run was begun with.

        So every node loads that commit, also once the revision in ``study.yaml`` means another, and
        makes the prompts of the day on which the run began.
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
        """The alias of a user given by raw id or by alias; the population by its name."""
        if user == POPULATION and self.study.unit == "population":
            return user
        return user if is_alias(user) else alias_of(user, self.key)

    def differences(self, study: Study) -> list[Problem]:
        """Where a study differs from the run's; :func:`~milp_ray.study.provenance.differences`."""
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
        """Delete the run if this process made it and nothing was searched; whether it did.

        For its driver, inside :meth:`lock`: what another driver has worked on is never deleted.

        Raises:
            RunBusyError: the run is not this process's any more.
            StorageError: it could not be read or deleted.
        """
        if self.session is None:
            raise RuntimeError("only the driver of a run removes it")
        if not self._is_new or self.session.number != 1 or not is_unused(self.root):
            return False
        delete_run(self.root, self.session.id)
        return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this driver: :func:`milp_ray.study.run_lock.run_lock`.

        Raises:
            RunBusyError: another driver holds it, or removed it.
            StorageError: the URL cannot be read or, at the end, not be written.
        """
        with run_lock(self.layout, self.key) as self.session:
            try:
                yield
            finally:
                self.session = None


_HEADER = (
    "# The frozen study of this run: every value spelled out, user ids replaced by aliases.\n"
    "# It is read by `milp-ray resume`; changing it has no good effect. To search anew, copy your own study\n"
    "# file, give it another name, and run `milp-ray search` on it.\n"
)


def _check_url(url: str) -> None:
    if fault := url_fault(url):
        raise RunFolderError(
            "the URL cannot be used",
            where="" if has_credentials(url) else url,
            expected=fault,
            remedy="correct it",
        )
