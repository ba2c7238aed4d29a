"""The command line: thin, every command a few calls into the package.

How errors are printed and what the exit codes mean is :mod:`milp_ray.terminal`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

import milp_ray
from milp_ray.terminal import err, leave, out, print_outcome, reported, write

if TYPE_CHECKING:
    from milp_ray.config.models import RaySettings

P = ParamSpec("P")

app = typer.Typer(
    name="milp-ray",
    help="A memory for every user of a language model: LoRA placements searched per user on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
StudyFile = Annotated[Path, typer.Argument(help="The study file (YAML).", show_default=False)]
RunPath = Annotated[str, typer.Argument(help="The run folder, or its URL.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, over the study file.", show_default=False)
]


class DemoModel(StrEnum):
    """What the demo's study is made on."""

    TINY = "tiny"
    SMOLLM2 = "smollm2"


def _check_command_line(settings: RaySettings, overrides: Sequence[str]) -> None:
    """A driver's command line can be read by everybody on the cluster that it works on."""
    if (settings.address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        from milp_ray.config.loading import check_no_ids

        check_no_ids(overrides)


def _reported(command: Callable[P, int | None]) -> Callable[P, None]:
    """End the process as the command ended (see :func:`milp_ray.terminal.reported`)."""
    inner = reported(command)

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(inner(*args, **kwargs))

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
def check(
    study: StudyFile,
    overrides: Overrides = None,
    serve: Annotated[
        str | None, typer.Option(help="An engine that is to serve the memories: see export.")
    ] = None,
) -> None:
    """Validate a study without starting anything: model, placements, data, sizes, memory."""
    from milp_ray.config.loading import load_study

    loaded = load_study(study, overrides or [])
    from milp_ray.study.check import check_study  # imports torch: a faulty file is told before that

    told = ""
    if serve is not None:
        from milp_ray.serving.check import check_served

        told = check_served(loaded, serve)
    out.print(check_study(loaded))
    if told:
        out.print(told, markup=False, soft_wrap=True)


@app.command()
@_reported
def search(study: StudyFile, overrides: Overrides = None) -> int:
    """Search every user's memory, train the chosen ones, test them once."""
    from milp_ray.config.loading import load_study

    loaded = load_study(study, overrides or [])
    _check_command_line(loaded.ray, overrides or [])
    from milp_ray.study.driver import start  # imports torch and Ray, as above

    return print_outcome(start(loaded, out))


@app.command()
@_reported
def resume(run: RunPath, overrides: Overrides = None) -> int:
    """Continue a run after any interruption; ray.* may be overridden."""
    from milp_ray.study.driver import resume as go_on

    return print_outcome(go_on(run, out, overrides or []))


@app.command()
@_reported
def final(run: RunPath, overrides: Overrides = None) -> int:
    """Train and test the memories of all users whose search is over; ray.* may be overridden."""
    from milp_ray.study.driver import final as train

    return print_outcome(train(run, out, overrides or []))


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
def report(
    run: RunPath,
    file: Annotated[
        str | None, typer.Option("--out", help="The file; else report.html in the run.", show_default=False)
    ] = None,
    model_check: Annotated[
        bool, typer.Option(help="Fit the surrogate to some users' trials again: a minute at most.")
    ] = True,
    include_text: Annotated[
        bool,
        typer.Option(
            "--include-text", help="With samples and ids of users, from the data; into the working directory."
        ),
    ] = False,
) -> None:
    """Write the whole run as one HTML file, which needs no network; also while the run goes on."""
    from milp_ray.report.html.command import report as write_it
    from milp_ray.report.html.model_check import NOT_MADE, SECONDS

    check = SECONDS if model_check else NOT_MADE
    typer.echo(write_it(run, file, model_check=check, include_text=include_text))


@app.command()
@_reported
def watch(
    run: RunPath,
    every: Annotated[float, typer.Option(min=1, help="Seconds from one report to the next.")] = 60.0,
    file: Annotated[str | None, typer.Option("--out", help="The file, as of report.")] = None,
) -> None:
    """Write the report again and again while the run goes on, until it ends or you press Ctrl-C."""
    from milp_ray.report.html.watch import watch as follow

    follow(run, every, file, typer.echo)


@app.command()
@_reported
def placement(
    run: RunPath,
    user: Annotated[str, typer.Argument(help="A user's alias, or the raw id.", show_default=False)],
    trainer: Annotated[str, typer.Option("--for", help="peft, axolotl, llama-factory or trl.")] = "peft",
    trial: Annotated[
        int | None, typer.Option(min=0, help="Of this trial; else the chosen one's.", show_default=False)
    ] = None,
) -> None:
    """Print a user's chosen placement as another trainer's settings."""
    from milp_ray.serving.trainers import recipe

    typer.echo(recipe(run, user, trainer, trial), nl=False)


@app.command()
@_reported
def experiment(
    run: RunPath,
    user: Annotated[str, typer.Argument(help="A user's alias, or the raw id.", show_default=False)],
) -> None:
    """Save a user's search as an Ax experiment (JSON), and print where."""
    from milp_ray.storage import location_of
    from milp_ray.study.driver import experiment as save

    typer.echo(location_of(save(run, user)))


@app.command()
@_reported
def fetch(
    run: RunPath,
    folder: Annotated[Path, typer.Argument(help="Where the copies go; made anew.", show_default=False)],
    memories: Annotated[bool, typer.Option("--memories", help="The adapters, too.")] = False,
    one_rank: Annotated[
        bool, typer.Option("--one-rank", help="The adapters, each with one rank, for readers of one only.")
    ] = False,
) -> None:
    """Copy a run's tables, plots and report to a folder here, all of them or nothing."""
    from milp_ray.study.fetch import fetch as copy

    count = copy(run, folder, memories=memories or one_rank, one_rank=one_rank)
    typer.echo(f"copied {count} files to {folder}")


@app.command()
@_reported
def respond(
    run: RunPath,
    words: Annotated[
        list[str], typer.Argument(help='USER "query"; the query alone with --all-users.', show_default=False)
    ],
    file: Annotated[Path | None, typer.Option(help="Queries, one a line, instead of one.")] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="With everybody's memory.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; else the study's.")] = None,
) -> None:
    """Print what the base answers, and what it answers with a user's memory, side by side."""
    from milp_ray.report.replies import replies_view
    from milp_ray.serving.respond import queries_of
    from milp_ray.serving.respond import respond as answers

    users, queries = queries_of(words, file, all_users=all_users)
    out.print(replies_view(answers(run, queries, users, max_new_tokens=max_new_tokens)))


