"""The pipelines: valid for GitHub and GitLab, and their scripts do what they promise."""

from __future__ import annotations

import copy
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from milp_ray.config.loading import load_study, resolved
from milp_ray.ids import new_key
from milp_ray.study.inputs import load_inputs
from milp_ray.study.run_folder import RunFolder
from tests.cluster.paths import CLUSTER, run, tool

GITHUB = CLUSTER / "ci/github/milp-ray.yml"
GITLAB = CLUSTER / "ci/gitlab/milp-ray.gitlab-ci.yml"
SCHEMAS = {
    GITHUB: ("vendor.github-workflows", "custom.github-workflows-require-timeout"),
    GITLAB: ("vendor.gitlab-ci",),
}
MERGED = {"push", "schedule", "workflow_dispatch"}  # GitHub's events that only those with write access cause
AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
Pipeline = dict[Any, Any]  # YAML reads GitHub's key `on` as True
Change = Callable[[Pipeline], object]


def load(path: Path) -> Pipeline:
    return yaml.safe_load(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def schema_fault(path: Path, schema: str, folder: Path, change: Change | None = None) -> str:
    """What check-jsonschema's own copy of a schema says against a pipeline; empty if nothing."""
    content = load(path)
    if change is not None:
        change(content)
        path = folder / path.name
        path.write_text(yaml.safe_dump({"on" if k is True else k: v for k, v in content.items()}))
    done = run(tool("check-jsonschema"), "--builtin-schema", schema, path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "schema"), [(path, schema) for path, names in SCHEMAS.items() for schema in names], ids=str
)
def test_it_fits_the_schema(path: Path, schema: str, tmp_path: Path) -> None:
    assert schema_fault(path, schema, tmp_path) == ""


@pytest.mark.parametrize(
    ("path", "schema", "change"),
    [
        (GITHUB, 0, lambda p: p["jobs"]["study"].pop("runs-on")),
        (GITHUB, 0, lambda p: p["jobs"]["study"].update(step=[])),
        (GITHUB, 0, lambda p: p.update(concurrency={"cancel": True})),
        (GITHUB, 0, lambda p: p[True].update(cron="17 2 * * *")),
        (GITHUB, 1, lambda p: p["jobs"]["study"].pop("timeout-minutes")),
        (GITLAB, 0, lambda p: p["search"].update(scripts=["true"])),
        (GITLAB, 0, lambda p: p["search"]["artifacts"].update(when="ever")),
        (GITLAB, 0, lambda p: p["search"].update(timeout=["24h"])),
    ],
)
def test_the_schema_refuses(path: Path, schema: int, change: Change, tmp_path: Path) -> None:
    assert schema_fault(path, SCHEMAS[path][schema], tmp_path, change) != ""


def github_steps(pipeline: Pipeline) -> list[dict[str, Any]]:
    return pipeline["jobs"]["study"]["steps"]  # type: ignore[no-any-return]


def scripts(path: Path, pipeline: Pipeline | None = None) -> dict[str, str]:
    """What the shell runs: check, search, fetch."""
    pipeline = pipeline or load(path)
    if path == GITHUB:
        names = {"Check the study": "check", "Search": "search", "Fetch report, tables and plots": "fetch"}
        return {names[s["name"]]: s["run"] for s in github_steps(pipeline) if "run" in s}
    return {
        "check": "\n".join(pipeline["check"]["script"]),
        "search": "\n".join(pipeline["search"]["script"]),
        "fetch": "\n".join(pipeline["search"]["after_script"]),
    }


def secrets_by_value(part: Any) -> list[str]:
    """Names that sound like a secret, with a value that is no expression of the secret store's."""
    if isinstance(part, list):
        return [name for item in part for name in secrets_by_value(item)]
    if not isinstance(part, dict):
        return []
    own = [
        key
        for key, value in part.items()
        if re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", str(key))
        and not str(value).startswith("${{ secrets.")
    ]
    return own + [name for item in part.values() for name in secrets_by_value(item)]


