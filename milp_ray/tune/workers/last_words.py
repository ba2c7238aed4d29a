"""Why a worker was lost, in its last words: what Ray knows of its end, without a user's text.

An exception is told by its kind and its site. Its message is told only where it cannot quote a text
(a missing package). How a process ended is told in Ray's own words, without identities and without
Ray's list of possible causes.
"""

from __future__ import annotations

import re
from pathlib import Path

import ray
from ray import cloudpickle
from ray.tune.experiment import Trial

from milp_ray.errors import exception_site, own_words
from milp_ray.tune.workers.trial_runner import WorkerBroke

_MOST_CHARACTERS = 240
_NOTHING_SAID = "The actor died unexpectedly before finishing this task."
_SAFE = ("ImportError", "ModuleNotFoundError")
_EXIT = re.compile(
    r"Worker exit type: (?P<kind>\w+) Worker exit detail: (?P<detail>.*?)"
    r"(?= There are some | Some common causes |$)",  # a list of guesses follows
    re.S,
)
_SITE = re.compile(r'File "(?:[^"]*/)?(?P<file>[^"/]+)", line (?P<line>\d+)')
_RAISED = re.compile(
    r"^(?:[\w.]+\.)?(?P<kind>[A-Z]\w*(?:Error|Exception|Broke|Exit))(?:: (?P<words>.*))?$", re.M
)


def last_words(error: BaseException) -> str:
    """Why a worker was lost, on one line; empty where Ray knows no reason."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return _of_task(error)
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in text:
        return own_words(RuntimeError(text.partition("Refer to")[0]), _MOST_CHARACTERS)
    if found := _EXIT.search(text):
        return own_words(
            RuntimeError(f"its process ended ({found['kind']}): {found['detail']}"), _MOST_CHARACTERS
        )
    if text.partition("\n")[0].strip() == _NOTHING_SAID:
        return ""  # whoever ended it, our own watchdog for one, has said why
    if "creation task" in text:
        return _of_traceback(text)
    if isinstance(error, ray.exceptions.RayError):
        return own_words(
            RuntimeError(f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"), _MOST_CHARACTERS
        )
    return exception_site(error)


def _of_task(error: ray.exceptions.RayTaskError) -> str:
    cause = error.cause
    if isinstance(cause, WorkerBroke):
        return str(cause)  # says where, not what
    if isinstance(cause, ray.exceptions.RayError):
        return last_words(cause)
    return _of_traceback(str(error))


def _of_traceback(text: str) -> str:
    """Kind and site of the exception that a traceback ends with."""
    raised, sites = list(_RAISED.finditer(text)), list(_SITE.finditer(text))
    if not raised:
        return "a worker failed"
    last = raised[-1]
    where = f" at {sites[-1]['file']}:{sites[-1]['line']}" if sites else ""
    words = f": {last['words']}" if last["kind"] in _SAFE and last["words"] else ""
    return own_words(RuntimeError(f"{last['kind']}{where}{words}"), _MOST_CHARACTERS)


def last_words_of(trial: Trial) -> str:
    """Why a trial's worker was lost; empty where Tune kept no error."""
    try:
        with Path(trial.pickled_error_file).open("rb") as file:
            return last_words(cloudpickle.load(file))
    except Exception:  # no file, or an exception of a kind that is not here
        return ""
