"""Prometheus and Grafana: every query parses and asks for a metric and a label that there is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from milp_ray.tune.search.prometheus import GAUGES, PREFIX
from tests.cluster.paths import CLUSTER
from tests.cluster.promql import exported_names, metric_names, names_in, panels, queries, selectors

MONITORING = CLUSTER / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
# Series of Ray itself that the dashboard shows; Ray's own dashboards have them too.
RAYS_OWN = {"ray_node_gpus_utilization"}
PROMETHEUS_OWN = {"study", "le"}


def dashboard_faults(dashboard: dict[str, Any]) -> list[str]:
    """Queries without a metric, labels and states that no metric has, panels that overlap."""
    found = [f"{name} is not exported" for name in metric_names(dashboard) - exported_names() - RAYS_OWN]
    for query in queries(dashboard):
        found += label_faults(query)
    identities = [panel["id"] for panel in panels(dashboard)]
    if len(set(identities)) != len(identities):
        found.append("two panels have one id")
    cells: set[tuple[int, int]] = set()
    for panel in panels(dashboard):
        place = panel["gridPos"]
        mine = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        if cells & mine or place["x"] + place["w"] > 24:
            found.append(f"panel {panel['title']} lies on another one, or outside")
        cells |= mine
        if panel["type"] != "row" and not (panel.get("description") and panel.get("targets")):
            found.append(f"panel {panel['title']} says or asks nothing")
    return found


def label_faults(query: str) -> list[str]:
    """Labels of our metrics, and values of their state, that are never exported."""
    found = []
    for selector in selectors(query):
        name = str(selector.name).removeprefix(f"ray_{PREFIX}")
        text, label = GAUGES.get(name, ("", ""))
        for matcher in selector.matchers.matchers if selector.name not in RAYS_OWN else ():
            if matcher.name not in {"study", label}:
                found.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name == "state":
                known = set(re.findall(r"\w+", text.partition(":")[2]))
                found += [
                    f"{selector.name} has no state {s}" for s in matcher.value.split("|") if s not in known
                ]
    return found


def test_the_dashboard() -> None:
    assert dashboard_faults(DASHBOARD) == []
    assert DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 39
    assert all(  # of any Prometheus, not of the one that it was drawn with
        panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for panel in panels(DASHBOARD)
        if panel["type"] != "row"
    )


def test_the_dashboard_shows_every_metric() -> None:
    base = {re.sub("_(bucket|sum|count)$", "", name) for name in exported_names()}
    assert base <= {re.sub("_(bucket|sum|count)$", "", name) for name in metric_names(DASHBOARD)}


def test_rays_own_metrics_are_in_rays_own_dashboards() -> None:
    import ray

    folder = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*_panels.py"))
    assert all(re.search(rf"\b{name}\b", text) for name in RAYS_OWN)
    assert not re.search(r"\bray_node_gpus_utilisation\b", text)


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("ray_milp_ray_trial", "is not exported"),
        ("ray_milp_ray_trial_seconds", "is not exported"),  # a histogram has no series of its own name
        ('ray_milp_ray_trials{user="u"}', "no label user"),
        ('ray_milp_ray_trials{state="finished"}', "no state finished"),
        ('ray_milp_ray_users{state=~"searched|done"}', "no state done"),
    ],
)
def test_a_wrong_query_is_seen(expr: str, fault: str) -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    dashboard["panels"][1]["targets"][0]["expr"] = f"sum({expr})"
    assert any(fault in found for found in dashboard_faults(dashboard))


def test_a_query_that_is_not_promql_is_an_error() -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    dashboard["panels"][1]["targets"][0]["expr"] = "sum(ray_milp_ray_trials"
    with pytest.raises(ValueError, match="parenthesis"):
        metric_names(dashboard)


def test_panels_on_top_of_each_other_are_seen() -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    dashboard["panels"][2]["gridPos"]["x"] = 0
    assert any("lies on another one" in found for found in dashboard_faults(dashboard))


def test_names_are_found_wherever_they_stand() -> None:
    query = (
        'sum(rate(a{b="c"}[$__rate_interval])) / d offset 5m + topk(3, e) - (-f) and max_over_time(g[1h:5m])'
    )
    assert names_in(query) == {"a", "d", "e", "f", "g"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Duration = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h|d)$")]
Label = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class Relabel(Strict):
    source_labels: list[Label]
    regex: str = "(.*)"
    action: Annotated[str, Field(pattern="^(keep|drop|replace|labelmap)$")] = "replace"
    target_label: Label | None = None


class Files(Strict):
    files: Annotated[list[Annotated[str, Field(pattern=r"\.(json|yml|yaml)$")]], Field(min_length=1)]


class Targets(Strict):
    targets: list[Annotated[str, Field(pattern=r"^[^/:]+:\d+$")]]


class Names(Strict):
    names: list[str]


class Pods(Strict):
    role: Annotated[str, Field(pattern="^(pod|node|service|endpoints|endpointslice|ingress)$")]
    namespaces: Names


class Scrape(Strict):
    job_name: str
    file_sd_configs: list[Files] = []
    kubernetes_sd_configs: list[Pods] = []
    static_configs: list[Targets] = []
    relabel_configs: list[Relabel] = []


class Intervals(Strict):
    scrape_interval: Duration
    evaluation_interval: Duration


class Prometheus(Strict):
    """The part of Prometheus' configuration that ours uses; any other key is a mistake here."""

    global_: Annotated[Intervals, Field(alias="global")]
    rule_files: list[str]
    scrape_configs: list[Scrape]


