"""`milp-ray compare` from a comparison file to what is printed, and its exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from milp_ray.comparison.answers import write_private
from milp_ray.comparison.cases import case_page
from milp_ray.comparison.cells import Cell, CellRecord
from milp_ray.comparison.data_table import statistics_table
from milp_ray.comparison.plan import ConditionPlan
from milp_ray.comparison.results import write_results
from milp_ray.comparison.run import Comparing
from milp_ray.comparison.win_rates import Judging
from milp_ray.config.comparison import Comparison
from milp_ray.data.readers import predictions_of
from milp_ray.errors import MilpRayError
from milp_ray.evaluation.judges import make_judge
from milp_ray.evaluation.judges.cache import AnswerCache
from milp_ray.model.pretrained import load_config
from milp_ray.study.stopping import signals_interrupt
from milp_ray.tune.comparison.worker import Answer


def compare_and_report(comparison: Comparison, console: Console, *, dry_run: bool = False) -> int:
    """Compute what is missing, write tables of what is finished, and print where they are.

    Args:
        comparison: of the file.
        console: where progress goes.
        dry_run: only say what is to be computed.

    Returns:
        The exit code: 0 done; 3 done, but some users failed; 130 stopped on request.

    Raises:
        MilpRayError: something is not usable; what is finished is kept, with its tables.
    """
    comparing = Comparing(comparison, console)
    with comparing.folder.lock(), signals_interrupt():
        judging = _judging(comparing)
        if dry_run:
            _tell(comparing, console)
            if judging is not None:
                console.print(f"of the responses that are there: {judging.estimate(comparing.plans)}")
            return 0
        try:
            comparing.run()
        except (MilpRayError, KeyboardInterrupt) as error:
            error.add_note("what is finished is kept; the same command goes on")
            _report(comparing, console)
            raise
        if judging is not None and not comparing.outcome().interrupted:
            console.print(str(judging.estimate(comparing.plans)), markup=False)
            judging.table(comparing.plans).write(comparing.folder.tables)
        return _report(comparing, console)


def _judging(comparing: Comparing) -> Judging | None:
    settings, folder = comparing.folder.comparison.judge, comparing.folder
    if settings is None:
        return None
    cache = AnswerCache(folder.root / "judge" / "answers.jsonl", comparing.key)
    return Judging(make_judge(settings), cache, folder.comparison.judged_over, comparing.answers)


def _tell(comparing: Comparing, console: Console) -> None:
    for plan in comparing.plans:
        tests = sum(len(user.test) for user in plan.users.values())
        others = len(plan.background.splits)
        found = f"{len(plan.users)} users, {others} background users, {tests} test samples"
        console.print(f"{plan.condition.name}: {found}", markup=False)
        for method in plan.methods:
            done = comparing.folder.cells.find(Cell(plan.condition, method.name), plan.digest(method))
            trials = plan.searches(method) * plan.study.search.trials
            search = f", after a search of {trials} trials" if trials else ""
            state = "finished" if done else f"to be computed{search}"
            console.print(f"  {method.name}: {state}", markup=False)


def _write_texts(comparing: Comparing, records: Sequence[CellRecord]) -> Iterator[Path]:
    """Write what shows texts, as far as it is asked for; gives the paths."""
    asked, folder = comparing.folder.comparison, comparing.folder
    for plan in comparing.plans if asked.cases or asked.predictions else ():
        mine = [record for record in records if record.cell.condition == plan.condition]
        done = {record.cell.method for record in mine}
        answers = {
            method.name: comparing.answers(plan, method).all(plan.users)
            for method in plan.methods
            if method.name in done
        }
        if asked.cases:
            path = folder.case_page(plan.condition.name)
            write_private(path, case_page(plan, mine, answers, asked.cases))
            yield path
        for method, found in answers.items() if asked.predictions else ():
            text = _predictions(plan, found)
            if text is not None:
                path = folder.predictions(Cell(plan.condition, method))
                write_private(path, text)
                yield path


def _predictions(plan: ConditionPlan, answers: Mapping[str, Answer]) -> str | None:
    """Responses in the form of the data set's own evaluation; of failed users there are none."""
    pairs = [
        pair
        for alias, answer in answers.items()
        for pair in zip(plan.users[alias].test, answer.responses, strict=bool(answer.responses))
    ]
    return predictions_of(plan.study.data, [sample for sample, _ in pairs], [said for _, said in pairs])


def _report(comparing: Comparing, console: Console) -> int:
    compared = comparing.outcome()
    configs = {name: load_config(settings) for name, settings in comparing.models.items()}
    more = [statistics_table(comparing.plans)]
    files = write_results(comparing.folder, compared.records, compared.cells, configs, more)
    console.print(f"{compared.finished} of {compared.cells} cells are finished", markup=False)
    if compared.failed:
        console.print(f"{compared.failed} results of users are missing: see costs.md", markup=False)
    for path in files[:1]:
        console.print(f"verdict: {path}", markup=False, soft_wrap=True)
    console.print(f"tables: {comparing.folder.tables}", markup=False, soft_wrap=True)
    for path in _write_texts(comparing, compared.records):
        console.print(f"users' texts and responses: {path}", markup=False, soft_wrap=True)
    return compared.exit_code
