"""The timeline of a run: which worker was at a trial when, what failed, and how much was waiting.

Times are those of the event logs, by the driver's clock. A row is a *lane* of a node: workers that
followed each other, as those of two sessions do, share one. Pauses in which no worker had a trial
are cut short. Of many trials shares of time are drawn in place of a bar each.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from milp_ray.report.colours import BLUE, ORANGE
from milp_ray.report.html.figures import SHARES, FigureSpec, base_layout, evenly, number, numbers, plain
from milp_ray.report.html.run_data import STAGES, RunData

Floats = npt.NDArray[np.float64]

NO_TIMES = (
    "There is no timeline: there are no times in this run's log, as in those of earlier versions. "
    "Of several nodes a figure has the worker-hours of each."
)
_MOST_BARS = 600
_MOST_LANES = 32
_MOST_MARKS = 300  # failed trials that are marked where bars are not drawn
_BINS = 400
_PAUSE = 60.0  # seconds without any trial that are no pause yet
_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class WorkerTimeline:
    """When trials ran.

    Attributes:
        rows: a trial a row, ``lane``, ``started_at``, ``ended_at``, ``busy`` (seconds of its
            stages), ``state``, ``user``, ``trial`` and ``lost_seconds``; times in seconds since the
            first start, pauses cut short.
        lanes: names of the lanes, top to bottom.
        pauses: what was cut: where, and how many seconds it took.
        unknown: trials that ended, and of which no log has times.
    """

    rows: pd.DataFrame
    lanes: list[str]
    pauses: list[tuple[float, float]]
    unknown: int


def timeline_of(run: RunData) -> WorkerTimeline | None:
    """The timeline of a run's trials; None where no log has times."""
    ended = run.trials[run.trials.state != "pending"]
    rows = ended[ended.started_at.notna() & ended.ended_at.notna()]
    if rows.empty:
        return None
    busy = rows[list(STAGES)].sum(axis=1)
    rows = rows[["user", "trial", "state", "node", "worker", "started_at", "ended_at", "lost_seconds"]]
    rows = rows.assign(busy=busy).sort_values("started_at", kind="stable").reset_index(drop=True)
    names = _lanes(rows)
    starts, ends, pauses = _without_pauses(rows.started_at.to_numpy(), rows.ended_at.to_numpy())
    rows = rows.assign(lane=names, started_at=starts, ended_at=ends)
    lanes = list(dict.fromkeys(sorted(names, key=_lane_order)))
    return WorkerTimeline(rows, lanes, pauses, len(ended) - len(rows))


def timeline_figure(line: WorkerTimeline) -> FigureSpec:
    """Bars of the trials, or of many trials the share of time in which each lane had one."""
    unit, seconds = _unit(float(line.rows.ended_at.max()))
    lanes = [line.lanes[index] for index in evenly(len(line.lanes), _MOST_LANES)]
    rows = line.rows[line.rows.lane.isin(lanes)]
    many = len(rows) > _MOST_BARS
    data = _shares(rows, lanes, unit, seconds) if many else _bars(rows, unit, seconds)
    layout = base_layout(f"{unit} since the first trial", "")
    layout["barmode"] = "overlay"
    layout["bargap"] = 0.25
    layout["yaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": lanes[::-1]}
    layout["yaxis"] |= {"showgrid": False, "range": [-0.6, len(lanes) - 0.4]}
    layout["xaxis"]["range"] = [0, float(line.rows.ended_at.max()) / seconds * 1.01]
    layout["shapes"] = [
        {"type": "line", "x0": at / seconds, "x1": at / seconds, "y0": 0, "y1": 1, "yref": "paper",
         "line": {"dash": "dot", "width": 2, "color": "#111111"}}
        for at, _ in line.pauses
    ]  # fmt: skip
    left = f"; {len(lanes)} of {len(line.lanes)} lanes" if len(lanes) < len(line.lanes) else ""
    pauses = f"; dotted: {len(line.pauses)} pauses are cut short" if line.pauses else ""
    failed = int((rows.state == "failed").sum())
    alt = (
        f"When {len(rows):,} trials ran on {len(lanes)} lanes of workers, {failed:,} of them failed. "
        f"Of the lanes' time {_percent(at_work(line))} had one."
    )
    return FigureSpec(f"Timeline by worker{left}{pauses}", alt, data, layout, 170 + 26 * len(lanes))


