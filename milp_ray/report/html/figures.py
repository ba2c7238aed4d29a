"""Figures of a report as plain Plotly specifications: tables in, JSON values out.

Nothing is drawn here: the page gives each specification to plotly.js. Every figure has a text that
says what is in it, for people who do not see it. Marks differ in shape and dash as well as in
colour, so that a grey print can be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from milp_ray.config.objectives import OBJECTIVES
from milp_ray.memory.placement import Placement
from milp_ray.report.colours import BLUE, GREEN, GREY, ORANGE

#: Light to dark without a turn: more is darker in a grey print, too.
SHARES = [[0.0, "#f2f6fa"], [0.5, "#5f9fc9"], [1.0, "#08306b"]]
#: Of ranks the least is to be told from none, which is white.
RANKS = [[0.0, "#bcd6ea"], [0.5, "#4f93c2"], [1.0, "#08306b"]]
_THIRDS = (
    ("best third", "solid", "circle", BLUE),
    ("middle third", "dash", "square-open", GREEN),
    ("last third", "dot", "triangle-up", ORANGE),
)
_MOST_POINTS = 400
_MOST_ROWS = 60  # trials of a strip or of parallel coordinates
_MOST_RANKS = 10
_FEW = 10  # users of whom each has a tick


@dataclass(frozen=True)
class FigureSpec:
    """A figure.

    Attributes:
        title: above it.
        alt: what is to be seen in it, in words.
        data, layout: as plotly.js takes them.
        height: in pixels.
    """

    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 360

    def to_plain(self) -> dict[str, Any]:
        """As JSON values for the page."""
        return {"data": self.data, "layout": self.layout | {"height": self.height}}


def number(value: object, digits: int = 5) -> float | int | None:
    """A value for JSON: rounded, and None for what is no finite number."""
    try:
        found = float(str(value))
    except ValueError:
        return None
    if not math.isfinite(found):
        return None
    rounded = float(f"{found:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def numbers(values: Any, digits: int = 5) -> list[float | int | None]:
    """Each of the values."""
    return [number(value, digits) for value in values]


def front_figure(rows: pd.DataFrame, objectives: Sequence[str], chosen: int | None, who: str) -> FigureSpec:
    """All trials of a search over two objectives; front, no memory and choice marked.

    A single objective is drawn over the trials' numbers; of three the first two are drawn.
    """
    x, y = (objectives[0], objectives[1]) if len(objectives) > 1 else ("trial", objectives[0])
    done, base = rows[rows.state == "done"], rows[rows.state == "no memory"]
    beaten, front = done[~done.on_front], done[done.on_front].sort_values(x)
    picked = done[done.trial == chosen]
    data = [
        _points(beaten, x, y, "dominated", {"symbol": "circle-open", "size": 7, "color": "#6f6f6f"}),
        _points(front, x, y, "front", {"symbol": "square", "size": 9, "color": BLUE}),
    ]
    if len(objectives) == 2 and len(front):
        shape = "vh" if OBJECTIVES[x].direction == "max" else "hv"
        data[1] |= {
            "mode": "lines+markers",
            "line": {"shape": shape, "dash": "dash", "color": BLUE, "width": 1},
        }
    if x != "trial":
        mark = {"symbol": "x", "size": 11, "color": ORANGE, "line": {"width": 1, "color": "black"}}
        data.append(_points(base, x, y, "no memory", mark))
    elif len(base) and len(done):
        ends = [number(done.trial.min()), number(done.trial.max())]
        line = {"dash": "dash", "color": ORANGE}
        value = number(base[y].iloc[0])
        data.append({"type": "scatter", "mode": "lines", "name": "no memory", "x": ends, "y": [value] * 2,
                     "line": line})  # fmt: skip
    star = {"symbol": "star", "size": 17, "color": GREEN, "line": {"width": 1, "color": "black"}}
    data.append(_points(picked, x, y, "chosen", star))
    more = f"; also searched by {', '.join(objectives[2:])}, not drawn here" if len(objectives) > 2 else ""
    alt = (
        f"Trials of {who}: {y} over {x}. {len(done)} measured, {len(front)} on the front"
        + (f", chosen is t{chosen:04d}" if chosen is not None else ", none chosen")
        + (". No memory is marked" if len(base) else "")
        + f"{more}."
    )
    labels = ("trial" if x == "trial" else _label(x), _label(y))
    return FigureSpec(f"Front{more}", alt, data, base_layout(*labels))


def hypervolume_figure(values: Sequence[float], who: str) -> FigureSpec:
    """Hypervolume of a search's front after each finished trial."""
    shown = numbers(values)
    line = {"shape": "hv", "color": BLUE}
    data = [
        {
            "type": "scatter", "mode": "lines", "x": list(range(1, len(shown) + 1)), "y": shown, "line": line,
            "hovertemplate": "after %{x}: %{y}<extra></extra>",
        }
    ]  # fmt: skip
    end = f" from {shown[0]} to {shown[-1]}" if shown else ""
    alt = f"Hypervolume of {who} over {len(shown)} measured trials{end}."
    layout = base_layout("measured trials", "hypervolume")
    layout["xaxis"]["range"] = [0.5, len(shown) + 0.5]
    return FigureSpec("Hypervolume", alt, data, layout, 280)


