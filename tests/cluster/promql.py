"""The metric names in PromQL, and in a Grafana dashboard's queries. A faulty query raises.

metric_names(dashboard) -> {"ray_milp_ray_trials", ...}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser

from milp_ray.tune.search.prometheus import GAUGES, HISTOGRAMS, PREFIX

Dashboard = Mapping[str, Any]
# Grafana's variables as Prometheus would get them. `label_values(metric, label)` is Grafana's own
# function.
_VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}
_LABEL_VALUES = re.compile(r"label_values\((.+),\s*(\w+)\)")


def exported_names() -> set[str]:
    """What milp_ray exports, as Prometheus keeps it: Ray's prefix, a histogram's three series."""
    parts = ("bucket", "sum", "count")
    return {f"ray_{PREFIX}{name}" for name in GAUGES} | {
        f"ray_{PREFIX}{name}_{part}" for name in HISTOGRAMS for part in parts
    }


def metric_names(dashboard: Dashboard) -> set[str]:
    """Of all queries of a Grafana dashboard, those of its variables included.

    Raises:
        ValueError: a query is not PromQL.
    """
    return {name for query in queries(dashboard) for name in names_in(query)}


def queries(dashboard: Dashboard) -> list[str]:
    """All of a dashboard, as they stand."""
    found = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", [])]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            text = variable["query"]["query"]
            found.append(match[1] if (match := _LABEL_VALUES.fullmatch(text)) else text)
    return found


def panels(dashboard: Dashboard) -> Iterator[Dashboard]:
    """All panels, those of collapsed rows too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """The series that a query reads.

    Raises:
        ValueError: it is not PromQL.
    """
    for variable, value in _VARIABLES.items():
        query = query.replace(variable, value)
    return list(_selectors(promql_parser.parse(re.sub(r"\$\w+", "x", query))))


def names_in(query: str) -> set[str]:
    """The metric names of a query."""
    return {selector.name for selector in selectors(query) if selector.name}


def _selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for attribute in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        part = getattr(node, attribute, None)
        for child in part if isinstance(part, list) else [part]:
            if child is not None:
                yield from _selectors(child)
