"""What commands and jobs share: where they print, how they report errors and end.

Exit codes: 0 done; 1 failed (a bug, with a traceback; the cluster or the storage gave up); 2
something the user can mend, said in one error; 3 done, but some users or trials failed; 130 stopped
on request.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, NoReturn, ParamSpec

from rich.console import Console
from rich.text import Text

from milp_ray.errors import MilpRayError

if TYPE_CHECKING:
    from milp_ray.study.run import Outcome

P = ParamSpec("P")

# Where nobody set a width (a pipe, a CI log), tables take the room they need rather than 80
# columns.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
out = Console(highlight=False, width=_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def reported(command: Callable[P, int | None]) -> Callable[P, int]:
    """Turn a command's errors into one message, and how it ended into an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs) or 0
        except MilpRayError as error:
            return _told(error)
        except ImportError as error:
            from milp_ray.installed import cause_of

            if cause := cause_of(error):
                return _told(cause)
            raise
        except KeyboardInterrupt as stop:
            err.print(Text("\n".join(["stopped", *getattr(stop, "__notes__", [])])))
            return 130
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return run


def _told(error: MilpRayError) -> int:
    message = "\n".join([f"error: {error}", *getattr(error, "__notes__", [])])
    err.print(Text(message, style="red" if err.is_terminal else ""))
    return error.exit_code


def write(text: str) -> None:
    """Pass on a job's output as it comes: a CI log is a pipe, which Python would fill first."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_outcome(outcome: Outcome) -> int:
    """Draw a run's plots, print its closing tables and lines; returns the exit code."""
    from milp_ray.report.console import outcome_lines, outcome_view
    from milp_ray.report.plots import draw_run

    draw_run(outcome.folder)
    with contextlib.suppress(BrokenPipeError):  # `| head`: the run is done all the same
        out.print(outcome_view(outcome))
        out.print(outcome_lines(outcome), soft_wrap=True)
    return outcome.exit_code


def leave(code: int) -> NoReturn:
    """End the process.

    A fit that is under way in a background thread when a run is stopped holds up Python's own
    shutdown, in compiled code that cannot be interrupted. All state is on disk by then, so the
    process just ends.
    """
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    from milp_ray.search.core.threads import ComputeThread

    if ComputeThread.lives():
        from milp_ray.storage import close_mirrors

        close_mirrors()  # which Python's own shutdown would do
        os._exit(code)
    sys.exit(code)
