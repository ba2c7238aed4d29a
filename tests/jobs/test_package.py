"""What travels with a job: all that it needs, nothing else, and a name that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from milp_ray.errors import StudyError
from milp_ray.jobs import package
from milp_ray.jobs.package import SubmissionError, pack

STUDY = """\
name: small
model: {path: some/hub-name}
data: {path: /shared/users.jsonl}
storage: {path: /shared/runs}
"""

COMPARISON = """\
name: both
datasets:
  ours: {path: /shared/users.jsonl, background: /shared/others.jsonl}
models: {ours: {path: some/hub-name}}
methods: [none, milp]
storage: {path: /shared/comparisons}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/search.py").write_text("print('job')\n")
    (tmp_path / "jobs/search.yaml").write_text(STUDY)
    (tmp_path / "jobs/final.yaml").write_text("extends: search.yaml\nray: {max_failures: 5}\n")
    (tmp_path / "milp_ray/inner/__pycache__").mkdir(parents=True)
    (tmp_path / "milp_ray/__init__.py").write_text("")
    (tmp_path / "milp_ray/inner/code.py").write_text("x = 1\n")
    (tmp_path / "milp_ray/inner/__pycache__/code.pyc").write_bytes(b"x")
    (tmp_path / "users.jsonl").write_text("private\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/big.bin").write_bytes(b"x" * 1000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found: package.Package) -> list[str]:
    return [file.as_posix() for file in found.files]


def test_only_what_is_needed_travels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = pack("jobs/search.py", Path("jobs/search.yaml"), ["trial.epochs=2"])
    assert names(found) == [
        "jobs/search.py",
        "jobs/search.yaml",
        "milp_ray/__init__.py",
        "milp_ray/inner/code.py",
    ]
    assert found.entrypoint == "python jobs/search.py jobs/search.yaml trial.epochs=2"
    target = tmp_path_factory.mktemp("target")
    found.copy_to(target)
    there = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    assert there == names(found)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("datasets.ours.path=users.jsonl", "datasets.ours.path"),
        ("datasets.ours.background=others.jsonl", "datasets.ours.background"),
        ("models.ours.path=models", "models.ours.path"),
        ("alias_key=alias.key", "alias_key"),
        ("storage.path=comparisons", "storage.path"),
    ],
)
def test_a_comparison_travels_and_its_relative_paths_are_refused(
    root: Path, override: str, where: str
) -> None:
    (root / "jobs/compare.yaml").write_text(COMPARISON)
    (root / "models").mkdir()
    found = pack("compare", Path("jobs/compare.yaml"), ["search.trials=30"])
    assert found.entrypoint == "python -m milp_ray.jobs compare jobs/compare.yaml search.trials=30"
    with pytest.raises(StudyError) as caught:
        pack("compare", Path("jobs/compare.yaml"), [override])
    assert where in [problem.where for problem in caught.value.problems]


def test_ids_in_a_comparison_that_travels_are_told(root: Path) -> None:
    (root / "jobs/compare.yaml").write_text(COMPARISON.replace("background", "users: [jane], background"))
    (said,) = pack("compare", Path("jobs/compare.yaml")).warnings
    assert "by their ids" in said and "jane" not in said
    with pytest.raises(StudyError) as caught:
        pack("compare", Path("jobs/compare.yaml"), ["datasets.ours.users=[jane]"])
    assert "jane" not in str(caught.value)


def test_a_study_travels_with_what_it_extends(root: Path) -> None:
    found = pack("jobs/search.py", Path("jobs/final.yaml"))
    assert {"jobs/final.yaml", "jobs/search.yaml"} <= set(names(found))
    assert found.study.ray.max_failures == 5 and found.study.name == "small"


def test_a_job_without_a_script(root: Path) -> None:
    assert pack("final", Path("jobs/search.yaml")).entrypoint == (
        "python -m milp_ray.jobs final jobs/search.yaml"
    )


def test_the_digest_follows_the_content(root: Path) -> None:
    def digest(*overrides: str) -> str:
        return pack("jobs/search.py", Path("jobs/search.yaml"), overrides).digest

    first = digest()
    (root / "README.md").write_text("not part of it")
    assert digest() == first
    assert digest("seed=1") != first
    variables = {"OMP_NUM_THREADS": "1"}
    assert pack("jobs/search.py", Path("jobs/search.yaml"), environment=variables).digest != first
    (root / "milp_ray/inner/code.py").write_text("x = 2\n")
    assert digest() != first


