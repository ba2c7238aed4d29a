"""Trials: the base comes back bit by bit, the seed decides everything, the right texts are used."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from milp_ray.config.models import (
    DataSettings,
    FinalSettings,
    MemorySettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    TrialSettings,
)
from milp_ray.data.prompts import Prompts
from milp_ray.data.readers import read_users
from milp_ray.data.records import Sample, UserSplit
from milp_ray.data.splits import split_user
from milp_ray.evaluation.compare import evaluation
from milp_ray.evaluation.measure import generate, response_loss
from milp_ray.evaluation.metrics import rouge
from milp_ray.memory.placement import NO_MEMORY, Placement
from milp_ray.memory.space import MemorySpace
from milp_ray.model.base import BaseModel, load_base, loaded
from milp_ray.model.batches import history_examples, sample_examples
from milp_ray.trial import measurement
from milp_ray.trial.lifecycle import Trial
from tests.trial.common import PLACED, STUDY, Snapshot, changed, numbers, run


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_base_is_restored_over_twenty_trials(
    name: str, load_tiny: Callable[[str], BaseModel], tiny_user: UserSplit
) -> None:
    base = load_tiny(name)
    snapshot = Snapshot(base)
    space = MemorySpace(12, 12, (2, 4), max_rank=32)
    study = changed(trial=TrialSettings(epochs=1, max_new_tokens=2, stages=("inject", "instruct")))
    counts = []
    for number in range(20):
        unit = [((number + 1) * (index + 3) * 0.618) % 1 for index in range(space.unit_dim)]
        with Trial(base, tiny_user, space.placement(space.from_unit(unit)), study, seed=number) as trial:
            trial.run()
        snapshot.check()
        if number in (1, 19):
            gc.collect()
            # By type(): isinstance makes transformers' lazy modules import themselves.
            counts.append(sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)))
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_the_seed_decides_everything(
    name: str, tiny_bases: dict[str, BaseModel], load_tiny: Callable[[str], BaseModel], tiny_user: UserSplit
) -> None:
    base = tiny_bases[name]
    first = run(base, tiny_user)
    torch.manual_seed(99)
    run(base, tiny_user, Placement.from_key("5:4"), seed=1)
    assert run(base, tiny_user) == first
    assert run(load_tiny(name), tiny_user) == first
    assert run(base, tiny_user, seed=6)[0] != first[0]


def test_global_random_numbers_are_left_alone(llama: BaseModel, tiny_user: UserSplit) -> None:
    """Also with dropout, which draws in every step, and when the caller draws in between."""
    study = changed(memory=MemorySettings(ranks=(2,), dropout=0.3))
    quiet = run(llama, tiny_user, study=study)
    before = torch.get_rng_state()
    assert run(llama, tiny_user, study=study) == quiet
    assert torch.equal(torch.get_rng_state(), before)
    with Trial(llama, tiny_user, PLACED, study, seed=5) as trial:
        for _ in trial.steps():
            torch.rand(7)
        assert numbers(trial.result) == quiet
    assert run(llama, tiny_user)[0] != quiet[0]  # dropout does something


def test_measurement_is_of_the_trained_adapter(llama: BaseModel, tiny_user: UserSplit) -> None:
    with Trial(llama, tiny_user, PLACED, STUDY, seed=5) as trial:
        measured = trial.run()
        assert measured is not None
        prompts = Prompts(STUDY.prompts)
        own = response_loss(llama, tiny_user.validation, prompts)
        texts = generate(llama, tiny_user.validation, prompts, 6)
    bare = response_loss(llama, tiny_user.validation, prompts)
    assert measured.loss == pytest.approx(own.mean, rel=1e-6)
    assert abs(measured.loss - bare.mean) > 1e-3
    assert measured.scores["rouge_l"] == rouge(texts, [s.response for s in tiny_user.validation])["rouge_l"]
    assert measured.trainable_params == llama.architecture.trainable_params(PLACED)
    assert measured.train_seconds > 0
    assert measured.eval_seconds > 0


def test_training_learns_the_history(llama: BaseModel, tiny_user: UserSplit) -> None:
    study = changed(trial=TrialSettings(epochs=20, max_new_tokens=1))
    with Trial(llama, tiny_user, PLACED, study, seed=5) as trial:
        losses = [p.loss for p in trial.steps() if p.stage == "inject" and p.loss is not None]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_a_batch_of_responses_is_many_steps(llama: BaseModel, tiny_user: UserSplit) -> None:
    """A slice of a trial may end within it."""
    study = changed(trial=TrialSettings(epochs=1, max_new_tokens=20, eval_batch_size=16))
    texts = generate(llama, tiny_user.validation, Prompts(study.prompts), 20)
    with Trial(llama, tiny_user, NO_MEMORY, study, seed=5) as trial:
        seen = [(progress.step, progress.steps) for progress in trial.steps() if progress.stage == "generate"]
        assert trial.result is not None
    assert seen == [(0, 1), (0, 1), (1, 1)]
    assert (
        trial.result.scores["rouge_l"] == rouge(texts, [s.response for s in tiny_user.validation])["rouge_l"]
    )
    work = evaluation(llama, tiny_user, Prompts(study.prompts), study, tiny_user.validation)
    assert [(p.step, p.steps) for p in work if p.stage == "generate"] == seen


def test_no_memory_measures_the_base(llama: BaseModel, tiny_user: UserSplit) -> None:
    with Trial(llama, tiny_user, NO_MEMORY, STUDY, seed=5) as trial:
        stages = {progress.stage for progress in trial.steps()}
        measured = trial.result
        with pytest.raises(RuntimeError, match="nothing to save"):
            trial.save(Path("unused"))
    assert stages == {"loss", "generate"}
    assert measured is not None
    assert measured.loss == pytest.approx(
        response_loss(llama, tiny_user.validation, Prompts(STUDY.prompts)).mean, rel=1e-6
    )
    assert (measured.trainable_params, measured.train_tokens) == (0, 0)


def tokens_of(
    base: BaseModel, user: UserSplit, texts: tuple[str, ...], samples: tuple[Sample, ...]
) -> tuple[int, int]:
    prompts = Prompts(STUDY.prompts)
    return (
        sum(len(example.ids) for example in history_examples(base, prompts, texts)),
        sum(len(example.ids) for example in sample_examples(base, prompts, samples)),
    )


@pytest.mark.parametrize("stages", [("inject",), ("inject", "instruct")])
def test_search_trains_on_nothing_later_than_training(
    stages: tuple[str, ...], llama: BaseModel, tiny_user: UserSplit
) -> None:
    study = changed(trial=TrialSettings(epochs=2, instruct_epochs=3, stages=stages, max_new_tokens=2))  # type: ignore[arg-type]
    study = study.model_copy(update={"trial": study.trial.model_copy(update={"eval_batch_size": 2})})
    texts, samples = tokens_of(llama, tiny_user, tiny_user.history[:10], tiny_user.train)
    expected = 2 * texts + (3 * samples if "instruct" in stages else 0)
    with Trial(llama, tiny_user, PLACED, study, seed=5) as trial:
        done = list(trial.steps())
        assert trial.result is not None
        assert trial.result.train_tokens == expected
    inject = [progress for progress in done if progress.stage == "inject"]
    assert [progress.step for progress in inject] == list(range(1, 7))  # 10 texts by 4, twice
    assert all(progress.steps == 6 for progress in inject)
    assert [p.step for p in done if p.stage == "loss"] == [1, 2]


@pytest.mark.parametrize("train_on", ["train", "train+validation"])
def test_final_trains_on_what_the_study_says(train_on: str, llama: BaseModel, tiny_user: UserSplit) -> None:
    final = FinalSettings(
        epochs=1,
        instruct_epochs=2,
        train_on=train_on,
        optimizer=OptimizerSettings(batch_size=2),  # type: ignore[arg-type]
    )
    everything = train_on == "train+validation"
    texts, samples = tokens_of(
        llama,
        tiny_user,
        tiny_user.history[: 12 if everything else 10],
        (*tiny_user.train, *(tiny_user.validation if everything else ())),
    )
    with Trial(llama, tiny_user, PLACED, changed(final=final), phase="final", seed=5) as trial:
        done = list(trial.steps())
        assert trial.result is None
    assert {progress.stage for progress in done} == {"inject", "instruct"}
    assert sum(progress.tokens for progress in done) == texts + 2 * samples
    assert done[0].steps == (6 if everything else 5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_saved_adapter_gives_the_same_logits_in_plain_peft(
    name: str,
    tiny_bases: dict[str, BaseModel],
    tiny_models: dict[str, Path],
    tiny_user: UserSplit,
    tmp_path: Path,
) -> None:
    base, ids = tiny_bases[name], torch.arange(3, 30)[None]
    with Trial(base, tiny_user, PLACED, STUDY, phase="final", seed=5) as trial:
        with pytest.raises(RuntimeError, match="nothing to save"):
            trial.save(tmp_path / "early")
        trial.run()
        trial.save(tmp_path / "mine")
        with torch.no_grad():
            expected = base.model(ids).logits
    more = {"is_decoder": True} if name == "roberta" else {}
    plain = AutoModelForCausalLM.from_pretrained(tiny_models[name], **more)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "mine").eval()
    with torch.no_grad(), loaded(base, tmp_path / "mine"):
        assert torch.equal(theirs(ids).logits, expected)
        assert torch.equal(base.model(ids).logits, expected)
    card = json.loads((tmp_path / "mine" / "prompt.json").read_text(encoding="utf-8"))
    assert card["example"]["prompt_token_ids"][0] == base.tokenizer.bos_token_id
    assert (tmp_path / "mine" / "PROMPT.md").is_file()
    assert peft.PeftConfig.from_pretrained(tmp_path / "mine").base_model_name_or_path == "models/tiny"
    if more:  # as the README says
        encoder = AutoModelForCausalLM.from_pretrained(tiny_models[name])
        with torch.no_grad():
            found = peft.PeftModel.from_pretrained(encoder, tmp_path / "mine").eval()(ids).logits
        assert not torch.allclose(found, expected, atol=1e-2)


def test_nothing_is_generated_for_loss_alone(
    llama: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(measurement, "measure_responses")
    with Trial(llama, tiny_user, PLACED, changed(objectives=("loss", "trainable_params")), seed=5) as trial:
        measured = trial.run()
    assert measured is not None
    assert math.isnan(measured.scores["rouge_l"])
    assert math.isfinite(measured.loss)


def test_a_user_is_tokenised_once(
    llama: BaseModel, tiny_user: UserSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"history": 0, "sample": 0}
    history, sample = Prompts.encode_history, Prompts.encode_sample

    def counting_history(self: Prompts, *arguments: object) -> list[int]:
        calls["history"] += 1
        return history(self, *arguments)  # type: ignore[arg-type]

    def counting_sample(self: Prompts, *arguments: object) -> object:
        calls["sample"] += 1
        return sample(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Prompts, "encode_history", counting_history)
    monkeypatch.setattr(Prompts, "encode_sample", counting_sample)
    first = run(llama, tiny_user)
    after_one = dict(calls)
    assert calls["history"] == 10
    assert run(llama, tiny_user) == first
    assert calls == after_one
    other = dataclasses.replace(tiny_user, history=("all day", *tiny_user.history[1:]))
    assert run(llama, other)[0] != first[0]


def test_a_bfloat16_base_trains_an_fp32_adapter(
    tiny_models: dict[str, Path], tiny_user: UserSplit, tmp_path: Path
) -> None:
    base = load_base(ModelSettings(path=str(tiny_models["llama"]), device="cpu", dtype="bfloat16"))
    snapshot = Snapshot(base)
    with Trial(base, tiny_user, PLACED, STUDY, seed=5) as trial:
        measured = trial.run()
        assert base.attached is not None
        assert {p.dtype for p in base.attached.parameters()} == {torch.float32}
        trial.save(tmp_path / "mine")
    assert measured is not None
    assert math.isfinite(measured.loss)
    weights = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)
    snapshot.check()


def test_a_real_user_in_a_few_seconds(shared: Path) -> None:
    """The measured model and data: a memory in the upper layers helps a user of the IRC set."""
    study = changed(
        prompts=PromptSettings(),
        optimizer=OptimizerSettings(learning_rate=2e-3),
        trial=TrialSettings(max_new_tokens=32),
    )
    base = load_base(ModelSettings(path=str(shared / "models" / "tiny-base"), device="cpu"))
    settings = DataSettings(path=str(shared / "data" / "ubuntu_irc" / "bench.jsonl"), max_history=200)
    user = split_user(read_users(settings).users[0], "u-" + "a" * 13, settings)
    losses = []
    for key in ("", "6:8,7:8,8:8,9:8,10:8,11:8"):
        with Trial(base, user, Placement.from_key(key), study, seed=0) as trial:
            measured = trial.run()
        assert measured is not None
        assert 0 <= measured.scores["rouge_l"] <= 1
        losses.append(measured.loss)
    assert losses[1] < losses[0] - 0.02


def test_a_trial_runs_without_ray(tiny_models: dict[str, Path]) -> None:
    script = f"""
import sys
from milp_ray.config.models import *
from milp_ray.data.readers import read_users
from milp_ray.data.records import Sample, UserSplit
from milp_ray.memory.placement import Placement
from milp_ray.model.base import load_base
from milp_ray.trial.lifecycle import Trial
study = Study(name="t", model=ModelSettings(path={str(tiny_models["llama"])!r}, device="cpu"),
              data=DataSettings(path="x"), prompts=PromptSettings(max_length=64),
              trial=TrialSettings(epochs=1, max_new_tokens=2))
sample = Sample("my dog", "likes long walks", n_hist=2)
user = UserSplit("u-a", ("my old dog", "a cat"), (sample,), (sample,), (sample,), 2, 2)
with Trial(load_base(study.model), user, Placement.from_key("3:2"), study, seed=0) as trial:
    assert trial.run().loss > 0
print([name for name in ("ray", "ax", "botorch", "gpytorch", "jax", "deepspeed") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"
