"""KubeRay: the operator takes every overlay, each keeps its promises, and each check can fail."""

from __future__ import annotations

import copy
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from milp_ray.config.loading import load_study
from tests.cluster import kuberay
from tests.cluster.kustomize import Manifest, build
from tests.cluster.paths import CLUSTER, ROOT, run, tool

KUBERAY = CLUSTER / "kuberay"
OVERLAYS = sorted(path.parent for path in (KUBERAY / "overlays").rglob("kustomization.yaml"))
KUBERNETES = "1.32"
RAY_KINDS = ("RayCluster", "RayJob")
PART = {"app.kubernetes.io/part-of": "milp-ray"}


def name_of(overlay: Path) -> str:
    return str(overlay.relative_to(KUBERAY / "overlays"))


@pytest.fixture(scope="session")
def schemas(shared: Path) -> dict[str, dict[str, Any]]:
    """Of the operator's CRDs."""
    crds = shared / "crds"
    if not (crds / "ray.io_rayjobs.yaml").is_file():
        pytest.skip("no KubeRay CRDs: MILP_RAY_SHARED has no folder crds")
    return {kind: kuberay.schema_of(crds, kind) for kind in RAY_KINDS}


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def the_ray(overlay: Path) -> Manifest:
    (found,) = of_kind(build(overlay), *RAY_KINDS)
    return found


