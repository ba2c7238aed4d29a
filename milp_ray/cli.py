"""The command line: thin, every command a few calls into the package.

Exit codes: 0 done; 1 failed (a bug, with a traceback); 2 something the user can mend, said in one error;
3 done, but some users or trials failed; 130 stopped on request.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

import milp_ray
from milp_ray.errors import MilpRayError

if TYPE_CHECKING:
    from milp_ray.study.run import Outcome

P = ParamSpec("P")

app = typer.Typer(
    name="milp-ray",
    help="A memory for every user of a language model: LoRA placements searched per user on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Where nobody set a width (a pipe, a CI log), tables take the room they need rather than 80 columns.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
out = Console(highlight=False, width=_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)

StudyFile = Annotated[Path, typer.Argument(help="The study file (YAML).", show_default=False)]
RunPath = Annotated[str, typer.Argument(help="The run folder, or its URL.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, over the study file.", show_default=False)
]


def _reported(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a command's errors into one message and its outcome into the exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs) or 0
        except MilpRayError as error:
            message = "\n".join([f"error: {error}", *getattr(error, "__notes__", [])])
            err.print(Text(message, style="red" if err.is_terminal else ""))
            code = error.exit_code
        except KeyboardInterrupt as stop:
            err.print(Text("\n".join(["stopped", *getattr(stop, "__notes__", [])])))
            code = 130
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        raise typer.Exit(code)

    return run


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(milp_ray.__version__)
        raise typer.Exit(0)


@app.command()
@_reported
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("study.yaml"),
) -> None:
    """Write a commented study file, in which every value says why it is what it is."""
    from milp_ray.config.template import write_template

    write_template(path)
    typer.echo(f"wrote {path}: name your model and data in it, then run: milp-ray check {path}")


@app.command()
@_reported
def check(study: StudyFile, overrides: Overrides = None) -> None:
    """Validate a study without starting anything: model, placements, data, sizes, memory."""
    from milp_ray.config.loading import load_study
    from milp_ray.study.check import check_study

    out.print(check_study(load_study(study, overrides or [])))


@app.command()
@_reported
def search(study: StudyFile, overrides: Overrides = None) -> int:
    """Search every user's memory, train the chosen ones, test them once."""
    from milp_ray.config.loading import load_study
    from milp_ray.study.driver import start

    return _closing(start(load_study(study, overrides or []), out))


@app.command()
@_reported
def resume(run: RunPath, overrides: Overrides = None) -> int:
    """Continue a run after any interruption; ray.* may be overridden."""
    from milp_ray.study.driver import resume as go_on

    return _closing(go_on(run, out, overrides or []))


@app.command()
@_reported
def final(run: RunPath, overrides: Overrides = None) -> int:
    """Train and test the chosen memories of all users whose search is over; ray.* may be overridden."""
    from milp_ray.study.driver import final as train

    return _closing(train(run, out, overrides or []))


@app.command()
@_reported
def fronts(run: RunPath) -> None:
    """Print every user's front, with the chosen point."""
    from milp_ray.report.console import fronts_view
    from milp_ray.study.run_folder import RunFolder

    out.print(fronts_view(RunFolder.open(run)))


@app.command()
@_reported
def show(
    run: RunPath,
    user: Annotated[str, typer.Argument(help="A user's alias, or the raw id.", show_default=False)],
) -> None:
    """Print one user's trials, front, chosen configuration and test scores."""
    from milp_ray.report.console import user_view
    from milp_ray.study.run_folder import RunFolder

    out.print(user_view(RunFolder.open(run), user))


@app.command()
@_reported
def experiment(
    run: RunPath,
    user: Annotated[str, typer.Argument(help="A user's alias, or the raw id.", show_default=False)],
) -> None:
    """Save a user's search as an Ax experiment (JSON), and print where."""
    from milp_ray.storage import shown
    from milp_ray.study.driver import experiment as save

    typer.echo(shown(save(run, user)))


@app.command()
@_reported
def fetch(
    run: RunPath,
    folder: Annotated[Path, typer.Argument(help="Where the copies go; made anew.", show_default=False)],
    memories: Annotated[bool, typer.Option("--memories", help="The adapters, too.")] = False,
) -> None:
    """Copy a run's tables and plots to a folder here, all of them or nothing."""
    from milp_ray.study.fetch import fetch as copy

    typer.echo(f"copied {copy(run, folder, memories=memories)} files to {folder}")


@app.command()
@_reported
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo's files go.")] = Path(".cache/demo"),
) -> int:
    """Generated personas, a tiny model trained on the spot, and a real study of both."""
    from milp_ray.config.loading import load_study
    from milp_ray.study.demo import next_name, prepare_demo
    from milp_ray.study.driver import start

    study = prepare_demo(folder, say=out.print)
    return _closing(start(load_study(study, [f"name={next_name(folder)}"]), out))


def main() -> None:
    """The console script.

    A fit that is under way in a background thread when the run is stopped holds up Python's own shutdown, in
    compiled code that cannot be interrupted. All state is on disk by then, so the process just ends.
    """
    try:
        app(prog_name="milp-ray")
    except SystemExit as end:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        busy = [t for t in threading.enumerate() if t.name.startswith(("propos", "prepare"))]
        if busy:
            from milp_ray.storage import close_twins

            close_twins()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def _closing(outcome: Outcome) -> int:
    from milp_ray.report.console import closing_lines, closing_view
    from milp_ray.report.plots import draw_run

    draw_run(outcome.folder)
    with contextlib.suppress(BrokenPipeError):  # `| head`: the run is done all the same
        out.print(closing_view(outcome))
        out.print(closing_lines(outcome), soft_wrap=True)
    return outcome.exit_code
