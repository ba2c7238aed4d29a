"""Begins a run, or goes on with one. Its steps are :mod:`milp_ray.study.run`'s."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from milp_ray.config.loading import load_study, resolved
from milp_ray.config.models import Study
from milp_ray.errors import ClusterError, MilpRayError, Problem, RunFolderError, StudyError
from milp_ray.ids import new_key
from milp_ray.search.surrogates import check_surrogate
from milp_ray.study.alias_key import given_key
from milp_ray.study.inputs import Inputs, load_inputs
from milp_ray.study.location import refuse_existing, run_location
from milp_ray.study.population import Population
from milp_ray.study.preflight import combined, preflight
from milp_ray.study.prompt_frame import prompt_frame
from milp_ray.study.provenance import changed_packages, fewer_trials
from milp_ray.study.results import save_experiment
from milp_ray.study.run import Outcome, Run
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.stopping import signals_interrupt

_TRACKING = "tracking"
_GROWING = ("search.trials",)  # what of a study may be more when its run is gone on with


def start(study: Study, console: Console) -> Outcome:
    """A new run of a study.

    Raises:
        MilpRayError: the study, data, model, storage or cluster is not usable. Nothing is left
            half-made.
    """
    return _work(*_made(resolved(study)), console, looked_at=True)


def _made(study: Study) -> tuple[RunFolder, Inputs]:
    """The folder of a new run of a resolved study, once all that it needs is usable."""
    refuse_existing(run_location(study))
    check_surrogate(study.search.surrogate)
    key = given_key(study) or new_key()
    inputs = load_inputs(study, key)
    if faults := preflight(study, inputs.architecture, inputs.users).faults:
        raise combined(study, faults)
    return RunFolder.create(study, inputs.users.fingerprint, key, inputs.base, prompt_frame(study)), inputs


def start_or_resume(study: Study, console: Console) -> Outcome:
    """A run of a study, as a job wants it: begun, or gone on with, also with more trials.

    Raises:
        StudyError: the run is of another study; every value that differs is named.
        RunBusyError: another driver works on it.
        MilpRayError: as :func:`start`.
    """
    study = resolved(study)
    folder = RunFolder.of(study)
    if folder is None:
        try:
            made = _made(study)
        except RunFolderError:
            folder = RunFolder.of(study)  # a job beside this one made it while this one read data and model
            if folder is None:
                raise
        else:
            return _work(*made, console, looked_at=True)
    return _work(folder, _inputs_of(folder), console)


def final_of(study: Study, console: Console) -> Outcome:
    """The final job of a study's run, as :func:`final`.

    Raises:
        RunFolderError: the study has no run yet, or none whose search is over for any user.
        MilpRayError: as :func:`start_or_resume`.
    """
    study = resolved(study)
    folder = RunFolder.of(study)
    if folder is None:
        raise RunFolderError(
            "the study has no run yet",
            where=run_location(study),
            expected="a run whose search is over for at least one user",
            remedy="search first, with the same study",
        )
    return _final(folder, console)


def _inputs_of(folder: RunFolder) -> Inputs:
    """The inputs of a run, which must be those that it was begun with."""
    folder.pinned()
    return load_inputs(folder.study, folder.key, folder.fingerprint, folder.base)


def resume(path: Path | str, console: Console, overrides: Sequence[str] = ()) -> Outcome:
    """Go on with a run after any interruption; a finished run is only tabulated again.

    Args:
        path: the run folder, or its URL.
        console: where progress goes.
        overrides: ``ray.key=value``: where a run is worked on may change, what it is may not;
            ``tracking=[…]``; and a larger ``search.trials``, with which a search, finished or not,
            goes on.

    Raises:
        StudyError: another override, or a smaller number of trials.
        MilpRayError: as :func:`start`, or there is no run, or its data or base model has changed.
    """
    folder = _opened(path, overrides, "resume", _GROWING)
    return _work(folder, _inputs_of(folder), console)


def final(path: Path | str, console: Console, overrides: Sequence[str] = ()) -> Outcome:
    """The final job alone, for users whose search is over; finished users are kept.

    Raises:
        StudyError: an override of something else than ``ray.*`` and ``tracking``.
        RunFolderError: there is no run, it is simulated, or no user's search is over.
        MilpRayError: as :func:`start`.
    """
    return _final(_opened(path, overrides, "final"), console)


def _final(folder: RunFolder, console: Console) -> Outcome:
    if folder.study.simulation is not None:
        raise RunFolderError(
            "a simulated run has no final job",
            where=folder.location,
            expected="a run whose trials train a model",
            remedy="take simulation out of the study, and search under another name",
        )
    inputs = _inputs_of(folder)
    with _at_work(folder, console):
        run = Run(folder, inputs, console, search=False)
        missing = sum(not summary.over for _, summary in run.population.summaries())
        if missing == len(run.population.aliases):
            raise RunFolderError(
                f"no {run.units.noun}'s search is over",
                where=folder.location,
                expected=f"at least one {run.units.noun} whose trials are all done",
                remedy=f"finish the search with: milp-ray resume {folder.location}",
            )
        if missing:
            console.print(f"{missing} users are left out: their search is not over (milp-ray resume)")
        _preflight(run)
        return run.work()


def _opened(
    path: Path | str, overrides: Sequence[str], command: str, growing: tuple[str, ...] = ()
) -> RunFolder:
    """A run with overrides of ``ray.*`` and of what may grow."""
    folder = RunFolder.open(path)
    if overrides:
        _check_overrides(overrides, command, growing)
        changed = load_study(folder.layout.study_file, overrides)
        if fewer := fewer_trials(folder.study, changed):
            raise StudyError(command, fewer)
        here = {"ray": changed.ray, "tracking": changed.tracking}
        folder.study = folder.study.model_copy(update=here)
        folder.with_trials(changed.search.trials)
    return folder


def _check_overrides(overrides: Sequence[str], command: str, growing: tuple[str, ...]) -> None:
    expected = "ray.<key>=<value>, tracking=[…]" + "".join(f", or a larger {key}" for key in growing)
    problems = [
        Problem(
            f"override {key}",
            "a run keeps its study",
            expected,
            "start a new run under another name for other settings",
        )
        for key in (text.partition("=")[0] for text in overrides)
        if not key.startswith("ray.") and key not in (_TRACKING, *growing)
    ]
    if problems:
        raise StudyError(command, problems)


def _work(folder: RunFolder, inputs: Inputs, console: Console, *, looked_at: bool = False) -> Outcome:
    with _at_work(folder, console):
        run = Run(folder, inputs, console, final=folder.study.final.automatic)
        if not looked_at:
            _preflight(run)
        return run.work()


def _preflight(run: Run) -> None:
    """Find what would keep every worker from going on, before Ray is started.

    A worker's first steps went well when the run began: they are tried again only with other
    packages.

    Raises:
        StudyError: something would, each told.
    """
    if run.complete():
        return
    study, inputs = run.study, run.inputs
    first_steps = bool(changed_packages(run.folder.meta))
    found = preflight(study, inputs.architecture, inputs.users, first_steps=first_steps)
    if found.faults:
        raise combined(study, found.faults)


@contextlib.contextmanager
def _at_work(folder: RunFolder, console: Console) -> Iterator[None]:
    with folder.lock(), signals_interrupt():
        folder.keep_trials()
        if changed := changed_packages(folder.meta):
            console.print(f"note: the run was begun with {changed}: results may differ", soft_wrap=True)
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:  # a bug's traceback ends with it, too
            if not _left_nothing(folder, error):
                error.add_note(f"what is finished is kept; continue with: milp-ray resume {folder.location}")
            raise


def _left_nothing(folder: RunFolder, error: BaseException) -> bool:
    """Whether a new run went, as no cluster could be had for it: there is nothing to resume."""
    if not isinstance(error, ClusterError):
        return False
    with contextlib.suppress(MilpRayError):  # it is another driver's by now, or the storage fails
        return folder.remove_unused()
    return False


def experiment(path: Path | str, user: str) -> Path:
    """Save the search of one user of a run as an Ax experiment; returns the file.

    Args:
        path: the run folder, or its URL.
        user: raw id or alias.

    Raises:
        RunFolderError: there is no run, or it has no such user.
    """
    folder = RunFolder.open(path)
    inputs = _inputs_of(folder)
    alias = folder.alias(user)
    with folder.lock():  # opening a log repairs its last line, which a driver may be writing
        population = Population(folder, inputs)
        if alias not in population.aliases:
            raise folder.no_such_user()
        return save_experiment(folder, alias, population.engine(alias))