def cluster_spec(manifest: Manifest) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def pods(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """All pod templates of a RayCluster or RayJob, by what they are for."""
    spec = cluster_spec(manifest)
    found = {"head": spec["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    if "submitterPodTemplate" in manifest["spec"]:
        found["submitter"] = manifest["spec"]["submitterPodTemplate"]
    return found


def started_pods(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The pods as the operator starts them, with the head's autoscaler (KubeRay, common/pod.go)."""
    found = copy.deepcopy(pods(manifest))
    options = cluster_spec(manifest)["autoscalerOptions"]
    autoscaler = {key: options[key] for key in ("securityContext", "volumeMounts") if key in options}
    found["head"]["spec"]["containers"].append({"name": "autoscaler", **autoscaler})
    return found


def peers(policy: Manifest) -> list[dict[str, Any]]:
    """Whom a policy lets in or lets be reached."""
    spec = policy["spec"]
    incoming = [peer for rule in spec.get("ingress", []) for peer in rule["from"]]
    return incoming + [peer for rule in spec.get("egress", []) for peer in rule["to"]]


def open_doors(manifests: list[Manifest]) -> list[str]:
    """Egress to anybody: a rule without addressees, a network instead of a host, all namespaces."""
    found = []
    for policy in of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            found += [] if rule.get("to") else [f"{policy['metadata']['name']}: to anybody"]
            for peer in rule.get("to", []):
                if not peer.get("ipBlock", {"cidr": "/32"})["cidr"].endswith("/32"):
                    found.append(f"{policy['metadata']['name']}: to a whole network")
                if peer.get("namespaceSelector") == {}:
                    found.append(f"{policy['metadata']['name']}: to all namespaces")
    return found


def tokens(manifest: Manifest) -> set[tuple[str, str]]:
    """Pods and containers that hold a token of the Kubernetes API."""
    found = set()
    for name, pod in started_pods(manifest).items():
        volumes = {
            volume["name"]
            for volume in pod["spec"].get("volumes", [])
            if any(
                "serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", [])
            )
        }
        for container in pod["spec"]["containers"]:
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            if mounts & volumes or pod["spec"].get("automountServiceAccountToken", True):
                found.add((name, container["name"]))
    return found


def pod_fault(template: dict[str, Any]) -> str | None:
    """What Kubernetes' own schema says against a pod template; unknown fields count."""
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    try:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return None


def test_there_are_overlays_for_each_size_and_each_use() -> None:
    sizes, uses = ("one-gpu", "eight-gpus", "mixed"), ("cluster", "search", "final")
    assert {f"{size}/{use}" for size in sizes for use in uses} <= {name_of(path) for path in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
class TestOverlay:
    def test_plain_manifests_are_kubernetes(self, overlay: Path) -> None:
        plain = [m for m in build(overlay) if m["kind"] not in RAY_KINDS]
        assert {m["kind"] for m in plain} == {"ConfigMap", "NetworkPolicy"}
        for manifest in plain:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)

    def test_pods_are_kubernetes(self, overlay: Path) -> None:
        assert {name: pod_fault(pod) for name, pod in pods(the_ray(overlay)).items() if pod_fault(pod)} == {}

    def test_ray_manifests_fit_the_operators_schemas(
        self, overlay: Path, schemas: dict[str, dict[str, Any]]
    ) -> None:
        manifest = the_ray(overlay)
        assert kuberay.schema_faults(manifest, schemas[manifest["kind"]]) == []

    def test_the_operators_own_rules_are_kept(self, overlay: Path) -> None:
        assert kuberay.rule_faults(the_ray(overlay)) == []

    def test_promises(self, overlay: Path) -> None:
        manifest = the_ray(overlay)
        spec = cluster_spec(manifest)
        assert spec["authOptions"]["mode"] == "token" and spec["enableInTreeAutoscaling"] is True
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert all(
            "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
            for group in spec["workerGroupSpecs"]
        )
        if manifest["kind"] == "RayJob":
            job = manifest["spec"]
            assert job["shutdownAfterJobFinishes"] and job["ttlSecondsAfterFinished"] > 0
            assert job["backoffLimit"] > 0

    def test_pods_fit_the_restricted_pod_security_standard(self, overlay: Path) -> None:
        assert kuberay.pod_security_faults(started_pods(the_ray(overlay))) == []

    def test_every_pod_is_the_studys_own_and_under_its_policies(self, overlay: Path) -> None:
        manifests = build(overlay)
        ray = the_ray(overlay)
        study = ray["metadata"]["labels"]["milp-ray/study"]
        for pod in pods(ray).values():
            assert pod["metadata"]["labels"].items() >= {**PART, "milp-ray/study": study}.items()
        for policy in of_kind(manifests, "NetworkPolicy"):
            assert policy["spec"]["podSelector"]["matchLabels"].items() >= {"milp-ray/study": study}.items()
            assert "Egress" in policy["spec"]["policyTypes"]
            for peer in peers(policy):
                own = peer.get("podSelector", {}).get("matchLabels", {"milp-ray/study": study})
                assert own.items() >= {"milp-ray/study": study}.items(), "another study's pods reach this one"

    def test_nothing_leaves_but_to_addresses_that_are_named(self, overlay: Path) -> None:
        assert open_doors(build(overlay)) == []

    def test_the_apis_token_is_for_the_autoscaler_alone(self, overlay: Path) -> None:
        assert tokens(the_ray(overlay)) == {("head", "autoscaler")}

    def test_what_pods_mount_is_there(self, overlay: Path) -> None:
        there = {(m["kind"], m["metadata"]["name"]) for m in build(KUBERAY / "namespace") + build(overlay)}
        for pod in started_pods(the_ray(overlay)).values():
            volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
            for volume in volumes.values():
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in there
                elif "projected" not in volume:
                    claim = volume["persistentVolumeClaim"]["claimName"]
                    assert ("PersistentVolumeClaim", claim) in there
            for container in pod["spec"]["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)

    def test_no_secret_by_value(self, overlay: Path) -> None:
        for manifest in build(overlay):
            assert manifest["kind"] != "Secret"
            assert secrets_by_value(manifest) == []

    def test_the_study_is_one_and_asks_for_what_the_groups_have(self, overlay: Path, tmp_path: Path) -> None:
        manifest = the_ray(overlay)
        (config,) = of_kind(build(overlay), "ConfigMap")
        for name, text in config["data"].items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        study = load_study(tmp_path / "search.yaml")
        assert load_study(tmp_path / "final.yaml") == study
        groups = cluster_spec(manifest)["workerGroupSpecs"]
        gpus = sum(
            group["maxReplicas"]
            * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
            for group in groups
        )
        assert study.ray.max_concurrent == gpus and study.ray.gpus_per_worker == 1
        assert study.ray.wait_for_nodes > 0, "groups begin at zero"
        if manifest["kind"] == "RayJob":
            words = manifest["spec"]["entrypoint"].split()
            assert words[:4] == ["python", "-m", "milp_ray.jobs", manifest["metadata"]["name"].split("-")[2]]
            assert words[4].removeprefix("/etc/milp-ray/") in config["data"]


def secrets_by_value(value: Any, name: str = "") -> list[str]:
    """Environment variables that look like a secret and have a value."""
    if isinstance(value, dict):
        label = str(value.get("name", ""))
        secret = any(word in label.upper() for word in ("TOKEN", "SECRET", "PASSWORD", "ACCESS_KEY"))
        own = [label] if secret and "value" in value else []
        return own + [found for key, part in value.items() for found in secrets_by_value(part, str(key))]
    if isinstance(value, list):
        return [found for part in value for found in secrets_by_value(part, name)]
    return []


def test_both_jobs_and_the_cluster_have_one_specification() -> None:
    first, *others = (
        cluster_spec(the_ray(KUBERAY / "overlays/mixed" / use)) for use in ("cluster", "search", "final")
    )
    assert all(other == first for other in others)


def test_the_version_of_ray_is_the_pinned_one() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    for overlay in OVERLAYS:
        assert f"ray=={cluster_spec(the_ray(overlay))['rayVersion']}" in pins


def test_several_components_add_up() -> None:
    manifest = the_ray(KUBERAY / "overlays/s3/search")
    for name in ("head", "eight-gpus"):
        assert pods(manifest)[name]["spec"]["containers"][0]["envFrom"] == [
            {"secretRef": {"name": "milp-ray-s3"}}
        ]


# Each check above, shown to fail.

Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> Manifest:
    manifest = copy.deepcopy(the_ray(KUBERAY / "overlays/one-gpu/search"))
    change(manifest)
    return manifest


def group(manifest: Manifest) -> dict[str, Any]:
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m["spec"].update(shutDownAfterJobFinishes=True), "shutDownAfterJobFinishes"),
        (lambda m: m["spec"].update(ttlSecondsAfterFinished="300"), "is not of type 'integer'"),
        (lambda m: m["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"), "is not one of"),
        (lambda m: group(m).pop("maxReplicas"), None),  # has a default
        (lambda m: group(m).pop("template"), "'template' is a required property"),
        (lambda m: group(m)["rayStartParams"].update({"num-cpus": 0}), "is not of type 'string'"),
        (lambda m: group(m)["template"]["spec"]["containers"][0].update(images="x"), "images"),
        (lambda m: m["spec"].update(managedBy="me"), "should not be valid"),
        (lambda m: m["spec"].update(backoffLimit=None), None),  # the server drops a null
    ],
)
def test_the_schemas_refuse(change: Change, fault: str | None, schemas: dict[str, dict[str, Any]]) -> None:
    found = kuberay.schema_faults(changed(change), schemas["RayJob"])
    assert not found if fault is None else any(fault in text for text in found), found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m["metadata"].update(name="a" * 48), "more than 47"),
        (lambda m: m["metadata"].update(name="My_job"), "DNS-1035"),
        (lambda m: m["spec"].pop("rayClusterSpec"), "one of rayClusterSpec"),
        (lambda m: m["spec"].update(shutdownAfterJobFinishes=False), "needs shutdownAfterJobFinishes"),
        (lambda m: m["spec"].update(ttlSecondsAfterFinished=-1), "must not be negative"),
        (lambda m: m["spec"].update(backoffLimit=-1), "must be positive"),
        (lambda m: m["spec"].update(submissionMode="SidecarMode"), "submitterPodTemplate"),
        (lambda m: m["spec"].update(runtimeEnvYAML="a: [b"), "not YAML"),
        (lambda m: m["spec"]["rayClusterSpec"].update(rayVersion="2.51.0"), "2.52"),
        (lambda m: group(m).update(resources={"CPU": "1"}, rayStartParams={"num-cpus": "1"}), "both"),
        (lambda m: group(m)["rayStartParams"].update(labels="a=b"), "labels belong"),
        (lambda m: group(m).update(replicas=2), "do not increase"),
        (lambda m: group(m)["template"]["spec"].update(restartPolicy="Always"), "Never"),
        (lambda m: group(m).update(suspend=True), "suspended"),
        (lambda m: group(m)["template"]["spec"].update(containers=[]), "no container"),
    ],
)
def test_the_operators_rules_refuse(change: Change, fault: str) -> None:
    found = kuberay.rule_faults(changed(change))
    assert any(fault in text for text in found), found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda pod: pod["spec"].update(tolerate=[]), "tolerate"),
        (lambda pod: pod["spec"]["containers"][0].update(env={"A": "b"}), "is not of type"),
        (lambda pod: pod["spec"].pop("containers"), "containers"),
    ],
)
def test_kubernetes_refuses_pods(change: Change, fault: str) -> None:
    pod = copy.deepcopy(pods(the_ray(KUBERAY / "overlays/one-gpu/search"))["gpu"])
    change(pod)
    assert fault in (pod_fault(pod) or "")