class Rule(Strict):
    alert: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]+$")]
    expr: str
    for_: Annotated[Duration, Field(alias="for")]
    labels: dict[Label, str]
    annotations: dict[Label, str]


class Group(Strict):
    name: str
    rules: Annotated[list[Rule], Field(min_length=1)]


class Rules(Strict):
    groups: list[Group]


def read(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))


def test_the_configuration_of_prometheus() -> None:
    config = Prometheus.model_validate(read("prometheus.yml"))
    assert all((MONITORING / name).is_file() for name in config.rule_files)
    jobs = [job.job_name for job in config.scrape_configs]
    assert len(set(jobs)) == len(jobs)
    for job in config.scrape_configs:
        assert job.file_sd_configs or job.kubernetes_sd_configs or job.static_configs
        for relabel in job.relabel_configs:
            re.compile(relabel.regex)
            assert relabel.target_label or relabel.action != "replace"


def test_prometheus_looks_where_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = Prometheus.model_validate(read("prometheus.yml"))
    (file,) = [name for job in config.scrape_configs for part in job.file_sd_configs for name in part.files]
    assert Path(file).name == PROMETHEUS_SERVICE_DISCOVERY_FILE


def rule_faults(rules: Any) -> list[str]:
    found = []
    for group in Rules.model_validate(rules).groups:
        for rule in group.rules:
            found += [f"{name} is not exported" for name in names_in(rule.expr) - exported_names()]
            found += label_faults(rule.expr)
            used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())))
            found += [f"{rule.alert} has no label {name}" for name in used - PROMETHEUS_OWN]
    return found


def test_the_alerts() -> None:
    assert rule_faults(read("alerts.yml")) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda rule: rule.update(expr="ray_milp_ray_trial > 0"), "is not exported"),
        (lambda rule: rule.update(expr='ray_milp_ray_trials{state="x"} > 0'), "no state x"),
        (lambda rule: rule.update(annotations={"summary": "{{ $labels.user }}"}), "no label user"),
    ],
)
def test_a_wrong_alert_is_seen(change: Callable[[dict[str, Any]], object], fault: str) -> None:
    rules = read("alerts.yml")
    change(rules["groups"][0]["rules"][0])
    assert any(fault in found for found in rule_faults(rules))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(scrape_config=[]),
        lambda c: c["global"].update(scrape_interval="15"),
        lambda c: c["scrape_configs"][0].update(file_sd_config=[]),
        lambda c: c["scrape_configs"][2]["static_configs"][0].update(targets=["http://127.0.0.1:8080"]),
        lambda c: c["scrape_configs"][1]["kubernetes_sd_configs"][0].update(role="pods"),
    ],
)
def test_a_wrong_configuration_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    config = read("prometheus.yml")
    change(config)
    with pytest.raises(ValidationError):
        Prometheus.model_validate(config)


def test_what_grafana_provisions() -> None:
    class Options(Strict):
        path: str

    class Provider(Strict):
        name: str
        folder: str
        type: Annotated[str, Field(pattern="^file$")]
        allowUiUpdates: bool  # noqa: N815  (Grafana's own)
        options: Options

    content = read("provisioning.yml")
    assert set(content) == {"apiVersion", "providers"} and content["apiVersion"] == 1
    TypeAdapter(list[Provider]).validate_python(content["providers"])
