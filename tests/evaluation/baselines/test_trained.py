"""What is trained: on whose texts, on top of what, and how it was chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from milp_ray.data.records import UserSplit
from milp_ray.errors import RunFolderError, StorageError, StudyError, TrialFailed
from milp_ray.evaluation.baselines import Bench, make
from milp_ray.evaluation.common_batches import losses
from milp_ray.evaluation.measure import response_loss
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel, loaded
from milp_ray.model.row_adapters import concatenated, load_lora
from milp_ray.trial.lifecycle import Trial
from tests.evaluation.baselines.common import OPTIONS, STUDY, bench, person
from tests.trial.common import Snapshot

A, B = person(0), person(1)
BACKGROUND = [person(2), person(3)]


def same(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


@pytest.mark.parametrize("name", ["oppu", "task_lora+milp", "multi_lora", "full"])
def test_training_another_user_changes_nothing_of_the_first(
    name: str, llama: BaseModel, tmp_path: Path
) -> None:
    """The fault of OPPU's released code, whose later users are trained on earlier ones' texts."""
    both, alone = (make(name, bench(llama, tmp_path / where)) for where in ("both", "alone"))
    both.fit(BACKGROUND)
    both.learn(A)
    before = both.loss(A, A.test), both.respond(A, A.test)
    both.learn(B)
    assert (both.loss(A, A.test), both.respond(A, A.test)) == before
    alone.fit(BACKGROUND)
    alone.learn(B)
    assert alone.loss(B, B.test) == both.loss(B, B.test)
    source = name.replace("+", "_")
    [own] = (tmp_path / "alone" / source / B.alias).rglob("*.safetensors")
    assert same(own, tmp_path / "both" / own.relative_to(tmp_path / "alone"))


def test_a_users_adapter_depends_on_the_user(llama: BaseModel, tmp_path: Path) -> None:
    method = make("oppu", bench(llama, tmp_path))
    method.fit(BACKGROUND)
    method.learn(A)
    other = dataclasses.replace(A, alias=B.alias, history=B.history)
    method.learn(other)
    assert not same(*(tmp_path / "oppu" / user.alias / "adapter" / WEIGHTS for user in (A, B)))


@pytest.mark.parametrize("name", ["oppu", "task_lora+milp"])
def test_a_user_is_trained_on_top_of_what_all_have(name: str, llama: BaseModel, tmp_path: Path) -> None:
    here = bench(llama, tmp_path)
    method = make(name, here)
    method.fit(BACKGROUND)
    method.learn(A)
    task, own = method.requests(A, A.test)[0].adapters
    assert task == make("task_lora", here).requests(A, A.test)[0].adapters[0]
    alone = make("multi_lora" if name == "oppu" else "milp", here)
    alone.fit([])
    alone.learn(A)
    assert not same(own / WEIGHTS, alone.requests(A, A.test)[0].adapters[0] / WEIGHTS)
    both = concatenated(load_lora(llama, task), load_lora(llama, own))
    merged = {name: (a.clone(), b.clone()) for name, (a, b) in both.modules.items()}
    expected = with_merged(llama, merged, A)
    assert method.loss(A, A.test).nats == pytest.approx(expected, rel=1e-5)
    assert abs(expected - make("task_lora", here).loss(A, A.test).nats) > 1e-3


def with_merged(base: BaseModel, modules: dict[str, Any], user: UserSplit) -> float:
    """The loss with B A added to the base's own weights."""
    kept = {name: base.model.get_submodule(name).weight.data for name in modules}
    try:
        for name, (a, b) in modules.items():
            base.model.get_submodule(name).weight.data = kept[name] + b @ a
        return response_loss(base, user.test, bench(base, Path()).prompts).nats
    finally:
        for name, weight in kept.items():
            base.model.get_submodule(name).weight.data = weight


def test_milp_is_what_the_final_job_trains(llama: BaseModel, tmp_path: Path) -> None:
    here = bench(llama, tmp_path)
    method = make("milp", here)
    method.fit([])
    method.learn(A)
    with Trial(llama, A, here.placements[A.alias], STUDY, phase="final", seed=here.seed_of(A.alias)) as trial:
        trial.run()
        trial.save(tmp_path / "final")
    [folder] = method.requests(A, A.test)[0].adapters
    assert same(folder / WEIGHTS, tmp_path / "final" / WEIGHTS)
    finished = Bench(llama, STUDY, 3, tmp_path / "other", OPTIONS, memories={A.alias: tmp_path / "final"})
    taken = make("milp", finished)
    assert taken.fit([]).cost.trained_tokens == 0
    assert taken.learn(A).cost.trainable_params == method.learn(A).cost.trainable_params
    assert taken.loss(A, A.test) == method.loss(A, A.test)
    with loaded(llama, tmp_path / "final"):
        expected = response_loss(llama, A.test, here.prompts)
    assert method.loss(A, A.test).nats == pytest.approx(expected.nats, rel=1e-5)


def test_the_adapter_of_all_is_trained_once_whatever_a_search_chose(llama: BaseModel, tmp_path: Path) -> None:
    plain = bench(llama, tmp_path / "plain")
    alone = make("task_lora", plain)
    alone.fit([B])
    alone.learn(A)
    [expected] = alone.requests(A, A.test)[0].adapters
    on_top = make("task_lora+milp", bench(llama, tmp_path / "searched", common=tmp_path / "plain"))
    on_top.fit([B])
    on_top.learn(A)
    below, above = on_top.requests(A, A.test)[0].adapters
    assert below == expected
    assert above.is_relative_to(tmp_path / "searched")
    assert [path.name for path in (tmp_path / "searched").iterdir()] == ["task_lora_milp"]