def gitlab_proposals(pipeline: Pipeline) -> list[str]:
    """Proposals that would run where data is. the first two rules turn them away."""
    away = [rule.get("if", "") for rule in pipeline["workflow"]["rules"][:2] if rule.get("when") == "never"]
    wanted = ('$CI_PIPELINE_SOURCE == "merge_request_event"', '$CI_COMMIT_REF_PROTECTED != "true"')
    return [f"a proposal runs where data is: no rule {rule}" for rule in wanted if rule not in away]


def faults(path: Path, pipeline: Pipeline) -> list[str]:
    """What a schema does not see: secrets by value, untold failures, no night, proposals."""
    text = yaml.safe_dump(pipeline)
    found = [f"{name} is a secret by value" for name in secrets_by_value(pipeline)]
    if any("${{" in script for script in scripts(path, pipeline).values()):
        found.append("an expression in a script: what an input holds would be run")
    if any("set +e" in script or "||" in script for script in scripts(path, pipeline).values()):
        found.append("a failure is swallowed")
    if path == GITHUB:
        found += [] if pipeline[True].get("schedule") else ["no nightly resume"]
        found += [] if pipeline["permissions"] == {"contents": "read"} else ["rights that it does not need"]
        found += ["cancels"] if pipeline["concurrency"]["cancel-in-progress"] else []
        found += [
            f"a proposal runs where data is: {event}" for event in pipeline[True] if event not in MERGED
        ]
        found += [] if all("environment" in job for job in pipeline["jobs"].values()) else ["no environment"]
        last = github_steps(pipeline)[-2:]
        found += (
            [] if all(s.get("if") == "${{ !cancelled() }}" for s in last) else ["artifacts of success only"]
        )
        found += ["continues after an error"] if "continue-on-error" in text else []
        readers = [step for step in github_steps(pipeline) if re.search("milp-ray (check|fetch)", str(step))]
        found += [f"{s['name']}: no keys of the bucket" for s in readers if not {*s.get("env", ())} >= AWS]
    else:
        rules = [rule.get("if", "") for rule in pipeline["workflow"]["rules"]]
        found += [] if any('"schedule"' in rule for rule in rules) else ["no nightly resume"]
        found += [] if pipeline["search"]["artifacts"]["when"] == "always" else ["artifacts of success only"]
        found += ["cancels"] if pipeline["default"]["interruptible"] else []
        found += gitlab_proposals(pipeline)
        found += ["continues after an error"] if "allow_failure" in text else []
    return found


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_promises(path: Path) -> None:
    assert faults(path, load(path)) == []


@pytest.mark.parametrize(
    ("path", "change", "fault"),
    [
        (GITHUB, lambda p: github_steps(p)[2]["env"].update(RAY_AUTH_TOKEN="abc"), "by value"),
        (
            GITHUB,
            lambda p: github_steps(p)[1].update(run="milp-ray check ${{ inputs.overrides }}"),
            "expression",
        ),
        (GITHUB, lambda p: github_steps(p)[2].update(run="milp-ray submit || true"), "swallowed"),
        (GITHUB, lambda p: p[True].pop("schedule"), "nightly"),
        (GITHUB, lambda p: p.update(permissions="write-all"), "rights"),
        (GITHUB, lambda p: p["concurrency"].update({"cancel-in-progress": True}), "cancels"),
        (GITHUB, lambda p: github_steps(p)[-1].pop("if"), "success only"),
        (GITHUB, lambda p: github_steps(p)[1].pop("env"), "Check the study: no keys"),
        (GITHUB, lambda p: p[True].update(pull_request={}), "where data is: pull_request"),
        (GITHUB, lambda p: p[True].update(pull_request_target={}), "where data is: pull_request_target"),
        (GITHUB, lambda p: p["jobs"]["study"].pop("environment"), "no environment"),
        (GITLAB, lambda p: p["workflow"]["rules"].pop(0), "merge_request_event"),
        (GITLAB, lambda p: p["workflow"]["rules"].pop(1), "CI_COMMIT_REF_PROTECTED"),
        (GITLAB, lambda p: p["workflow"]["rules"].insert(0, {"when": "always"}), "CI_COMMIT_REF_PROTECTED"),
        (GITLAB, lambda p: p["variables"].update(RAY_AUTH_TOKEN="abc"), "by value"),
        (GITLAB, lambda p: p["search"]["artifacts"].update(when="on_success"), "success only"),
        (GITLAB, lambda p: p["workflow"]["rules"].pop(2), "nightly"),
        (GITLAB, lambda p: p["search"].update(allow_failure=True), "continues"),
    ],
)
def test_a_broken_promise_is_seen(path: Path, change: Change, fault: str) -> None:
    pipeline = copy.deepcopy(load(path))
    change(pipeline)
    assert any(fault in found for found in faults(path, pipeline))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path, tmp_path: Path) -> None:
    for name, script in scripts(path).items():
        file = tmp_path / f"{name}.sh"
        file.write_text(
            f'#!/usr/bin/env bash\nset -e\n: "$STUDY $NAME $STORAGE"\n{script}\n', encoding="utf-8"
        )
        done = run(tool("shellcheck"), "--exclude=SC2154", file)
        assert done.returncode == 0, done.stdout