@app.command()
@_reported
def export(
    run: RunPath,
    place: Annotated[str, typer.Argument(help="A new folder, or a URL.", show_default=False)],
    engine: Annotated[
        str, typer.Option("--for", help="peft, vllm, sglang, ray-serve, lorax, llama.cpp or merged.")
    ] = "peft",
    user: Annotated[list[str] | None, typer.Option(help="An alias or id; else all with a memory.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of every memory; else the least that does.", show_default=False)
    ] = None,
    base_name: Annotated[
        str | None, typer.Option(help="What the server calls the base; else the model's own name.")
    ] = None,
) -> None:
    """Write users' memories in the form that an engine serves; after an interruption it goes on."""
    from milp_ray.serving.export import export as write

    def notify(text: str) -> None:
        out.print(text, markup=False)

    if engine == "merged":
        from milp_ray.serving.merged import export_merged  # loads the base, and so torch

        done = export_merged(run, place, user or [], notify=notify)
    else:
        done = write(
            run,
            place,
            engine,
            users=user or [],
            rank=rank,
            base_name=base_name,
            notify=notify,
        )
    out.print(f"{done.memories} memories of rank {done.rank} at most: {done.place}", soft_wrap=True)
    if done.start:
        out.print(f"to serve them: {done.start}", markup=False, soft_wrap=True)


@app.command("export-study")
@_reported
def export_study(
    run: RunPath,
    optuna: Annotated[
        str,
        typer.Option(help="sqlite:///x.db, another database's URL, or a JournalFile.", show_default=False),
    ],
) -> None:
    """Write every search as an Optuna study; a second time only what is new."""
    from milp_ray.report.optuna_export import export_study as write

    for line in write(run, optuna, lambda text: err.print(text, markup=False)).lines():
        out.print(line, markup=False, soft_wrap=True)


@app.command()
@_reported
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo's files go.")] = Path(".cache/demo"),
    model: Annotated[
        DemoModel, typer.Option(help="tiny: trained on the spot; smollm2: a real one (extra smollm2).")
    ] = DemoModel.TINY,
) -> int:
    """Generated personas, a tiny model trained on the spot or a real one, and a study of both."""
    from milp_ray.config.loading import load_study
    from milp_ray.study.demo import next_name, prepare_demo
    from milp_ray.study.driver import start

    study = prepare_demo(folder, model=model.value, notify=out.print)
    return print_outcome(start(load_study(study, [f"name={next_name(folder, model.value)}"]), out))