def placement_figure(rows: pd.DataFrame, layers: int, chosen: int | None, who: str) -> FigureSpec:
    """Which layers have which rank: a row a trial, front trials and the choice marked."""
    done = rows[rows.state == "done"]
    kept = _most_telling(done, chosen, _MOST_ROWS).sort_values("trial")
    ranks, names = list[list[int | None]](), list[str]()
    for row in kept.itertuples():
        placed = Placement.from_key(str(row.placement)).as_dict()
        ranks.append([placed.get(layer) for layer in range(layers)])
        mark = " ★" if row.trial == chosen else " ●" if row.on_front else ""
        names.append(f"t{row.trial:04d}{mark}")
    layout = base_layout("layer", "trial")
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "dtick": 1, "tickfont": {"size": 10}}
    layout["xaxis"] |= {"dtick": max(1, layers // 16), "showgrid": False}
    layout["margin"]["l"] = 80
    left = f"; {len(done) - len(kept)} dominated trials are left out" if len(kept) < len(done) else ""
    alt = f"Ranks by layer of {len(kept)} trials of {who}; darker is a larger rank, white is no LoRA{left}."
    title = f"Placements (● on the front, ★ chosen{left})"
    return FigureSpec(title, alt, [_ranks(ranks, names)], layout, 120 + 16 * max(8, len(kept)))


def coordinates_figure(
    rows: pd.DataFrame, objectives: Sequence[str], chosen: int | None, who: str
) -> FigureSpec:
    """Parallel coordinates: layers, n, rank, objectives; each axis from least to most."""
    done = rows[rows.state == "done"]
    kept = _most_telling(done, chosen, _MOST_ROWS)
    layers = kept.placement.map(lambda key: len(Placement.from_key(str(key))))
    axes: dict[str, pd.Series[Any]] = {"layers": layers, "n": kept.num_loras, "rank": kept["rank"]}
    axes |= {name: kept[name] for name in objectives if kept[name].notna().any()}
    ends = {name: (float(values.min()), float(values.max())) for name, values in axes.items()}
    scaled = {
        name: (values.astype(float) - ends[name][0]) / ((ends[name][1] - ends[name][0]) or 1.0)
        for name, values in axes.items()
    }
    names = list(axes)
    data: list[dict[str, Any]] = []
    for group, style in (
        ("dominated", {"color": GREY, "width": 1, "dash": "dot"}),
        ("front", {"color": BLUE, "width": 2, "dash": "solid"}),
        ("chosen", {"color": GREEN, "width": 4, "dash": "dash"}),
    ):
        x, y, text = list[str | None](), list[float | int | None](), list[str]()
        for index, row in zip(kept.index, kept.itertuples(), strict=True):
            mine = "chosen" if row.trial == chosen else "front" if row.on_front else "dominated"
            if mine == group:
                x += [*names, None]
                y += [*(number(scaled[name][index], 3) for name in names), None]
                text += [*(f"t{row.trial:04d} {name} {number(axes[name][index])}" for name in names), ""]
        data.append({"type": "scatter", "mode": "lines", "name": group, "x": x, "y": y, "line": style,
                     "text": text, "hovertemplate": "%{text}<extra></extra>"})  # fmt: skip
    layout = base_layout("", "")
    # Above and below each axis stands what its ends are.
    layout["xaxis"] |= {
        "type": "category", "gridcolor": "#555", "tickvals": names, "range": [-0.3, len(names) - 0.7],
        "ticktext": [
            f"{_wrapped(name)}<br>from {number(low, 4)}" for name, (low, _) in ends.items()
        ],
        "tickangle": 0, "tickfont": {"size": 12},
    }  # fmt: skip
    layout["yaxis"] |= {"showticklabels": False, "range": [-0.05, 1.14], "showgrid": False}
    layout["annotations"] = [
        {"x": name, "y": 1.06, "text": f"to {number(high, 4)}", "showarrow": False, "font": {"size": 12}}
        for name, (_, high) in ends.items()
    ]
    alt = f"Parallel coordinates of {len(kept)} trials of {who} over {', '.join(names)}."
    return FigureSpec("Parallel coordinates", alt, data, layout)


def gains_figure(table: pd.DataFrame, labels: Mapping[str, str], unit: str) -> FigureSpec:
    """Users' gains in order, one curve a column; a share of the users where there are many."""
    data, told = [], []
    for (column, label), symbol, colour in zip(
        labels.items(), ("circle", "x-thin-open"), (BLUE, ORANGE), strict=False
    ):
        values = table[column].dropna().sort_values(ascending=False)
        kept = evenly(len(values), _MOST_POINTS)
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": label, "x": [index + 1 for index in kept],
                "y": numbers(values.iloc[kept]), "text": [plain(alias) for alias in values.index[kept]],
                "marker": {"symbol": symbol, "color": colour, "size": 7},
                "hovertemplate": "%{text}: %{y}<extra></extra>",
            }
        )  # fmt: skip
        told.append(f"{label}: {int((values > 0).sum())} of {len(values)} users above 0")
    layout = base_layout("users, best first", unit)
    if len(table) <= _FEW:
        layout["xaxis"]["dtick"] = 1
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "black", "zerolinewidth": 2}
    return FigureSpec("Gains of all users", f"Gains in order. {'; '.join(told)}.", data, layout)


