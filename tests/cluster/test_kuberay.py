"""KubeRay: every overlay is what the operator takes, keeps its promises, and each check can fail."""

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
import yaml

from milp_ray.config.loading import load_study

from . import kuberay
from .kustomize import Manifest, build
from .paths import CLUSTER, ROOT, run, tool

KUBERAY = CLUSTER / "kuberay"
OVERLAYS = sorted(path.parent for path in (KUBERAY / "overlays").rglob("kustomization.yaml"))
KUBERNETES = "1.32"
RAY_KINDS = ("RayCluster", "RayJob")


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
        assert {m["kind"] for m in plain} == {"PersistentVolumeClaim", "ConfigMap", "NetworkPolicy"}
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

    def test_pods_are_locked_down(self, overlay: Path) -> None:
        (policy,) = of_kind(build(overlay), "NetworkPolicy")
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for pod in pods(the_ray(overlay)).values():
            assert chosen.items() <= pod["metadata"]["labels"].items(), "the NetworkPolicy misses a pod"
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in pod["spec"]["containers"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}

    def test_what_pods_mount_is_there(self, overlay: Path) -> None:
        manifests = build(overlay)
        there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
        for pod in pods(the_ray(overlay)).values():
            volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
            for volume in volumes.values():
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in there
                else:
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
            assert words[:4] == ["python", "-m", "milp_ray.jobs", manifest["metadata"]["name"].split("-")[-1]]
            assert words[4].removeprefix("/etc/milp-ray/") in config["data"]

    def test_kubectl_builds_the_same(self, overlay: Path) -> None:
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl is not installed")
        built = run("kubectl", "kustomize", overlay)
        assert built.returncode == 0, built.stderr

        def key(manifest: Manifest) -> str:
            return f"{manifest['kind']} {manifest['metadata']['name']}"

        expected = sorted(yaml.safe_load_all(built.stdout), key=key)
        assert sorted(build(overlay), key=key) == expected


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
        build(KUBERAY / "overlays/one-gpu/search"), "NetworkPolicy", "PersistentVolumeClaim"
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


def test_a_kustomization_beyond_what_is_known_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nreplacements: []\n", encoding="utf-8")
    with pytest.raises(ValueError, match="replacements"):
        build(tmp_path)


# wait.sh, with a kubectl that plays a RayJob.


def wait_for(tmp_path: Path, *answers: str) -> tuple[int, str]:
    """How wait.sh ends, and what it says, when kubectl gives these answers, one a call, the last for ever."""
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