def test_kubernetes_refuses_plain_manifests() -> None:
    for manifest in of_kind(
        build(KUBERAY / "namespace") + build(KUBERAY / "overlays/one-gpu/search"),
        "NetworkPolicy",
        "PersistentVolumeClaim",
    ):
        manifest["spec"]["ingresses"] = []
        with pytest.raises(kubernetes_validate.ValidationError, match="ingresses"):
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_secret_by_value_is_seen() -> None:
    manifest = changed(
        lambda m: m["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_AUTH_TOKEN", "value": "x"}
        )
    )
    assert secrets_by_value(manifest) == ["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda pod: pod.pop("securityContext"), "seccompProfile"),
        (lambda pod: pod["containers"][0]["securityContext"].update(runAsNonRoot=False), "runAsNonRoot"),
        (lambda pod: pod["securityContext"].update(runAsUser=0), "runAsUser"),
        (lambda pod: pod["containers"][0].pop("securityContext"), "allowPrivilegeEscalation"),
        (
            lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
            "add",
        ),
        (lambda pod: pod["containers"][0]["securityContext"].update(privileged=True), "privileged"),
        (lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80), "hostPort"),
        (lambda pod: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod: pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}}), "hostPath"),
    ],
)
def test_pod_security_refuses(change: Change, fault: str) -> None:
    manifest = changed(lambda m: change(pods(m)["head"]["spec"]))
    assert any(fault in text for text in kuberay.pod_security_faults(started_pods(manifest)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: pods(m)["head"]["spec"].pop("automountServiceAccountToken"), ("head", "ray-head")),
        (lambda m: pods(m)["gpu"]["spec"].update(automountServiceAccountToken=True), ("gpu", "ray-worker")),
        (
            lambda m: pods(m)["head"]["spec"]["containers"][0]["volumeMounts"].append(
                {"name": "kubernetes-api", "mountPath": "/x"}
            ),
            ("head", "ray-head"),
        ),
    ],
)
def test_a_token_in_reach_of_a_job_is_seen(change: Change, found: tuple[str, str]) -> None:
    assert found in tokens(changed(change))


