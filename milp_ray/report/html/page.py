"""The page: sections filled into the template, everything in one file.

Text is escaped by Jinja2 (autoescape is on), data travels as JSON in which no character can end its
element, and a content security policy forbids every request. plotly.js lies in the file as text and
runs once the page has been painted; a figure is drawn when it comes into view.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from milp_ray.report.html.cases import UserCases
from milp_ray.report.html.figures import FigureSpec
from milp_ray.report.html.health import health
from milp_ray.report.html.model_check import NOT_MADE, ModelCheck
from milp_ray.report.html.model_section import importance_figure, model_section
from milp_ray.report.html.origin import origin
from milp_ray.report.html.population_section import population_section
from milp_ray.report.html.run_data import RunData
from milp_ray.report.html.transfer_section import HEADS, transfer_section
from milp_ray.report.html.user_sections import direction_words, drawn_words, user_rows, user_section
from milp_ray.report.html.user_table import drawn, is_complete, user_table
from milp_ray.report.html.verdict import verdict

_PACKAGE = "milp_ray.report.html"


@dataclass(frozen=True)
class Plot:
    """A figure's place in the page: its id, title, text and height."""

    id: str
    title: str
    alt: str
    height: int


def render(run: RunData, check: ModelCheck | None = None, cases: Sequence[UserCases] | None = None) -> str:
    """The report on a run, as HTML.

    Args:
        run: as it is now.
        check: what the surrogate was asked; None: nothing.
        cases: samples of users, with their texts; None: no text and no id is in the report.
    """
    table, check = user_table(run), check or NOT_MADE
    picked = drawn(table)
    ids = count()
    population = population_section(run, table, picked)
    overview, overview_data = _placed(population.figures, ids)
    users, user_data = [], []
    for alias in picked:
        section = user_section(run, table, alias)
        asked = [importance_figure(check.found[alias], alias)] if alias in check.found else []
        plots, data = _placed([*section.figures, *asked], ids)
        users.append((section, plots))
        user_data.append(data)
    model = model_section(check)
    checked, checked_data = _placed(model.figures, ids)
    return _template().render(
        run=run,
        complete=is_complete(run, table),
        made=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        facts=verdict(run, table, check),
        overview=overview,
        overview_data=embedded(overview_data | checked_data),
        model=model,
        checked=checked,
        transfer=transfer_section(run, table),
        transfer_heads=HEADS,
        cost=population.cost,
        missing=population.missing,
        users=users,
        user_data=[embedded(data) for data in user_data],
        drawn_words=drawn_words(table, picked),
        direction_words=direction_words(run.study.objectives),
        rows=embedded(user_rows(run, table)),
        count=len(run.aliases),
        cases=cases,
        health=health(run, table),
        origin=origin(run),
        style=_own_file("report.css"),
        script=_own_file("report.js"),
        plotly=_plotly(),
    )


def embedded(value: object) -> Markup:
    """JSON that can stand in a script element, whatever strings are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _placed(figures: Sequence[FigureSpec], ids: count[int]) -> tuple[list[Plot], dict[str, Any]]:
    """Each figure's place, and its data under the same id."""
    plots, data = [], {}
    for figure in figures:
        plot = Plot(f"figure-{next(ids)}", figure.title, figure.alt, figure.height)
        plots.append(plot)
        data[plot.id] = figure.to_plain()
    return plots, data


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(_PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2")


@cache
def _own_file(name: str) -> Markup:
    return Markup(files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    """plotly.js as it comes with the package, for a script element."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))