def test_from_another_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = pack("jobs/search.py", Path("jobs/search.yaml"))
    monkeypatch.chdir(root.parent)
    assert pack("jobs/search.py", root / "jobs/search.yaml", root=root) == here
    # Relative to the working folder, even where the current one has files of the same names.
    other = root.parent / "jobs"
    other.mkdir(exist_ok=True)
    (other / "search.yaml").write_text(STUDY.replace("small", "wrong"))
    assert pack("jobs/search.py", Path("jobs/search.yaml"), root=root) == here
    with pytest.raises(SubmissionError, match="no such folder"):
        pack("jobs/search.py", Path("jobs/search.yaml"), root=root / "nowhere")


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("storage.path=runs", "storage.path"),
        ("data.path=users.jsonl", "data.path"),
        ("data.path=./users.jsonl", "data.path"),
        ("data.alias_key=alias.key", "data.alias_key"),
        ("data.files={reviews: r.json}", "data.files.reviews"),
        ("model.path=milp_ray/..", "model.path"),
    ],
)
def test_paths_that_do_not_travel_are_refused(root: Path, override: str, where: str) -> None:
    with pytest.raises(StudyError) as caught:
        pack("jobs/search.py", Path("jobs/search.yaml"), [override])
    assert [problem.where for problem in caught.value.problems] == [where]
    assert all(problem.remedy and problem.expected for problem in caught.value.problems)


@pytest.mark.parametrize("path", ["users.jsonl", "./users.jsonl"])
def test_data_travels_when_asked_for(root: Path, path: str) -> None:
    found = pack("jobs/search.py", Path("jobs/search.yaml"), [f"data.path={path}"], include=["users.jsonl"])
    assert "users.jsonl" in names(found)
    assert "texts will lie in Ray's files" in found.warnings[0]
    further = pack(
        "jobs/search.py",
        Path("jobs/search.yaml"),
        [f"data.files={{reviews: {path}}}"],
        include=["users.jsonl"],
    )
    assert "texts will lie in Ray's files" in further.warnings[0]
    assert not pack("jobs/search.py", Path("jobs/search.yaml")).warnings


def test_a_model_in_a_gguf_file_travels_when_asked_for_or_is_refused(root: Path) -> None:
    (root / "model.gguf").write_bytes(b"GGUF")
    given = ("jobs/search.py", Path("jobs/search.yaml"), ["model.path=model.gguf"])
    with pytest.raises(StudyError, match=r"'model.gguf' does not travel") as caught:
        pack(*given)
    assert [problem.where for problem in caught.value.problems] == ["model.path"]
    assert "model.gguf" in names(pack(*given, include=["model.gguf"]))


def test_too_much_is_refused_with_the_largest_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 900)
    with pytest.raises(SubmissionError, match=r"big\.bin") as caught:
        pack("jobs/search.py", Path("jobs/search.yaml"), include=["runs"])
    assert "path or URL" in str(caught.value)


@pytest.mark.parametrize(
    ("script", "fact"),
    [
        ("jobs/nothing.py", "no such file"),
        ("../outside.py", "outside the working folder"),
        ("jobs", "is a folder"),
    ],
)
def test_scripts_that_are_none(root: Path, script: str, fact: str) -> None:
    (root.parent / "outside.py").write_text("")
    with pytest.raises(SubmissionError, match=fact):
        pack(script, Path("jobs/search.yaml"))


def test_a_folder_of_a_built_in_jobs_name_is_not_it(root: Path) -> None:
    (root / "search").mkdir()
    assert "-m milp_ray.jobs search" in pack("search", Path("jobs/search.yaml")).entrypoint


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_includes_that_bring_nothing(root: Path, name: str) -> None:
    (root / "empty").mkdir()
    with pytest.raises(SubmissionError, match=r"no such file|nothing in it"):
        pack("jobs/search.py", Path("jobs/search.yaml"), include=[name])


SECRETS = {
    ".env": "A=1",
    ".git/config": "x",
    "keys/deploy.pem": "x",
    "keys/id_ed25519": "x",
    "keys/notes.txt": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "hf_token": "x",
    "aws_credentials.json": "{}",
    "old/run.json": "{}",
    "old/study.yaml": "name: old",
    "old/memories/u-1/adapter_model.safetensors": "x",
    "code.py": "KEY = 'AKIAABCDEFGHIJKLMNOP'",
}
PLAIN = {
    "tokenizer.py": "x",
    "tokens.md": "x",
    "secretary.txt": "x",
    "keyboard.py": "x",
    "deep/notes.txt": "x",
}