def test_an_open_door_is_seen() -> None:
    manifests = build(KUBERAY / "overlays/one-gpu/search")
    head = next(
        m for m in of_kind(manifests, "NetworkPolicy") if m["metadata"]["name"].startswith("milp-ray-head")
    )
    for change in (
        {"ports": [{"port": 443}]},
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
        {"to": [{"namespaceSelector": {}}]},
    ):
        head["spec"]["egress"] = [change]
        assert open_doors(manifests)


def test_the_namespace_refuses_pods_with_rights_and_closes_what_no_policy_opens() -> None:
    manifests = build(KUBERAY / "namespace")
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (closed,) = of_kind(manifests, "NetworkPolicy")
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert {m["metadata"]["namespace"] for overlay in OVERLAYS for m in build(overlay)} == {
        namespace["metadata"]["name"]
    }


def test_two_studies_side_by_side_share_nothing_but_the_namespace(tmp_path: Path) -> None:
    copied = shutil.copytree(KUBERAY, tmp_path / "kuberay")
    first = copied / "overlays/one-gpu/search"
    second = Path(shutil.copytree(first, copied / "overlays/one-gpu/other"))
    file = second / "kustomization.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("my-study", "other"), encoding="utf-8")
    names = [{(m["kind"], m["metadata"]["name"]) for m in build(folder)} for folder in (first, second)]
    assert not names[0] & names[1]
    (other,) = of_kind(build(second), "RayJob")
    assert {pod["metadata"]["labels"]["milp-ray/study"] for pod in pods(other).values()} == {"other"}
    mounted = {v["configMap"]["name"] for v in pods(other)["gpu"]["spec"]["volumes"] if "configMap" in v}
    assert mounted == {"milp-ray-study-other"}


# wait.sh, with a kubectl that plays a RayJob.


def wait_for(tmp_path: Path, *answers: str) -> tuple[int, str]:
    """How wait.sh ends, and what it says, when kubectl gives these answers, the last for ever."""
    (tmp_path / "answers").write_text("\n".join(answers) + "\n", encoding="utf-8")
    fake = tmp_path / "kubectl"
    fake.write_text(
        f"""#!/usr/bin/env bash
[ "$1 $2 $3 $4" = "get rayjob milp-ray-search --namespace" ] || exit 9
answer="$(head -n 1 {tmp_path}/answers)"
[ "$(wc -l < {tmp_path}/answers)" -gt 1 ] && sed -i 1d {tmp_path}/answers
[ "$answer" = error ] && exit 1
echo -n "$answer"
""",
        encoding="utf-8",
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "POLL_SECONDS": "0",
        "MISSES": "2",
    }
    done = run(KUBERAY / "wait.sh", "milp-ray-search", "--namespace", "milp-ray", env=environment)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        (["//", "Running/RUNNING/", "Complete/SUCCEEDED/"], 0),
        (["Running/RUNNING/", "error", "Complete/SUCCEEDED/"], 0),
        (["Retrying/FAILED/AppFailed", "Running/RUNNING/", "Complete/SUCCEEDED/"], 0),
        (["Running/RUNNING/", "Failed/FAILED/AppFailed"], 1),
        (["Failed//DeadlineExceeded"], 1),
        (["Complete/STOPPED/"], 130),
        (["error"], 2),
    ],
)
def test_waiting_ends_as_the_job_does(tmp_path: Path, answers: list[str], code: int) -> None:
    assert wait_for(tmp_path, *answers)[0] == code


def test_scripts_pass_shellcheck() -> None:
    done = run(tool("shellcheck"), KUBERAY / "wait.sh")
    assert done.returncode == 0, done.stdout
