"""Study files: what is accepted, and that everything wrong is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from milp_ray.config import Study, yamltree
from milp_ray.config.loading import data_settings, dump_study, load_study, resolved, study_files
from milp_ray.config.template import TEMPLATE, write_template
from milp_ray.errors import StorageError, StudyError

SMALL = "name: a\nmodel: {path: m}\ndata: {path: d.jsonl}\n"


def study_file(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(StudyError) as caught:
        load_study(study_file(folder, text), overrides)
    return str(caught.value)


def test_a_small_study_gets_the_papers_defaults(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, SMALL))
    assert (study.optimizer.learning_rate, study.optimizer.weight_decay) == (5e-4, 1e-4)
    assert (study.optimizer.warmup, study.optimizer.batch_size) == (0.1, 8)
    assert study.memory.ranks == (8, 16, 32, 64, 96)
    assert (study.search.trials, study.search.initial) == (200, 20)
    split = study.data.split
    assert (split.train, split.validation, split.test) == (0.7, 0.1, 0.2)


def test_the_template_states_every_value_and_only_defaults(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, TEMPLATE))
    bare = load_study(
        study_file(tmp_path, "name: my-study\nmodel: {path: ./my-model}\ndata: {path: ./users.jsonl}")
    )
    assert study == bare

    def keys(value: object) -> object:
        return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None

    assert keys(yaml.safe_load(TEMPLATE)) == keys(study.model_dump(mode="json"))
    commented = [
        line for line in TEMPLATE.splitlines() if ": " in line and not line.startswith(("#", "name"))
    ]
    assert commented
    batch = next(line for line in TEMPLATE.splitlines() if line.lstrip().startswith("batch_size"))
    assert "over all workers" in batch and "per device" not in batch, "docs/parallel.md says what it counts"


def test_settings_of_a_file_without_a_study_take_overrides_and_refuse_wrong_ones(tmp_path: Path) -> None:
    found = data_settings("q.json", ["data.format=amazonqa", "data.files={reviews: s3://bucket/r.json}"])
    assert (found.path, found.format, found.files) == (
        "q.json",
        "amazonqa",
        {"reviews": "s3://bucket/r.json"},
    )
    with pytest.raises(StudyError, match=r"data\.columns\.usr: unknown key"):
        data_settings("t.csv", ["data.columns={usr: x}"])
    with pytest.raises(StudyError, match=r"data\.files") as caught:
        data_settings("q.json", ["data.files={reviews: 's3://key:secret@bucket/r'}"])
    assert "secret" not in str(caught.value)


def test_further_files_are_made_absolute_as_the_data_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study(study_file(tmp_path, SMALL), ["data.files={reviews: r.json, outputs: s3://b/o/}"])
    assert resolved(study).data.files == {"reviews": str(tmp_path / "r.json"), "outputs": "s3://b/o"}


def test_init_does_not_overwrite(tmp_path: Path) -> None:
    write_template(tmp_path / "s.yaml")
    with pytest.raises(StorageError, match="exists already"):
        write_template(tmp_path / "s.yaml")


def test_a_dumped_study_reads_back_equal(tmp_path: Path) -> None:
    text = SMALL + "optimizer: {learning_rate: 1e-5}\nchoose: {policy: budget, budget: 5}\n"
    study = load_study(study_file(tmp_path, text))
    assert load_study(study_file(tmp_path, dump_study(study))) == study


def test_all_problems_are_reported_at_once_with_line_got_expected_and_nearest_key(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        "name: Bad Name\nmodle: {path: x}\nmodel: {path: m, dtype: fp16}\ndata:\n  path: d\n  path: e\n"
        "search: {trials: 5, initial: 10}\nepochs: 3\n",
        "trial.epochs=two",
        "nonsense",
    )
    assert "8 problems" in message
    assert "line 1, name" in message and "Bad Name" in message
    assert "line 2, modle: unknown key" in message and "did you mean 'model'?" in message
    assert "line 3, model.dtype" in message and "'bfloat16'" in message
    assert "line 6, data.path: key given twice (first on line 5)" in message
    assert "trials (5) is smaller than initial (10)" in message
    assert "'trial.epochs' or 'final.epochs'" in message
    assert "command line, trial.epochs" in message and '"two"' in message
    assert "override 'nonsense'" in message


def test_a_section_that_only_the_command_line_has_is_told_by_that(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALL, "ray.workers_per_trial=2")
    assert "command line, ray: workers_per_trial is 2, but parallelism none" in message
    message = refused(tmp_path, f"ray: {{max_concurrent: 1}}\n{SMALL}", "ray.workers_per_trial=2")
    assert "line 1, ray: workers_per_trial is 2, but parallelism none" in message


def test_numbers_are_yaml_1_2s(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, SMALL + "optimizer: {learning_rate: 1e-4, weight_decay: 0}\n"))
    assert study.optimizer.learning_rate == 1e-4
    assert (
        yamltree.scalar("on") == "on" and yamltree.scalar("1_000") == 1000 and yamltree.scalar("-.5") == -0.5
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: &x [1, 2]\nb: [*x, *x]\n", "alias *x"),
        ("a: [1, 2\n", "not well-formed YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "tag tag:yaml.org,2002:python"),
        ("? [1, 2]\n: 3\n", "a key that is not a string"),
        ("seed: .inf\n", "not a finite number"),
        ("", "is empty"),
        ("- 1\n", "not a mapping"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
    ],
)
def test_yaml_traps(tmp_path: Path, text: str, part: str) -> None:
    assert part in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("prompts: {history: 'History:'}", "needs exactly {text}"),
        ("prompts: {instruction: '{response} {query}'}", "must end with {response}"),
        ("memory: {ranks: [8, 8]}", "must increase"),
        ("memory: {factors: num+rank}", "one or more of num, size, layer"),
        ("trial: {stages: [instruct]}", "must be [inject]"),
        ("choose: {policy: budget}", "needs budget"),
        ("choose: {policy: 'best:speed'}", "is not one of"),
        ("objectives: [trainable_params]", "needs a measured objective"),
        ("objectives: [loss]\nchoose: {policy: 'best:rouge_l'}", "objectives has no 'rouge_l'"),
        ("data: {path: d, split: {train: 0.5}}", "must be 1"),
        ("seed: true", "valid integer"),
        ("ray: {gpus_per_worker: many}", "'auto'"),
        ("ray: {workers_per_trial: 2}", "parallelism none knows one worker"),
        (
            "ray: {workers_per_trial: 2, parallelism: ddp, gpus_per_worker: 0.5}",
            "workers of one trial cannot share a GPU",
        ),
        ("ray: {gpus_per_worker: 1.5}", "works on one GPU, or a part of it"),
        ("ray: {gpus_per_worker: 2}", "for several on one trial set workers_per_trial"),
        ("ray: {offload: true}", "offload needs parallelism zero1"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, line: str, part: str) -> None:
    base = SMALL if not line.startswith("data") else "name: a\nmodel: {path: m}\n"
    assert part in refused(tmp_path, base + line + "\n")


def test_a_gpu_by_name_and_none_for_workers(tmp_path: Path) -> None:
    text = "name: a\nmodel: {path: m, device: cuda}\ndata: {path: d}\nray: {gpus_per_worker: 0}\n"
    assert "model.device is cuda, but ray.gpus_per_worker is 0" in refused(tmp_path, text)
    assert load_study(study_file(tmp_path, text + "simulation: {}\n")).simulation is not None


def test_user_ids_are_not_repeated_in_errors(tmp_path: Path) -> None:
    message = refused(tmp_path, "name: a\nmodel: {path: m}\ndata: {path: d, users: [alice@example.org, 3]}\n")
    assert "alice" not in message and "data.users" in message


def test_overrides_make_sections_and_take_lists(tmp_path: Path) -> None:
    overrides = ["trial.stages=[inject, instruct]", "final.optimizer.learning_rate=1e-3", "name=b"]
    study = load_study(study_file(tmp_path, SMALL), overrides)
    assert study.trial.stages == ("inject", "instruct") and study.name == "b"
    assert study.final.optimizer is not None and study.final.optimizer.learning_rate == 1e-3


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match=r"no such file|is a folder"):
        load_study(tmp_path / name)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"name: \xff\xfe")
    with pytest.raises(StudyError, match="not UTF-8"):
        load_study(tmp_path / "s")
    (tmp_path / "s").write_bytes(b"#" * (yamltree.MAX_BYTES + 1))
    with pytest.raises(StudyError, match="larger than 1 MiB"):
        load_study(tmp_path / "s")


def test_resolved_paths_are_absolute_and_hub_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    study = resolved(load_study(study_file(tmp_path, SMALL)))
    assert study.model.path == str(tmp_path / "m") and study.data.path == str(tmp_path / "d.jsonl")
    hub = study.model_copy(update={"model": study.model.model_copy(update={"path": "org/model"})})
    assert resolved(hub).model.path == "org/model"


def test_models_are_frozen() -> None:
    study = Study.model_validate_json('{"name": "a", "model": {"path": "m"}, "data": {"path": "d"}}')
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 3


def extended(tmp_path: Path, child: str, parent: str = SMALL) -> Path:
    (tmp_path / "parent.yaml").write_text(parent, encoding="utf-8")
    file = tmp_path / "child.yaml"
    file.write_text(child, encoding="utf-8")
    return file


def test_a_file_takes_over_what_it_does_not_say(tmp_path: Path) -> None:
    file = extended(tmp_path, "extends: parent.yaml\ntrial: {epochs: 7}\nobjectives: [loss]\n")
    plain = load_study(tmp_path / "parent.yaml")
    study = load_study(file, ["seed=5"])
    assert study.trial.epochs == 7 and study.objectives == ("loss",) and study.seed == 5
    assert study.name == plain.name and study.model == plain.model and study.data == plain.data
    assert study.trial.max_new_tokens == plain.trial.max_new_tokens
    assert study_files(file) == [file, tmp_path / "parent.yaml"]


def test_faults_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    file = extended(
        tmp_path,
        "extends: parent.yaml\ntrial: {epochs: -1}\n",
        SMALL + "ray: {max_failures: -2}\nsearhc: {trials: 3}\n",
    )
    lines = SMALL.count("\n")
    with pytest.raises(StudyError) as caught:
        load_study(file)
    places = {problem.where for problem in caught.value.problems}
    assert places == {
        "line 2, trial.epochs",
        f"line {lines + 1} of parent.yaml, ray.max_failures",
        f"line {lines + 2} of parent.yaml, searhc",
    }
    with pytest.raises(StudyError) as caught:
        load_study(extended(tmp_path, "extends: parent.yaml\n", "name: [\n"))
    assert any("parent.yaml, line" in problem.where for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("child", "fact"),
    [
        ("extends: none.yaml\n", "no such file"),
        ("extends: child.yaml\n", "extends this file in turn"),
        ("extends: 3\n", "not a file name"),
        ("extends: [a, b]\n", "not a file name"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, child: str, fact: str) -> None:
    with pytest.raises(StudyError, match=fact) as caught:
        load_study(extended(tmp_path, child + SMALL))
    assert caught.value.problems[0].where == "line 1, extends"


def test_a_circle_of_files_ends(tmp_path: Path) -> None:
    file = extended(tmp_path, "extends: parent.yaml\n", "extends: child.yaml\n" + SMALL)
    with pytest.raises(StudyError, match="in turn"):
        load_study(file)


def test_code_of_a_repository_runs_only_pinned(tmp_path: Path) -> None:
    file = extended(tmp_path, "extends: parent.yaml\n")
    with pytest.raises(StudyError, match="40 hex digits"):
        load_study(file, ["model.trust_remote_code=true"])
    with pytest.raises(StudyError, match="40 hex digits"):
        load_study(file, ["model.trust_remote_code=true", "model.revision=main"])
    pinned = ["model.trust_remote_code=true", f"model.revision='{'a1' * 20}'"]
    assert load_study(file, pinned).model.trust_remote_code
    folder = ["model.trust_remote_code=true", "model.path=./mine"]  # pinned by the run's fingerprint
    assert load_study(file, folder).model.trust_remote_code
    code = f"model.code_revision='{'a1' * 20}'"
    assert load_study(file, [*folder, code]).model.code_revision == "a1" * 20
    for wrong, told in (([code], "only runs with"), ([*folder, "model.code_revision=main"], "code_revision")):
        with pytest.raises(StudyError, match=told):
            load_study(file, wrong)


@pytest.mark.parametrize(
    "override",
    [
        "storage.path=s3://AKIA0123456789ABCDEF:hunter2@bucket/runs",
        "data.path=https://me:hunter2@host/users.jsonl",
        f"model.path=hf_{'aB3' * 12}",
        "prompts.history='{text} sk-0123456789abcdefghijhunter2'",
        "data.users=[ghp_0123456789abcdefghijklmnopqrstuvhunter2]",
    ],
)
def test_secrets_are_refused_and_not_repeated(tmp_path: Path, override: str) -> None:
    said = refused(tmp_path, SMALL, override)
    assert "looks like a key" in said or "without credentials" in said
    assert "hunter2" not in said and "aB3aB3" not in said


@pytest.mark.parametrize(
    "override",
    ["storage.path=s3://bucket/runs", "data.users=['jane@host:2', 'http://x/@y']", "model.path=a/sk-b"],
)
def test_what_only_looks_a_little_like_a_secret_is_fine(tmp_path: Path, override: str) -> None:
    load_study(study_file(tmp_path, SMALL), [override])


@pytest.mark.parametrize("key", ["storage.path", "data.path"])
def test_urls_are_kept_as_they_are(tmp_path: Path, key: str) -> None:
    study = load_study(study_file(tmp_path, SMALL), [f"{key}=s3://bucket/deep/x"])
    section = resolved(study).model_dump()[key.partition(".")[0]]
    assert section["path"] == "s3://bucket/deep/x"
    assert load_study(study_file(tmp_path, dump_study(study))) == study


@pytest.mark.parametrize("key", ["storage.path", "data.path"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://key:verysecret@bucket/x", "without credentials"),
        ("s3://bucket/x?secret_key=verysecret", "without credentials"),
        ("file:///data/runs", "without file://"),
        ("s5://bucket/x", "gs, "),
        ("abfs://container/x", "Install adlfs"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_and_secrets_not_repeated(
    tmp_path: Path, key: str, url: str, expected: str
) -> None:
    text = refused(tmp_path, SMALL, f"{key}={url}")
    assert expected in text and key in text and "verysecret" not in text


def test_a_sampler_means_what_the_same_name_as_surrogate_does(tmp_path: Path) -> None:
    old = load_study(study_file(tmp_path, SMALL + "search: {surrogate: sobol}\n"))
    for text in (
        "{sampler: sobol}",
        "{surrogate: sobol, sampler: sobol}",
        "{surrogate: null, sampler: sobol}",
    ):
        new = load_study(study_file(tmp_path, f"{SMALL}search: {text}\n"))
        assert new == old and dump_study(new) == dump_study(old)
    assert load_study(study_file(tmp_path, SMALL), ["search.sampler=ax:fast"]).search.surrogate == "ax:fast"
    assert "sampler" not in dump_study(new), "a run of an older version could not be resumed by it"


def test_a_surrogate_and_another_sampler_are_refused(tmp_path: Path) -> None:
    told = refused(tmp_path, SMALL + "search:\n  surrogate: gp\n  sampler: sobol\n")
    assert "search: surrogate is 'gp' and sampler is 'sobol', but only one proposes" in told
    assert "search.sampler: got 3" in refused(tmp_path, SMALL + "search: {sampler: 3}\n")
    assert "search.surrogate: got null" in refused(tmp_path, SMALL + "search: {surrogate: null}\n")


def test_of_two_names_for_what_proposes_the_command_line_wins(tmp_path: Path) -> None:
    file = study_file(tmp_path, SMALL + "search: {surrogate: gp}\n")
    assert load_study(file, ["search.sampler=sobol"]).search.surrogate == "sobol"
    file = study_file(tmp_path, SMALL + "search: {sampler: sobol}\n")
    assert load_study(file, ["search.surrogate=gp"]).search.surrogate == "gp"
    with pytest.raises(StudyError, match="only one proposes"):
        load_study(file, ["search.surrogate=gp", "search.sampler=sobol"])