def overlay_figure(trials: pd.DataFrame, names: Sequence[str], users: Sequence[str]) -> FigureSpec:
    """Fronts of several users, each measured from its own no-memory point, which is at 0, 0.

    Args:
        trials: of all of them.
        names: objectives, of which the first two are drawn.
        users: aliases, the best first: thirds of them differ in mark and dash.
    """
    x, y = names[0], names[1]
    fronts = {
        alias: found for alias in users if (found := _gains(trials[trials.user == alias], (x, y))) is not None
    }
    data, shown = list[dict[str, Any]](), len(fronts)
    for index, (alias, points) in enumerate(fronts.items()):
        third = min(2, 3 * index // shown) if shown > 2 else 0
        label, dash, symbol, colour = _THIRDS[third]
        first = shown > 2 and not any(trace["legendgroup"] == label for trace in data)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": label, "legendgroup": label,
                "showlegend": first, "x": numbers(points[x]), "y": numbers(points[y]),
                "line": {"shape": "vh", "width": 1.5, "color": colour, "dash": dash},
                "marker": {"size": 6, "symbol": symbol}, "text": [plain(alias)] * len(points),
                "hovertemplate": "%{text}: %{x}, %{y}<extra></extra>",
            }
        )  # fmt: skip
    zero = {"symbol": "x", "size": 12, "color": ORANGE, "line": {"width": 1, "color": "black"}}
    data.append(
        {"type": "scatter", "mode": "markers", "name": "no memory", "x": [0], "y": [0], "marker": zero}
    )
    alt = f"Fronts of {shown} users by what they gain over no memory, in {x} and {y}; up and right is better."
    layout = base_layout(f"gain in {x}", f"gain in {y}")
    return FigureSpec(f"Fronts of {shown} users", alt, data, layout)


