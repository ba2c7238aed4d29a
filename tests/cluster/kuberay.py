"""What a KubeRay operator says no to: its CRDs' schemas, and the rules that it adds in code.

The schemas are read as the API server reads them: defaults are filled in, nulls dropped where they
are not allowed, and ``x-kubernetes-int-or-string`` may be both. Unknown fields are refused, which
the server would only drop. Rules in CEL are not evaluated: a manifest that sets a field with such a
rule is refused, so that none passes unseen.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Json = dict[str, Any]
LONGEST_NAME = 47
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # DNS-1035
_RAY_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_OLDEST_RAY_WITH_TOKENS = (2, 52)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def schema_of(crds: Path, kind: str) -> Json:
    """The schema of ``ray.io/v1`` for a kind, made strict."""
    with (crds / f"ray.io_{kind.lower()}s.yaml").open(encoding="utf-8") as file:
        crd = yaml.load(file, Loader=_LOADER)  # noqa: S506  (a safe loader, in C where there is one)
    versions = {version["name"]: version for version in crd["spec"]["versions"]}
    return _strict(versions["v1"]["schema"]["openAPIV3Schema"], top=True)


def _strict(schema: Json, top: bool = False) -> Json:
    """As JSON schema: unknown fields refused, Kubernetes' own words translated."""
    out = {key: value for key, value in schema.items() if not key.startswith("x-") and key != "nullable"}
    if schema.get("x-kubernetes-validations"):
        return {"not": {}, "description": "has rules in CEL, which are not evaluated here"}
    if schema.get("x-kubernetes-int-or-string"):
        out = {"type": ["integer", "string"]}
    if "properties" in schema:
        out["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    if top:
        out["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    if isinstance(schema.get("items"), dict):
        out["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = _strict(schema["additionalProperties"])
    if schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def filled(value: Any, schema: Json) -> Any:
    """A value with its schema's defaults, and without nulls that the schema does not allow."""
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        other = schema.get("additionalProperties")
        other = other if isinstance(other, dict) else {}
        kept = {
            name: filled(part, parts.get(name, other))
            for name, part in value.items()
            if part is not None or "null" in parts.get(name, other).get("type", ())
        }
        for name, part in parts.items():
            if name not in kept and "default" in part:
                kept[name] = copy.deepcopy(part["default"])
        return kept
    if isinstance(value, list):
        return [filled(part, schema.get("items", {})) for part in value]
    return value


def schema_faults(manifest: Json, schema: Json) -> list[str]:
    """Each as ``path: message``."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(filled(manifest, schema))
    return sorted(f"{error.json_path}: {error.message}" for error in found)


def rule_faults(manifest: Json) -> list[str]:
    """What the operator's code refuses in a RayCluster or RayJob that its schema allows."""
    faults = _name_faults(manifest["metadata"]["name"])
    spec = manifest["spec"]
    if manifest["kind"] == "RayCluster":
        return faults + _cluster_faults(spec)
    return faults + _job_faults(spec)


def _name_faults(name: str) -> list[str]:
    faults = [f"name {name!r} has more than {LONGEST_NAME} characters"] if len(name) > LONGEST_NAME else []
    return faults if _LABEL.fullmatch(name) else [*faults, f"name {name!r} is not a DNS-1035 label"]


_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def pod_security_faults(pods: dict[str, Json]) -> list[str]:
    """What the namespace's Pod Security level ``restricted`` (Kubernetes 1.25 on) refuses."""
    return [f"{name}: {fault}" for name, pod in pods.items() for fault in _pod_faults(pod["spec"])]


def _pod_faults(pod: Json) -> list[str]:
    own = pod.get("securityContext", {})
    faults = [f"{key} is the node's" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for volume in pod.get("volumes", []):
        faults += [f"a volume of kind {kind}" for kind in set(volume) - {"name"} - _VOLUMES]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = own | container.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        wrong = {
            "runAsNonRoot": context.get("runAsNonRoot") is not True,
            "runAsUser": 0 in (own.get("runAsUser"), context.get("runAsUser")),
            "seccompProfile": context.get("seccompProfile", {}).get("type")
            not in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is not False,
            "privileged": bool(context.get("privileged")),
            "capabilities.drop": "ALL" not in capabilities.get("drop", []),
            "capabilities.add": not {*capabilities.get("add", [])} <= {"NET_BIND_SERVICE"},
            "procMount": context.get("procMount", "Default") != "Default",
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
        }
        faults += [f"{container['name']}: {key}" for key, is_wrong in wrong.items() if is_wrong]
    return faults


def _job_faults(spec: Json) -> list[str]:
    faults = []
    if "rayClusterSpec" not in spec and not spec.get("clusterSelector"):
        faults.append("one of rayClusterSpec and clusterSelector must be set")
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        faults.append("ttlSecondsAfterFinished must not be negative")
    if not spec.get("shutdownAfterJobFinishes"):
        faults += [
            f"{name} needs shutdownAfterJobFinishes"
            for name in ("ttlSecondsAfterFinished", "suspend")
            if spec.get(name)
        ]
    if spec.get("backoffLimit", 0) < 0 or spec.get("activeDeadlineSeconds", 1) <= 0:
        faults.append("backoffLimit and activeDeadlineSeconds must be positive")
    if spec.get("submissionMode") in ("SidecarMode", "InteractiveMode") and "submitterPodTemplate" in spec:
        faults.append("submitterPodTemplate is for K8sJobMode and HTTPMode only")
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        faults.append("runtimeEnvYAML is not YAML")
    return faults + _cluster_faults(spec.get("rayClusterSpec", {"headGroupSpec": {"template": {}}}))


def _cluster_faults(spec: Json) -> list[str]:
    groups = {"head": spec["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in spec.get("workerGroupSpecs", [])}
    faults = []
    if len(groups) != 1 + len(spec.get("workerGroupSpecs", [])):
        faults.append("two groups have one name")
    for name, group in groups.items():
        params, pod = group.get("rayStartParams", {}), group["template"].get("spec", {})
        if not pod.get("containers"):
            faults.append(f"{name}: no container")
        if group.get("resources") and any(params.get(key) for key in _RAY_RESOURCES):
            faults.append(f"{name}: resources both of Ray's parameters and the group's own")
        if "labels" in params:
            faults.append(f"{name}: labels belong to the group, not to rayStartParams")
        counts = [group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas")]
        if counts != sorted(counts):
            faults.append(f"{name}: minReplicas, replicas, maxReplicas do not increase")
        version = spec.get("autoscalerOptions", {}).get("version")
        if version == "v2" and pod.get("restartPolicy", "Never") != "Never":
            faults.append(f"{name}: restartPolicy must be Never with the autoscaler's v2")
        if spec.get("enableInTreeAutoscaling") and group.get("suspend"):
            faults.append(f"{name}: cannot be suspended with an autoscaler")
    return faults + _token_faults(spec)


def _token_faults(spec: Json) -> list[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        return []
    found = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    if found is None or (int(found[1]), int(found[2])) < _OLDEST_RAY_WITH_TOKENS:
        return ["a token needs rayVersion 2.52 or newer"]
    return []