def test_a_stage_alone_is_one_of_two(llama: BaseModel, tmp_path: Path) -> None:
    here = bench(llama, tmp_path)
    tokens = {}
    for name in ("milp", "milp_inject", "milp_instruct"):
        method = make(name, here)
        method.fit([])
        tokens[name] = method.learn(A).cost.trained_tokens
    assert tokens["milp"] == tokens["milp_inject"] + tokens["milp_instruct"]
    assert min(tokens.values()) > 0
    no_samples = dataclasses.replace(B, train=(), validation=())
    with pytest.raises(TrialFailed, match="no samples to train on"):
        make("milp_instruct", here).learn(no_samples)


def test_a_user_whom_nobody_searched_for_is_an_error(llama: BaseModel, tmp_path: Path) -> None:
    method = make("milp", bench(llama, tmp_path, placements={A.alias: Placement.from_key("1:2")}))
    with pytest.raises(RunFolderError, match="no placement"):
        method.learn(B)
    taken = make("milp", bench(llama, tmp_path, placements={}, memories={A.alias: tmp_path / "none"}))
    with pytest.raises(RunFolderError, match="no memory"):
        taken.learn(A)


def test_random_placements_are_as_many_as_the_search_tries(llama: BaseModel, tmp_path: Path) -> None:
    here = bench(llama, tmp_path)
    method = make("random_lora", here)
    method.fit([])
    note = method.learn(A).note
    assert "best of 2 random placements" in note
    key = note.partition(";")[0].rpartition(" ")[2]
    found = {}
    for placement in draws(here):
        with Trial(llama, A, placement, STUDY, seed=here.seed) as trial:
            found[placement.key] = trial.run().loss  # type: ignore[union-attr]
    assert min(found, key=lambda one: found[one]) == key
    every = draws(here, 10**4)
    assert len({placement.key for placement in every}) == len(every) > 20


def draws(here: Bench, count: int = 2) -> list[Placement]:
    from milp_ray.evaluation.baselines.random_lora import draw

    return draw(here, A, count)


def test_a_learning_rate_is_chosen_on_validation_samples(llama: BaseModel, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"rate_factors": (1e-6, 1.0)})
    here = bench(llama, tmp_path, options=options)
    fitted = make("multi_lora", here).fit(BACKGROUND)
    assert "by the loss of 1 background users' validation samples" in fitted.note
    assert "1e-08:" in fitted.note and "0.01:" in fitted.note
    assert fitted.cost.trained_tokens > 0
    rates = [float(part.partition(":")[2]) for part in fitted.note.partition("(")[2].strip(")").split(", ")]
    assert f"learning rate {(1e-8, 1e-2)[rates.index(min(rates))]:g}" in fitted.note
    method = make("multi_lora", bench(llama, tmp_path / "alone", options=options))
    method.fit([])
    assert "by the loss on the user's own validation samples" in method.learn(A).note


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_full_fine_tuning_changes_every_parameter_and_none_afterwards(
    family: str, tiny_bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = tiny_bases[family]
    snapshot = Snapshot(base)
    method = make("full", bench(base, tmp_path))
    method.fit([])
    cost = method.learn(A).cost
    snapshot.check()
    kept = load_file(tmp_path / "full" / A.alias / "weights.safetensors")
    own = dict(base.model.named_parameters())
    assert kept.keys() == own.keys() and cost.trainable_params == sum(p.numel() for p in own.values())
    same_still = [name for name, tensor in kept.items() if torch.equal(tensor, own[name].data)]
    assert set(same_still) <= {"lm_head.bias"}, "RoBERTa has one that it does not use"
    [request] = method.requests(A, A.test[:1])
    assert losses(base, [request], [[5, 6]]) != losses(
        base, [dataclasses.replace(request, weights=None)], [[5, 6]]
    )
    snapshot.check()


def test_what_fails_half_way_leaves_the_base_alone(
    llama: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Snapshot(llama)
    monkeypatch.setattr("milp_ray.training.loop._check_finite", broken)
    for name in ("full", "multi_lora", "uelp", "task_lora"):
        method = make(name, bench(llama, tmp_path))
        with pytest.raises(TrialFailed):
            method.fit(BACKGROUND)
            method.learn(A)
        snapshot.check()
        assert not (tmp_path / name / A.alias / "learned.json").exists()


def broken(*_: object) -> None:
    raise TrialFailed("loss is not finite at step 1")


def test_what_is_damaged_is_named(llama: BaseModel, tmp_path: Path) -> None:
    method = make("multi_lora", bench(llama, tmp_path))
    method.fit([])
    method.learn(A)
    (tmp_path / "multi_lora" / A.alias / "learned.json").write_text("{")
    with pytest.raises(StorageError, match="could not be read"):
        method.learn(A)
    with pytest.raises(StudyError, match="did you mean 'multi_lora'"):
        make("multi_lara", bench(llama, tmp_path))


def test_soft_tokens_are_the_users_own(llama: BaseModel, tmp_path: Path) -> None:
    method = make("uelp", bench(llama, tmp_path))
    method.fit(BACKGROUND)
    assert method.fit([]).cost.trained_tokens > 0
    files = []
    for user in (A, B):
        assert method.learn(user).cost.trained_tokens == 0
        [request] = method.requests(user, user.test[:1])
        assert request.soft_tokens is not None
        files.append(request.soft_tokens)
    assert not same(*files)
    [request] = method.requests(A, A.test[:1])
    plain = make("none", method.bench).requests(A, A.test[:1])[0]
    assert len(request.ids) == len(plain.ids) + 2
    swapped = dataclasses.replace(request, soft_tokens=files[1])
    assert losses(llama, [request], [[5, 6]]) != losses(llama, [swapped], [[5, 6]])