def _gains(rows: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame | None:
    """A front by what it gains over no memory; None without either."""
    base, front = rows[rows.state == "no memory"], rows[rows.on_front]
    if base.empty or front.empty:
        return None
    gains = {name: _turned(name) * (front[name] - float(base[name].iloc[0])) for name in names}
    return pd.DataFrame(gains).sort_values(names[0])


def progress_figure(curves: Mapping[str, Sequence[float]]) -> FigureSpec:
    """Median and quantiles over users of hypervolume, as a share of its last value."""
    shares = {
        alias: pd.Series([value / curve[-1] for value in curve])
        for alias, curve in curves.items()
        if len(curve) and curve[-1] > 0
    }
    data, alt = list[dict[str, Any]](), "No user's trials beat the reference point yet."
    if shares:
        frame = pd.DataFrame(shares).ffill()
        kept = evenly(len(frame), _MOST_POINTS)
        for quantile, name, dash in (
            (0.1, "10 %", "dot"), (0.25, "25 %", "dash"), (0.5, "median", "solid"), (0.75, "75 %", "dash"),
            (0.9, "90 %", "dot"),
        ):  # fmt: skip
            line = {"shape": "hv", "dash": dash, "color": BLUE, "width": 3 if quantile == 0.5 else 1}
            values = frame.quantile(quantile, axis=1).iloc[kept]
            data.append({"type": "scatter", "mode": "lines", "name": name, "x": [i + 1 for i in kept],
                         "y": numbers(values, 4), "line": line})  # fmt: skip
        half = float(frame.median(axis=1).iloc[(len(frame) - 1) // 2])
        alt = (
            f"Hypervolume of {len(shares)} users as a share of the last value, over measured trials. "
            f"Halfway the median is at {100 * half:.0f} %."
        )
    layout = base_layout("measured trials", "share of the last hypervolume")
    layout["yaxis"]["range"] = [-0.02, 1.05]
    return FigureSpec("Hypervolume over trials", alt, data, layout)


def winners_figure(keys: Sequence[str], layers: int, what: str) -> FigureSpec:
    """How often each layer has which rank in placements: share of the placements."""
    placements = [Placement.from_key(key).as_dict() for key in keys]
    counts: dict[int, list[int]] = {}
    for ranks in placements:
        for layer, rank in ranks.items():
            counts.setdefault(rank, [0] * layers)[layer] += 1
    grouped = _grouped(counts, layers)
    total = max(1, len(placements))
    none = [len(placements) - sum(row[layer] for row in grouped.values()) for layer in range(layers)]
    names = list(grouped)
    shares = [[round(100 * count / total, 1) for count in row] for row in grouped.values()]
    hover = "layer %{x}, rank %{y}: %{z} %<extra></extra>"
    layout = base_layout("layer", "rank")
    layout["yaxis"] |= {"type": "category"}
    layout["xaxis"] |= {"dtick": max(1, layers // 16), "showgrid": False}
    layout["margin"]["l"] = 80
    used = [len(placements) - count for count in none]
    layout["yaxis"]["domain"] = [0, 0.7]
    layout["yaxis2"] = {
        "domain": [0.78, 1], "title": {"text": "used, %"}, "gridcolor": "#dddddd", "rangemode": "tozero",
        "automargin": True,
    }  # fmt: skip
    most = max(range(layers), key=lambda layer: used[layer]) if layers else 0
    alt = (
        f"Share of {len(placements)} {what} by layer and rank. Layer {most} is used most, in "
        f"{100 * used[most] / total:.0f} %."
        if layers
        else "No placement."
    )
    bars = {"type": "bar", "x": list(range(layers)), "y": [round(100 * count / total, 1) for count in used],
            "yaxis": "y2", "marker": {"color": "#777777"}, "showlegend": False,
            "hovertemplate": "layer %{x}: %{y} %<extra></extra>"}  # fmt: skip
    heat = _heat(shares, list(range(layers)), names, "% of them", hover)
    heat["colorbar"] |= {"len": 0.7, "y": 0, "yanchor": "bottom"}
    title = f"Layers and ranks of {what}: {len(placements):,}"
    return FigureSpec(title, alt, [heat, bars], layout, 240 + 26 * len(names))


def stage_figure(seconds: Mapping[str, Sequence[float]]) -> FigureSpec:
    """Seconds a trial by stage: boxes from quantiles, so that no trial's own number is embedded."""
    data, told = list[dict[str, Any]](), list[str]()
    for name, values in seconds.items():
        if not len(values):
            continue
        least, low, middle, high, most = (
            float(np.quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)
        )
        data.append(
            {
                "type": "box", "name": name, "x": [name], "lowerfence": [number(least)], "q1": [number(low)],
                "median": [number(middle)], "q3": [number(high)], "upperfence": [number(most)],
                "fillcolor": "white", "line": {"color": "black"}, "showlegend": False,
            }
        )  # fmt: skip
        told.append(f"{name} {number(middle, 3)} s")
    layout = base_layout("", "seconds a trial")
    layout["yaxis"]["rangemode"] = "tozero"
    alt = f"Seconds a trial by stage, median: {', '.join(told) or 'none known'}. Boxes: quartiles, 5 to 95 %."
    return FigureSpec("Seconds a trial, by stage", alt, data, layout, 320)


def node_figure(hours: Mapping[str, float]) -> FigureSpec:
    """Worker-hours by node, the busiest first."""
    shown = dict(sorted(hours.items(), key=lambda item: -item[1])[:40])
    data = [{"type": "bar", "x": list(shown), "y": numbers(shown.values()),
             "marker": {"color": BLUE, "line": {"color": "black", "width": 1}}}]  # fmt: skip
    data[0]["x"] = [plain(node) for node in shown]
    layout = base_layout("node", "worker-hours")
    layout["xaxis"]["type"] = "category"
    alt = f"Worker-hours of {len(hours)} nodes; the busiest had {number(max(hours.values(), default=0), 3)}."
    return FigureSpec("Worker-hours by node", alt, data, layout, 300)


def measured_figure(rows: pd.DataFrame, name: str, chosen: int | None) -> FigureSpec:
    """Of a population: each user's value without a memory and in the chosen trial."""
    base = rows[rows.trial == -1].set_index("user")[name]
    mine = rows[rows.trial == chosen].set_index("user")[name]
    users = [user for user in base.index if user in mine.index][:_MOST_POINTS]
    data = [
        {
            "type": "scatter", "mode": "markers", "name": label, "x": [plain(user) for user in users],
            "y": numbers(values[users]), "marker": {"symbol": symbol, "size": 10, "color": colour},
        }
        for label, values, symbol, colour in (
            ("no memory", base, "x", ORANGE), ("chosen", mine, "star", GREEN),
        )
    ]  # fmt: skip
    better = int((_turned(name) * (mine[users] - base[users]) > 0).sum()) if users else 0
    layout = base_layout("user of the sample", _label(name))
    layout["xaxis"]["type"] = "category"
    alt = f"{name} of {len(users)} sampled users; the chosen trial is better than no memory for {better}."
    return FigureSpec("Users that trials measured", alt, data, layout)


def _points(rows: pd.DataFrame, x: str, y: str, name: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": numbers(rows[x]), "y": numbers(rows[y]),
        "text": ["no memory" if trial < 0 else f"t{trial:04d}" for trial in rows.trial.astype(int)],
        "marker": marker, "hovertemplate": f"%{{text}}: {x} %{{x}}, {y} %{{y}}<extra></extra>",
    }  # fmt: skip


def _heat(z: list[list[Any]], x: list[int], y: list[str], unit: str, hover: str) -> dict[str, Any]:
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 12}
    return {"type": "heatmap", "z": z, "x": x, "y": y, "colorscale": SHARES, "colorbar": bar, "xgap": 1,
            "ygap": 1, "hoverongaps": False, "hovertemplate": hover}  # fmt: skip


def _ranks(ranks: list[list[int | None]], names: list[str]) -> dict[str, Any]:
    """A strip of ranks, coloured by their logarithm: they double and double again."""
    z = [[None if rank is None else number(math.log2(rank), 4) for rank in row] for row in ranks]
    layers = list(range(len(ranks[0]) if ranks else 0))
    heat = _heat(z, layers, names, "rank", "layer %{x}, %{y}: rank %{customdata}<extra></extra>")
    powers = range(1 + max((rank for row in ranks for rank in row if rank), default=1).bit_length())
    heat["colorbar"] |= {"tickvals": list(powers), "ticktext": [str(1 << power) for power in powers]}
    return heat | {"customdata": ranks, "colorscale": RANKS}


def base_layout(x: str, y: str) -> dict[str, Any]:
    """A layout with the titles of its axes."""
    axis = {"gridcolor": "#dddddd", "zeroline": False, "automargin": True}
    return {
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#111111"},
        "plot_bgcolor": "#ffffff",
        "paper_bgcolor": "#ffffff",
        "hovermode": "closest",
    }


def plain(text: object) -> str:
    """A text that plotly.js shows as it is: some of HTML's tags it would take for marks."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _wrapped(name: str) -> str:
    """A long name on two lines."""
    return name.replace("_", "<br>", 1) if len(name) > 10 else name


def _label(name: str) -> str:
    label = OBJECTIVES[name].label if name in OBJECTIVES else name
    return label.replace(" (", "<br>(")  # a figure's side is short


def _turned(name: str) -> float:
    return OBJECTIVES[name].maximized(1.0)


def _most_telling(done: pd.DataFrame, chosen: int | None, most: int) -> pd.DataFrame:
    """All trials, or those of the front and the latest others."""
    if len(done) <= most:
        return done
    told = done[done.on_front | (done.trial == chosen)].head(most)
    return pd.concat([told, done.drop(told.index).tail(most - len(told))])


def evenly(count: int, most: int) -> list[int]:
    """Up to ``most`` positions among ``count``, first and last included."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def _grouped(counts: Mapping[int, list[int]], layers: int) -> dict[str, list[int]]:
    """Counts by rank, small ones first; of many ranks a row for those between two powers of 2."""
    if len(counts) <= _MOST_RANKS:
        return {str(rank): counts[rank] for rank in sorted(counts)}
    grouped: dict[str, list[int]] = {}
    for rank in sorted(counts):
        low = 1 << (rank.bit_length() - 1)
        row = grouped.setdefault(f"{low}-{2 * low - 1}", [0] * layers)
        for layer, count in enumerate(counts[rank]):
            row[layer] += count
    return grouped