data = typer.Typer(help="Look at users' data.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command()
@_reported
def stats(
    study_or_file: Annotated[
        str, typer.Argument(help="A study file (.yaml), or a data file or its URL.", show_default=False)
    ],
    overrides: Overrides = None,
) -> None:
    """Print how much there is, who counts as a user, the licence, and which regime it needs."""
    from milp_ray.config.loading import data_settings, load_study

    if study_or_file.endswith((".yaml", ".yml")):
        settings = load_study(study_or_file, overrides or []).data
    else:
        settings = data_settings(study_or_file, overrides or [])
    from milp_ray.report.data_view import data_view

    out.print(data_view(settings))


@app.command()
@_reported
def compare(
    comparison: Annotated[Path, typer.Argument(help="The comparison file (YAML).", show_default=False)],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is to be computed.")] = False,
) -> int:
    """Compare methods on the same users, cell by cell; after an interruption it goes on."""
    from milp_ray.config.loading import load_comparison

    loaded = load_comparison(comparison, overrides or [])
    _check_command_line(loaded.ray, overrides or [])
    from milp_ray.comparison.command import compare_and_report  # imports torch, as above

    return compare_and_report(loaded, out, dry_run=dry_run)


Address = Annotated[
    str | None, typer.Option(help="The dashboard, http(s)://host:8265; else RAY_ADDRESS.", show_default=False)
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with the cluster's token; else as Ray finds it.", show_default=False)
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow another machine without a token.")]
JobFile = Annotated[Path, typer.Argument(help="The study or comparison file (YAML).", show_default=False)]
JobId = Annotated[str, typer.Argument(help="A submission id.", show_default=False)]


@app.command()
@_reported
def submit(
    job: Annotated[str, typer.Argument(help="A script such as jobs/search.py.", show_default=False)],
    study: JobFile,
    overrides: Overrides = None,
    address: Address = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    working_dir: Annotated[
        Path | None, typer.Option(help="What travels, and what paths are relative to; else here.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="A further file or folder that travels.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the job; no secrets.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job, and end with its exit code.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Even if the same job is done.")] = False,
) -> int:
    """Submit a job to a Ray cluster and follow it; the same job is never submitted twice."""
    from milp_ray.jobs import client, connection, package
    from milp_ray.study.stopping import signals_interrupt

    variables = client.environment_of(env or [])
    packed = package.pack(
        job, study, overrides or [], root=working_dir, include=include or [], environment=variables
    )
    with signals_interrupt():  # copies of what travels are removed whatever ends this
        connected = connection.connect(address, connection.token_of(token_file), insecure=insecure)
        for warning in packed.warnings:
            err.print(warning, markup=False)
        sent = client.submit(connected, packed, again=again)
        return client.report(
            connected, sent, lambda text: err.print(text, markup=False), write if wait else None
        )


@app.command()
@_reported
def status(
    job: Annotated[str | None, typer.Argument(help="A submission id; all without.")] = None,
    address: Address = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
) -> int:
    """List a cluster's jobs, or show one; ends with its exit code once it is over."""
    from milp_ray.jobs import client, connection
    from milp_ray.jobs.views import job_view, jobs_view

    connected = connection.connect(address, connection.token_of(token_file), insecure=insecure)
    if job is None:
        out.print(jobs_view(client.jobs(connected)))
        return 0
    found = client.details(connected, job)
    out.print(job_view(found), soft_wrap=True)
    return client.exit_code(found) if client.is_over(found) else 0


@app.command()
@_reported
def stop(
    job: JobId, address: Address = None, token_file: TokenFile = None, insecure: Insecure = False
) -> int:
    """Stop a job; submitting it again resumes its run."""
    from milp_ray.jobs import client, connection

    connected = connection.connect(address, connection.token_of(token_file), insecure=insecure)
    state, before = client.stop(connected, job)
    out.print(f"{job}: {'nothing to stop, it is over: ' if before else ''}{state}", markup=False)
    return 0 if before or state == "STOPPED" else 1


judge = typer.Typer(no_args_is_help=True, help="Judges of responses (docs/evaluation.md).")
app.add_typer(judge, name="judge")


@judge.callback()
def _judge() -> None:
    pass  # without it, a group of one command would take that command's name for an argument


@judge.command()
@_reported
def agreement(
    file: Annotated[Path, typer.Argument(help="CSV: columns human and judge, 1/0/-1.", show_default=False)],
) -> None:
    """Print how far a judge's verdicts are those of people: Pearson's r, and exact accuracy."""
    from milp_ray.evaluation.agreement import agreement as compare
    from milp_ray.evaluation.agreement import read_verdicts

    out.print(str(compare(*read_verdicts(file))), soft_wrap=True)


def main() -> None:
    """The console script."""
    try:
        app(prog_name="milp-ray")
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