def timeline_rows(line: WorkerTimeline) -> list[tuple[str, str]]:
    """The timeline in numbers, for the table of costs."""
    rows = line.rows
    taken = float((rows.ended_at - rows.started_at).sum())
    wall = float(rows.ended_at.max())
    lost = float(rows.lost_seconds.sum())
    told = [
        ("from the first trial to the last", f"{_time(wall)}" + _pauses(line)),
        ("workers", f"{rows.worker[rows.worker != ''].nunique():,}, {len(line.lanes):,} at a time at most"),
        ("lanes with a trial", f"{_percent(at_work(line))} of the time"),
        ("stages' share of that", _percent(min(1.0, float(rows.busy.sum()) / max(taken, 1e-9)))),
    ]
    if lost:
        count = int((rows.lost_seconds > 0).sum())
        told.append(("lost with workers", f"{_time(lost)}, in {count:,} trials"))
    if line.unknown:
        told.append(("trials without times", f"{line.unknown:,}: their log has none"))
    return told


def held_hours(line: WorkerTimeline) -> float:
    """Hours for which workers were given trials, lost attempts included, a group counted once."""
    rows = line.rows
    # The last attempt of a trial whose worker was lost for good is among the lost ones already.
    known = rows[rows.worker != ""]
    return float((known.ended_at - known.started_at).sum() + rows.lost_seconds.sum()) / 3600


def at_work(line: WorkerTimeline) -> float:
    """Share of the lanes' time, from the first trial to the last, in which there was one."""
    known = line.rows[line.rows.worker != ""]
    total = known.lane.nunique() * float(line.rows.ended_at.max())
    return float(min(1.0, (known.ended_at - known.started_at).sum() / total)) if total > 0 else 1.0


def _lanes(rows: pd.DataFrame) -> list[str]:
    """The lane of each trial: a worker keeps one, and takes one that is free by then."""
    free_at: dict[tuple[str, int], float] = {}
    taken: dict[tuple[str, str], tuple[str, int]] = {}
    last = rows.groupby(["node", "worker"]).ended_at.max()
    result = []
    for row in rows.itertuples():
        key = (str(row.node), str(row.worker))
        if row.worker == "":  # its worker was lost, and which one that was is not known
            result.append(_name(_lane(free_at, "", row.started_at, row.ended_at)))
            continue
        if key not in taken:
            taken[key] = _lane(free_at, key[0], row.started_at, float(last[key]))
        result.append(_name(taken[key]))
    return result


def _lane(free_at: dict[tuple[str, int], float], node: str, start: Any, end: Any) -> tuple[str, int]:
    number = 1
    while free_at.get((node, number), -np.inf) > start:
        number += 1
    free_at[node, number] = float(end)
    return node, number


def _name(lane: tuple[str, int]) -> str:
    return f"{lane[0]} #{lane[1]}" if lane[0] else f"lost workers #{lane[1]}"


def _lane_order(name: str) -> tuple[bool, str, int]:
    node, _, number = name.rpartition("#")
    return node.startswith("lost"), node, int(number)