@pytest.mark.parametrize("folder", [".", "extra"])
def test_what_looks_secret_stays_here_and_it_is_said(root: Path, folder: str) -> None:
    for name, content in (SECRETS | PLAIN).items():
        file = root / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    found = pack("jobs/search.py", Path("jobs/search.yaml"), include=[folder])
    travelling = {
        (root / file).relative_to(root / folder).as_posix()
        for file in found.files
        if (root / file).is_relative_to(root / folder)
    }
    assert not travelling & SECRETS.keys() and PLAIN.keys() <= travelling
    (said,) = found.warnings
    assert said.startswith("does not travel: ") and ".env (a dot file)" in said and "more" in said
    assert "AKIA" not in said


@pytest.mark.parametrize("name", ["keys/deploy.pem", "keys/notes.txt", ".env"])
def test_a_secret_that_is_named_is_refused(root: Path, name: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(SECRETS[name])
    with pytest.raises(SubmissionError, match=r"secret|key") as refused:
        pack("jobs/search.py", Path("jobs/search.yaml"), include=[name])
    assert refused.value.exit_code == 2 and "BEGIN" not in str(refused.value)
    (root / "jobs/search.py").write_text("TOKEN = 'hf_" + "a" * 34 + "'")
    with pytest.raises(SubmissionError, match="holds something like a key"):
        pack("jobs/search.py", Path("jobs/search.yaml"))


def test_texts_that_travel_unasked_are_told(root: Path) -> None:
    absolute = [f"data.path={root / 'users.jsonl'}"]
    (said,) = pack("jobs/search.py", Path("jobs/search.yaml"), absolute, include=["."]).warnings
    assert "texts will lie in Ray's files" in said


def test_ids_in_a_study_file_that_travels_are_told_and_not_repeated(root: Path) -> None:
    listed = STUDY.replace("users.jsonl}", "users.jsonl, users: [jane.doe@example.org]}")
    (root / "jobs/search.yaml").write_text(listed)
    (said,) = pack("jobs/search.py", Path("jobs/final.yaml")).warnings
    assert "data.users" in said and "jane" not in said
    (root / "jobs/search.yaml").write_text(STUDY.replace("users.jsonl}", "users.jsonl, users: 3}"))
    assert not pack("jobs/search.py", Path("jobs/search.yaml")).warnings


def test_links_do_not_travel(root: Path) -> None:
    (root / "runs/link").symlink_to("/etc/passwd")
    assert "runs/link" not in names(pack("jobs/search.py", Path("jobs/search.yaml"), include=["runs"]))


@pytest.mark.parametrize(
    "override",
    [
        "data.users=[jane.doe@example.org]",
        "data={users: [jane], path: /x}",
        'data={path: /x,\n "users": [jane]}',
        r'data={path: /x, "\u0075sers": [jane]}',
    ],
)
def test_user_ids_stay_out_of_the_command(root: Path, override: str) -> None:
    with pytest.raises(StudyError) as caught:
        pack("jobs/search.py", Path("jobs/search.yaml"), [override])
    assert "jane" not in str(caught.value)
    pack("jobs/search.py", Path("jobs/search.yaml"), ["data.users=2"])
    pack("jobs/search.py", Path("jobs/search.yaml"), ["data={path: /shared/users.jsonl}"])


def test_a_module_that_would_stand_for_an_installed_one_is_refused(root: Path) -> None:
    (root / "jobs" / "peft.py").write_text("")  # no module of that name
    (root / "own.py").write_text("")
    (root / "tests").mkdir()
    (root / "tests" / "__init__.py").write_text("")
    pack("jobs/search.py", Path("jobs/search.yaml"), include=["."])
    (root / "peft.py").write_text("")
    (root / "queue.py").write_text("")
    (root / "pyarrow").mkdir()
    (root / "pyarrow" / "__init__.py").write_text("")
    pack("jobs/search.py", Path("jobs/search.yaml"))
    with pytest.raises(SubmissionError) as caught:
        pack("jobs/search.py", Path("jobs/search.yaml"), include=["."])
    assert "peft.py, pyarrow/__init__.py, queue.py would stand for" in str(caught.value)
    assert caught.value.exit_code == 2


def test_of_a_checkout_all_that_milp_ray_consists_of_travels() -> None:
    root = Path(__file__).parents[2]
    whole = {
        path.relative_to(root)
        for path in (root / "milp_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert Path("milp_ray/report/html/templates/report.html.j2") in whole
    assert set(package.own_files(root)) == whole
