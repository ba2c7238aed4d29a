"""The model check: how far to trust the surrogate, what matters to it, and what it expects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from milp_ray.evaluation.correlation import spearman
from milp_ray.report.colours import BLUE, GREEN, GREY, ORANGE
from milp_ray.report.html.figures import FigureSpec, base_layout, evenly, number, numbers, plain
from milp_ray.report.html.model_check import ModelCheck
from milp_ray.search.diagnostics import Diagnosis, LeftOut

_MOST_POINTS = 300
_WEAK = 0.3  # rank correlation below which predictions hardly order placements
_SHORT, _LONG = 0.85, 0.995  # shares in the 95 % interval that are too few, and suspiciously many
_BARS = ((BLUE, ""), (ORANGE, "/"), (GREEN, "."), (GREY, "x"))
_HEADS = [
    "objective", "predictions", "in their 95 % interval", "mean square of the residuals",
    "rank correlation (median)", "in words",
]  # fmt: skip


@dataclass(frozen=True)
class ModelSection:
    """See the module.

    Attributes:
        words: sentences on what was done.
        heads, rows: of the table of calibration; no rows without a fit.
        figures: predictions, residuals, importance over all checked searches.
    """

    words: list[str]
    heads: list[str]
    rows: list[list[str]]
    figures: list[FigureSpec]


def model_section(check: ModelCheck) -> ModelSection:
    """What the checked searches come to, together."""
    if not check.found:
        return ModelSection([check.left_out], _HEADS, [], [])
    by_objective = _by_objective(check.found)
    figures = [_predicted_figure(name, found) for name, found in by_objective.items()]
    figures.append(_residual_figure(by_objective))
    figures.append(_mean_importance(check.found))
    return ModelSection(_words(check), _HEADS, [_row(n, f) for n, f in by_objective.items()], figures)


def importance_figure(diagnosis: Diagnosis, who: str) -> FigureSpec:
    """Total-effect index by factor, a bar an objective."""
    spread = {
        name: {f: [value] for f, value in found.items()} for name, found in diagnosis.importance.items()
    }
    return _importance(spread, f"Importance by {diagnosis.source}'s posterior mean", who)


def expected_gain(check: ModelCheck) -> tuple[float, int] | None:
    """Median share of the hypervolume that the next trial is expected to add, and of how many."""
    known = [one.gain for one in check.found.values() if not math.isnan(one.gain)]
    return (median(known), len(known)) if known else None


def _words(check: ModelCheck) -> list[str]:
    sources = sorted({one.source for one in check.found.values()})
    most = max(one.seconds for one in check.found.values())
    short = (
        f" (of {check.wanted}: the others could not be fitted, or the time was over)"
        if len(check.found) < check.wanted
        else ""
    )
    words = [
        f"{' and '.join(sources)} was fitted anew to {len(check.found)} of the drawn searches{short}, in "
        f"{check.seconds:.0f} s, the longest in {most:.1f} s. Values are on the model's scale: more is "
        "better, and a unit is a standard deviation of a search's trials (with search.outcome: copula, of "
        "normal scores).",
        "Each trial is predicted from all others of its search, with hyperparameters that all trials gave, "
        "which flatters the model a little. Trials that a search proposed lie where the model expected much, "
        "so this says less about the rest of the space.",
        "Importance is the total-effect index (Sobol, by Jansen's estimator) of each searched factor on the "
        "posterior mean, where factors are drawn independently and each gate is open half of the time: the "
        "share of the mean's variance that goes with the factor. Where factors interact they add up to more "
        "than 1. It is the model's opinion, and worth no more than its predictions.",
    ]
    if (gain := expected_gain(check)) is not None:
        words.append(
            f"The acquisition expects the best next trial to add {100 * gain[0]:.2g} % to the hypervolume "
            f"(median of {gain[1]} searches, on the model's scale)."
        )
    return words


def _row(name: str, found: Mapping[str, LeftOut]) -> list[str]:
    residuals = [residual for one in found.values() for residual in one.residuals]
    covered = sum(one.covered for one in found.values()) / len(residuals)
    rhos = [rho for one in found.values() if not math.isnan(rho := spearman(one.mean, one.measured))]
    rho = median(rhos) if rhos else math.nan
    square = fmean(residual**2 for residual in residuals)
    return [
        name,
        f"{len(residuals)} in {len(found)} searches",
        f"{100 * covered:.0f} %",
        f"{square:.2f} (1 if honest)",
        "never changes" if math.isnan(rho) else f"{rho:+.2f}",
        _judged(covered, rho, len(residuals)),
    ]


def _judged(covered: float, rho: float, count: int) -> str:
    """Whether intervals and order can be relied on, in words."""
    if count < 20:
        return "too few predictions to judge"
    width = (
        "intervals are too narrow"
        if covered < _SHORT
        else "intervals are wide"
        if covered > _LONG
        else "intervals are about right"
    )
    order = (
        "predictions hardly order placements"
        if math.isnan(rho) or rho < _WEAK
        else "predictions order placements"
    )
    return f"{width}; {order}"


def _by_objective(found: Mapping[str, Diagnosis]) -> dict[str, dict[str, LeftOut]]:
    result: dict[str, dict[str, LeftOut]] = {}
    for alias, diagnosis in found.items():
        for one in diagnosis.left_out:
            result.setdefault(one.name, {})[alias] = one
    return result


def _predicted_figure(name: str, found: Mapping[str, LeftOut]) -> FigureSpec:
    rows = [
        (alias, trial, y, mean, deviation)
        for alias, one in found.items()
        for trial, y, mean, deviation in zip(one.trials, one.measured, one.mean, one.deviation, strict=True)
    ]
    kept = [rows[index] for index in evenly(len(rows), _MOST_POINTS)]
    low = min(min(y, mean) for _, _, y, mean, _ in kept)
    high = max(max(y, mean) for _, _, y, mean, _ in kept)
    points = {
        "type": "scatter", "mode": "markers", "name": "a trial, with its 95 % interval",
        "x": numbers([mean for _, _, _, mean, _ in kept], 4), "y": numbers([y for _, _, y, _, _ in kept], 4),
        "error_x": {"type": "data", "array": numbers([1.96 * row[4] for row in kept], 3), "thickness": 1,
                    "width": 0, "color": "#9a9a9a"},
        "text": [plain(f"{alias} t{trial:04d}") for alias, trial, *_ in kept],
        "marker": {"size": 7, "color": BLUE, "line": {"color": "white", "width": 1}},
        "hovertemplate": "%{text}: predicted %{x}, measured %{y}<extra></extra>",
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines", "name": "as predicted", "x": [number(low), number(high)],
        "y": [number(low), number(high)], "line": {"dash": "dash", "color": "#111111"}, "hoverinfo": "skip",
    }  # fmt: skip
    layout = base_layout("predicted from the other trials", "measured")
    covered, count = (
        sum(one.covered for one in found.values()),
        sum(len(one.trials) for one in found.values()),
    )
    alt = (
        f"{name} of {count} trials of {len(found)} searches, predicted from the others of their search: "
        f"{covered} lie in their 95 % interval."
    )
    return FigureSpec(f"{name}: predicted and measured", alt, [points, line], layout)


def _residual_figure(by_objective: Mapping[str, Mapping[str, LeftOut]]) -> FigureSpec:
    """Standardised residuals by size, beside those of a normal distribution."""
    edges = [-4.25 + 0.5 * step for step in range(18)]
    middle = [edge + 0.25 for edge in edges[:-1]]
    data: list[dict[str, Any]] = []
    for (name, found), (colour, shape) in zip(by_objective.items(), _BARS, strict=False):
        residuals = [min(4.2, max(-4.2, r)) for one in found.values() for r in one.residuals]
        shares = [
            100 * sum(low <= r < low + 0.5 for r in residuals) / max(1, len(residuals)) for low in edges[:-1]
        ]
        data.append(
            {
                "type": "bar", "name": name, "x": middle, "y": numbers(shares, 3),
                "marker": _filled(colour, shape),
                "hovertemplate": f"{name}: %{{y}} % around %{{x}}<extra></extra>",
            }
        )  # fmt: skip
    normal = [
        50 * (math.erf((x + 0.25) / math.sqrt(2)) - math.erf((x - 0.25) / math.sqrt(2))) for x in middle
    ]
    data.append(
        {"type": "scatter", "mode": "lines+markers", "name": "normal", "x": middle, "y": numbers(normal, 3),
         "line": {"color": "#111111", "dash": "dash"}, "marker": {"symbol": "circle-open", "size": 6}}
    )  # fmt: skip
    layout = base_layout("residual in predicted deviations (4 and beyond at the ends)", "share, %")
    alt = (
        "Standardised residuals of the leave-one-out predictions, beside a normal distribution's: "
        + "; ".join(
            f"{name} has {sum(abs(r) > 1.96 for one in found.values() for r in one.residuals)} of "
            f"{sum(len(one.trials) for one in found.values())} beyond 1.96"
            for name, found in by_objective.items()
        )
    )
    return FigureSpec("Standardised residuals", f"{alt}.", data, layout)


def _mean_importance(found: Mapping[str, Diagnosis]) -> FigureSpec:
    spread: dict[str, dict[str, list[float]]] = {}
    for diagnosis in found.values():
        for name, values in diagnosis.importance.items():
            for factor, value in values.items():
                spread.setdefault(name, {}).setdefault(factor, []).append(value)
    who = f"{len(found)} searches (mean; lines: least and most)"
    return _importance(spread, f"Importance of the factors, {len(found)} searches", who)


def _importance(spread: Mapping[str, Mapping[str, Sequence[float]]], title: str, who: str) -> FigureSpec:
    data: list[dict[str, Any]] = []
    told = []
    for (name, found), (colour, shape) in zip(spread.items(), _BARS, strict=False):
        means = {factor: fmean(values) for factor, values in found.items()}
        bar: dict[str, Any] = {
            "type": "bar", "name": name, "x": [factor.removeprefix("layer ") for factor in means],
            "y": numbers(means.values(), 3), "text": list(means), "textposition": "none",
            "marker": _filled(colour, shape),
            "hovertemplate": f"%{{text}}, {name}: %{{y}}<extra></extra>",
        }  # fmt: skip
        if any(len(values) > 1 for values in found.values()):
            bar["error_y"] = {
                "type": "data", "symmetric": False, "thickness": 1, "color": "#111111",
                "array": numbers([max(values) - means[f] for f, values in found.items()], 3),
                "arrayminus": numbers([means[f] - min(values) for f, values in found.items()], 3),
            }  # fmt: skip
        data.append(bar)
        if means:
            top = max(means, key=means.__getitem__)
            told.append(f"{name} most by {top} ({means[top]:.2f})")
    layers = any(factor.startswith("layer ") for values in spread.values() for factor in values)
    layout = base_layout("layer, and what holds for all of them" if layers else "", "total-effect index")
    layout["xaxis"] |= {"type": "category", "showgrid": False, "tickangle": 0}
    layout["xaxis"]["tickvals"] = _ticks([name for found in spread.values() for name in found])
    layout["yaxis"]["rangemode"] = "tozero"
    alt = f"Importance by factor of {who}: {'; '.join(told) or 'none'}."
    return FigureSpec(title, alt, data, layout, 320)


def _ticks(factors: Sequence[str]) -> list[str]:
    """Of many layers some, and every other factor: plotly.js would leave out any of them."""
    names = dict.fromkeys(factors)
    layers = [name.removeprefix("layer ") for name in names if name.startswith("layer ")]
    return [*layers[:: 1 + len(layers) // 17], *(name for name in names if not name.startswith("layer "))]


def _filled(colour: str, shape: str) -> dict[str, Any]:
    """A bar that is told from others in a grey print, too."""
    return {"color": colour, "pattern": {"shape": shape}, "line": {"color": "#111111", "width": 1}}