def _without_pauses(starts: Floats, ends: Floats) -> tuple[Floats, Floats, list[tuple[float, float]]]:
    """Times since the first start without what lies between sessions, and where that was."""
    # 1) what is covered by trials, as segments in order
    segments: list[list[float]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if segments and start <= segments[-1][1]:
            segments[-1][1] = max(segments[-1][1], end)
        else:
            segments.append([start, end])
    # 2) a pause is long, and long beside the work
    work = sum(end - start for start, end in segments)
    least = max(_PAUSE, 0.05 * work)
    shown = 0.01 * work
    shifts, pauses, shift = [(segments[0][0], segments[0][0])], list[tuple[float, float]](), segments[0][0]
    for before, after in pairwise(segments):
        if (gap := after[0] - before[1]) > least:
            shift += gap - shown
            shifts.append((after[0], shift))
            pauses.append((after[0] - shift - shown / 2, gap))
    # 3) every time less what was cut before it
    at = np.array([where for where, _ in shifts])
    by = np.array([cut for _, cut in shifts])
    cut = by[np.maximum(np.searchsorted(at, starts, side="right") - 1, 0)]
    return starts - cut, ends - cut, pauses


def _bars(rows: pd.DataFrame, unit: str, seconds: float) -> list[dict[str, Any]]:
    """A bar a trial, the part before its stages lighter."""
    # Of a trial whose worker was lost nobody knows how long it was at work.
    begun = (rows.ended_at - rows.busy).clip(lower=rows.started_at)
    busy_from = begun.where(rows.worker != "", rows.started_at)
    failed = rows.state == "failed"
    names = [
        f"{user} " + ("no memory" if trial < 0 else f"t{trial:04d}")
        for user, trial in zip(rows.user, rows.trial.astype(int), strict=True)
    ]
    rows = rows.assign(busy_from=busy_from, text=names)
    waiting = rows[rows.busy_from > rows.started_at]
    kinds = (
        ("handed out, not at work yet", waiting, "started_at", "busy_from", "white", ""),
        ("measured", rows[~failed], "busy_from", "ended_at", BLUE, ""),
        ("failed", rows[failed], "busy_from", "ended_at", ORANGE, "x"),
    )  # fmt: skip
    data: list[dict[str, Any]] = []
    for label, kept, start, end, colour, pattern in kinds:
        if kept.empty:
            continue
        marker: dict[str, Any] = {"color": colour, "line": {"color": "#111111", "width": 1}}
        if pattern:
            marker["pattern"] = {"shape": pattern, "fgcolor": "#111111", "size": 6}
        data.append(
            {
                "type": "bar", "orientation": "h", "name": label, "y": list(kept.lane), "marker": marker,
                "base": numbers(kept[start] / seconds, 6),
                "x": numbers((kept[end] - kept[start]) / seconds, 4),
                "text": [plain(text) for text in kept.text], "textposition": "none",
                "hovertemplate": f"%{{text}}: {label}, %{{x}} {unit}<extra></extra>",
            }
        )  # fmt: skip
    lost = rows[rows.lost_seconds > 0]
    if len(lost):
        mark = {"symbol": "triangle-down", "size": 11, "color": "#111111"}
        data.append(_marks(lost, "started_at", "a worker was lost before", mark, seconds))
    return data


def _shares(rows: pd.DataFrame, lanes: list[str], unit: str, seconds: float) -> list[dict[str, Any]]:
    """Of each lane and each part of the time the share with a trial, and marks of failed ones."""
    end = float(rows.ended_at.max())
    edges = np.linspace(0.0, max(end, 1e-9), _BINS + 1)
    width = edges[1] - edges[0]
    shares = []
    for lane in lanes[::-1]:
        mine = rows[rows.lane == lane]
        covered = _covered(mine.ended_at.to_numpy(), edges) - _covered(mine.started_at.to_numpy(), edges)
        shares.append([round(float(share), 2) for share in np.clip(-np.diff(covered) / width, 0.0, 1.0)])
    middle = ((edges[:-1] + edges[1:]) / 2 / seconds).tolist()
    heat = {
        "type": "heatmap", "z": shares, "x": numbers(middle, 5), "y": lanes[::-1], "colorscale": SHARES,
        "zmin": 0, "zmax": 1,
        "colorbar": {"title": {"text": "share with a trial", "side": "right"}, "thickness": 12},
        "hovertemplate": f"%{{y}}, %{{x}} {unit}: %{{z}}<extra></extra>",
    }  # fmt: skip
    failed = rows[rows.state == "failed"]
    if failed.empty:
        return [heat]
    shown = failed.iloc[evenly(len(failed), _MOST_MARKS)]
    few = f" ({len(shown)} of {len(failed):,})" if len(shown) < len(failed) else ""
    mark = {"symbol": "x-thin-open", "size": 7, "color": ORANGE, "line": {"width": 2, "color": ORANGE}}
    names = [f"{user} t{trial:04d}" for user, trial in zip(shown.user, shown.trial.astype(int), strict=True)]
    return [heat, _marks(shown.assign(text=names), "ended_at", f"failed{few}", mark, seconds)]


def _covered(times: Floats, edges: Floats) -> Floats:
    """At each edge the seconds by which it is short of all the times after it, summed."""
    ordered = np.sort(times)
    sums = np.concatenate([[0.0], np.cumsum(ordered[::-1])])[::-1]  # of the times from an index on
    first = np.searchsorted(ordered, edges, side="right")
    found: Floats = sums[first] - edges * (len(ordered) - first)
    return found


def _marks(rows: pd.DataFrame, at: str, label: str, mark: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": label, "showlegend": True,
        "x": numbers(rows[at] / seconds, 6), "y": list(rows.lane), "marker": mark,
        "text": [plain(text) for text in rows.text],
        "hovertemplate": f"%{{text}}: {label}<extra></extra>",
    }  # fmt: skip


def _unit(seconds: float) -> tuple[str, float]:
    return next((unit, size) for unit, size in _UNITS if seconds >= 2 * size or size == 1.0)


def _time(seconds: float) -> str:
    unit, size = _unit(seconds)
    return f"{number(seconds / size, 3)} {unit}"


def _pauses(line: WorkerTimeline) -> str:
    if not line.pauses:
        return ""
    return f", without {len(line.pauses)} pauses of {_time(sum(gap for _, gap in line.pauses))} in all"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