def played(path: Path, folder: Path, step: str, code: int, overrides: str) -> tuple[int, list[list[str]]]:
    """Run a step's script as the runner would; its exit code, and what milp-ray was called with."""
    fake = folder / "milp-ray"
    fake.write_text(f"#!/usr/bin/env bash\nprintf '%s\\n' \"$@\" END >>{folder}/calls\nexit {code}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "STUDY": "studies/a study.yaml",
        "NAME": "one",
        "STORAGE": "s3://bucket/runs",
        "OVERRIDES": overrides,
    }
    done = run("bash", "-e", "-o", "pipefail", "-c", scripts(path)[step], env=environment)
    calls = (folder / "calls").read_text(encoding="utf-8").split("END\n")[:-1]
    return done.returncode, [call.splitlines() for call in calls]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_the_pipeline_ends_as_the_job_does(path: Path, code: int, tmp_path: Path) -> None:
    ended, (call,) = played(path, tmp_path, "search", code, "")
    assert ended == code
    assert call == ["submit", "search", "studies/a study.yaml", "name=one", "storage.path=s3://bucket/runs"]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_overrides_are_words_and_never_commands(path: Path, tmp_path: Path) -> None:
    overrides = "search.trials=4 trial.stages=[inject] $(touch here) ; exit 0"
    _, (call,) = played(path, tmp_path, "check", 0, overrides)
    assert call == [
        "check",
        "studies/a study.yaml",
        "name=one",
        "storage.path=s3://bucket/runs",
        *overrides.split(),
    ]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_artifacts_are_what_was_fetched(path: Path, tmp_path: Path) -> None:
    _, (call,) = played(path, tmp_path, "fetch", 0, "")
    assert call == ["fetch", "s3://bucket/runs/one", "results"]
    pipeline = load(path)
    if path == GITHUB:
        assert github_steps(pipeline)[-1]["with"]["path"] == "results"
    else:
        assert pipeline["search"]["artifacts"]["paths"] == ["results"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path == GITHUB else pytest.mark.nightly) for path in SCHEMAS],
    ids=lambda path: path.name,
)
def test_every_night_the_check_lets_the_run_go_on(path: Path, study_file: Path) -> None:
    """The real milp-ray: the check before the nightly resume passes where a run is there."""
    program = study_file.parent / "milp-ray"
    program.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -m milp_ray "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{study_file.parent}:{os.environ['PATH']}",
        "STUDY": str(study_file),
        "NAME": "one",
        "STORAGE": str(study_file.parent / "runs"),
        "OVERRIDES": "ray.max_concurrent=2",
    }
    study = resolved(load_study(study_file, ["name=one"]))
    key = new_key()
    inputs = load_inputs(study, key)
    folder = RunFolder.create(study, inputs.users.fingerprint, key, inputs.base)
    words = ("bash", "-e", "-o", "pipefail", "-c", scripts(path)["check"])
    done = run(*words, env=environment)
    assert done.returncode == 0 and "goes on with it: 0 of 12 trials ended" in " ".join(done.stdout.split())
    assert not folder.layout.events(next(iter(inputs.users.splits))).exists()
    done = run(*words, env=environment | {"OVERRIDES": "search.initial=2"})
    assert done.returncode == 2 and "is of another study, search.initial: is 2, and was" in done.stderr
