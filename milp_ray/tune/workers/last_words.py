"""Why a worker was lost, in its own last words: what Ray knows of its process's end, without a user's text.

An exception is told by its kind and place; its message only where it cannot quote a text (a missing package).
How a process ended is Ray's own account of it, without identities and the list of what might have been.
"""

from __future__ import annotations

import re
from pathlib import Path

import ray
from ray import cloudpickle
from ray.tune.experiment import Trial

from milp_ray.errors import exception_site, own_words
from milp_ray.tune.workers.trial_runner import WorkerBroke

_MOST = 240
_NOTHING_SAID = "The actor died unexpectedly before finishing this task."
_SAFE = ("ImportError", "ModuleNotFoundError")
_EXIT = re.compile(
    r"Worker exit type: (?P<kind>\w+) Worker exit detail: (?P<detail>.*?)"
    r"(?= There are some | Some common causes |$)",  # a list of guesses follows
    re.S,
)
_PLACE = re.compile(r'File "(?:[^"]*/)?(?P<file>[^"/]+)", line (?P<line>\d+)')
_RAISED = re.compile(
    r"^(?:[\w.]+\.)?(?P<kind>[A-Z]\w*(?:Error|Exception|Broke|Exit))(?:: (?P<words>.*))?$", re.M
)


def last_words(error: BaseException) -> str:
    """Why a worker was lost, on one line; empty where Ray knows no reason."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return _of_task(error)
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in text:
        return own_words(RuntimeError(text.partition("Refer to")[0]), _MOST)
    if found := _EXIT.search(text):
        return own_words(RuntimeError(f"its process ended ({found['kind']}): {found['detail']}"), _MOST)
    if text.partition("\n")[0].strip() == _NOTHING_SAID:
        return ""  # whoever ended it, our own watch over silent workers for one, has said why
    if "creation task" in text:
        return _of_traceback(text)
    if isinstance(error, ray.exceptions.RayError):
        return own_words(
            RuntimeError(f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"), _MOST
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
    """Kind and place of what a traceback ends with."""
    raised, places = list(_RAISED.finditer(text)), list(_PLACE.finditer(text))
    if not raised:
        return "a worker failed"
    last = raised[-1]
    where = f" at {places[-1]['file']}:{places[-1]['line']}" if places else ""
    words = f": {last['words']}" if last["kind"] in _SAFE and last["words"] else ""
    return own_words(RuntimeError(f"{last['kind']}{where}{words}"), _MOST)


def last_words_of(trial: Trial) -> str:
    """Why the worker of a trial that Tune gave up was lost; empty where Tune kept nothing of it."""
    try:
        with Path(trial.pickled_error_file).open("rb") as file:
            return last_words(cloudpickle.load(file))
    except Exception:  # no file, or an exception of a kind that is not here
        return ""
