"""Several ranks on one trial: a single process's numbers, nothing left behind, adapters reload."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
from pytest import MonkeyPatch
from safetensors.torch import load_file
from torch import distributed as dist
from transformers import AutoModelForCausalLM

from milp_ray.config.models import ModelSettings, OptimizerSettings, Study, TrialSettings
from milp_ray.data.prompts import Prompts
from milp_ray.data.records import UserSplit
from milp_ray.errors import MilpRayError, RunBusyError
from milp_ray.evaluation.measure import response_loss
from milp_ray.memory.placement import Placement
from milp_ray.model.base import BaseModel, device_of, load_base, loaded
from milp_ray.model.parallel.group import Group, Ranks
from milp_ray.model.parallel.rendezvous import Rendezvous
from milp_ray.model.parallel.sharding import Parallel, Root, local_numel
from milp_ray.trial.lifecycle import Trial, TrialStopped
from tests.trial.common import changed
from tests.trial.ranks import on_ranks

PLACEMENTS = ("0:4,1:8", "", "1:4")
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")


def trials(
    base: BaseModel, user: UserSplit, study: Study, folder: Path | None = None
) -> list[dict[str, float | list[float]]]:
    """One trial after the other on a resident base: their measurements, and their steps' losses."""
    rows: list[dict[str, float | list[float]]] = []
    for index, key in enumerate(PLACEMENTS):
        with Trial(base, user, Placement.from_key(key), study, seed=3) as trial:
            steps = [progress.loss for progress in trial.steps() if progress.loss is not None]
            found = trial.result
            assert found is not None
            rows.append(
                {"loss": found.loss, "rouge_l": found.scores["rouge_l"], "tokens": found.train_tokens}
            )
            rows[-1]["steps"] = steps
            if folder is not None and key:
                trial.save(folder / f"{index}")
    return rows


def study_of(model: str) -> Study:
    """Batches of three for two ranks: shares are uneven, and sometimes empty."""
    return changed(
        model=ModelSettings(path=model),
        optimizer=OptimizerSettings(learning_rate=1e-2, batch_size=3),
        trial=TrialSettings(epochs=1, max_new_tokens=5, eval_batch_size=2, stages=("inject", "instruct")),
    )


def measured(group: Group, model: str, user: UserSplit, folder: Path) -> dict[str, Any]:
    """Every strategy in turn, each on a base of its own, in one process."""
    result: dict[str, Any] = {}
    for strategy in STRATEGIES:
        moved: list[bool] = []
        with MonkeyPatch.context() as patch:  # DeepSpeed's engine would move it whole, too
            patch.setattr(Root, "to", lambda root, *_, moved=moved: moved.append(True) or root)
            base = load_base(study_of(model).model, Parallel(group, strategy))  # type: ignore[arg-type]
        keep = folder / strategy if group.rank == 0 else None
        rows = trials(base, user, study_of(model), keep)
        left = [name for name, value in base.model.named_parameters() if value.requires_grad]
        result[strategy] = {"rows": rows, "held": local_numel(base.model), "left": left, "whole": bool(moved)}
    return result


def stopped(group: Group, model: str, user: UserSplit) -> list[int]:
    """Rank 0 drops a trial half way; what each rank saw of it, and whether the next one works."""
    base = load_base(study_of(model).model, Parallel(group, "zero3"))
    trial = Trial(base, user, Placement.from_key("0:4"), study_of(model), seed=3)
    steps, seen = trial.steps(), 0
    with contextlib.suppress(TrialStopped):
        for _ in steps:
            seen += 1
            if group.rank == 0 and seen == 4:
                steps.close()
                break
    trial.close()
    assert base.attached is None
    return [seen, len(trials(base, user, study_of(model)))]


def generating(
    group: Group, model: str, user: UserSplit, strategy: Literal["ddp", "zero3"]
) -> list[list[tuple[str, int]]]:
    """A trial whose responses end at once on rank 1, and another that rank 0 drops half way."""
    study = study_of(model)
    longer = study.trial.model_copy(update={"max_new_tokens": 20, "eval_batch_size": 16})
    study = study.model_copy(update={"trial": longer})
    base = load_base(study.model, Parallel(group, strategy))
    base.stop_ids = frozenset(range(base.architecture.vocab_size)) if group.rank else frozenset({-1})
    seen: list[list[tuple[str, int]]] = []
    for dropped in (False, True):
        seen.append([])
        with Trial(base, user, Placement.from_key("0:4"), study, seed=3) as trial:
            steps = trial.steps()
            with contextlib.suppress(TrialStopped):
                for progress in steps:
                    seen[-1].append((progress.stage, progress.step))
                    if dropped and group.rank == 0 and progress.stage == "generate":
                        steps.close()
                        break
    return seen


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(
    request: pytest.FixtureRequest,
    tiny_models: dict[str, Path],
    tiny_user: UserSplit,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What a single process and what two ranks measured, for a model."""
    folder, model = tmp_path_factory.mktemp("adapters"), str(tiny_models[request.param])
    ranks = on_ranks(measured, model, tiny_user, folder)
    alone = load_base(study_of(model).model)
    rows = trials(alone, tiny_user, study_of(model))
    size = sum(parameter.numel() for parameter in alone.model.parameters())
    return {
        "ranks": ranks,
        "alone": rows,
        "size": size,
        "folder": folder,
        "base": alone,
        "model": model,
        "user": tiny_user,
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_measure_what_a_single_process_does(both: dict[str, Any], strategy: str) -> None:
    for rank in both["ranks"]:
        for mine, alone in zip(rank[strategy]["rows"], both["alone"], strict=True):
            assert mine["steps"] == pytest.approx(alone["steps"], abs=1e-4)
            assert mine["loss"] == pytest.approx(alone["loss"], abs=1e-4)
            assert mine["tokens"] == alone["tokens"]
        assert not rank[strategy]["left"]
    assert [row["rouge_l"] for row in both["ranks"][0][strategy]["rows"]] == pytest.approx(
        [row["rouge_l"] for row in both["alone"]], abs=1e-6
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_base_is_divided_where_it_should_be(both: dict[str, Any], strategy: str) -> None:
    parts = [rank[strategy]["held"] for rank in both["ranks"]]
    if strategy in ("zero3", "fsdp"):
        assert max(parts) < 0.6 * both["size"] and sum(parts) >= both["size"]
    else:
        assert parts == [both["size"]] * 2
    whole = {rank[strategy]["whole"] for rank in both["ranks"]}
    assert whole == {strategy not in ("zero3", "fsdp")}, "a base that is divided may be larger than a device"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_adapters_give_the_same_loss_in_plain_peft(both: dict[str, Any], strategy: str) -> None:
    for index, key in enumerate(PLACEMENTS):
        if not key:
            continue
        folder = both["folder"] / strategy / str(index)
        weights = load_file(folder / "adapter_model.safetensors")
        assert all(tensor.numel() for tensor in weights.values())
        with loaded(both["base"], folder) as base:
            found = response_loss(base, both["user"].validation, Prompts(study_of("x").prompts))
        assert found.mean == pytest.approx(both["alone"][index]["loss"], abs=1e-4)
    model = AutoModelForCausalLM.from_pretrained(both["model"])
    adapted = peft.PeftModel.from_pretrained(model, str(both["folder"] / strategy / "0"))
    assert any("lora_A" in name for name, _ in adapted.named_parameters())


def test_a_dropped_trial_ends_on_all_ranks_and_the_group_goes_on(
    shallow_model: Path, tiny_user: UserSplit
) -> None:
    (zero, zero_after), (one, one_after) = on_ranks(stopped, str(shallow_model), tiny_user)
    assert zero == one == 4 and zero_after == one_after == len(PLACEMENTS)


def late(group: Group, timeout: float) -> str:
    """What becomes of rank 0, which waits three seconds for rank 1, with one second of its own."""
    group._timeout = 1.0  # type: ignore[attr-defined]
    with group.extended_timeout(1.0):
        pass  # puts it in force
    try:
        with group.extended_timeout(timeout):
            if group.rank == 1:
                time.sleep(3)
            group.all_gather(group.rank)
    except RuntimeError:
        return "gave up"
    return "met"


def test_ranks_wait_longer_for_each_other_while_their_timeout_is_extended() -> None:
    assert on_ranks(late, 30.0) == ["met", "met"]
    assert on_ranks(late, 1.0)[0] == "gave up"


def controlling(group: Group) -> list[Any]:
    """What ranks tell each other, where nothing that PyTorch unpickles may be used."""

    def unpickled(*_: object) -> None:
        raise AssertionError("a message was unpickled")

    for module in (dist, dist.distributed_c10d):
        for name in ("all_gather_object", "broadcast_object_list", "_tensor_to_object"):
            if hasattr(module, name):
                setattr(module, name, unpickled)

    def write() -> None:
        if group.rank == 1:
            raise RunBusyError("taken over", where="here", remedy="wait")

    try:
        group.on_all_ranks(write)
        failure = None
    except MilpRayError as error:
        failure = error
    items = [None, {"é": [1, 2.5, "x" * 1000]}] if group.rank else ["", {"a": None}]
    return [[group.all_gather(item) for item in items], type(failure).__name__, str(failure)]


def test_what_ranks_tell_each_other_is_never_unpickled() -> None:
    zero, one = on_ranks(controlling)
    assert zero == one
    assert zero[0] == [["", None], [{"a": None}, {"é": [1, 2.5, "x" * 1000]}]]
    assert zero[1:] == ["RunBusyError", "here: taken over\n    remedy: wait"]


def test_a_rank_on_a_gpu_joins_with_its_number(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch binds a process group to no device without a number."""
    given: dict[str, Any] = {}
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "init_process_group", lambda *words, **more: given.update(more))
    monkeypatch.setattr(dist, "new_group", lambda **more: None)
    Ranks(Rendezvous(str(tmp_path / "store"), 0, 2), device_of(ModelSettings(path="x")))
    assert given["device_id"] == torch.device("cuda", 0) and chosen == [given["device_id"]]


@pytest.mark.parametrize(("strategy", "pauses"), [("ddp", 2), ("zero3", 19)])
def test_ranks_pause_alike_while_responses_are_made(
    shallow_model: Path, tiny_user: UserSplit, strategy: str, pauses: int
) -> None:
    """Whatever rows each has left: after every token if the base is sharded, else after eight."""
    (whole, dropped), other = on_ranks(generating, str(shallow_model), tiny_user, strategy)
    assert other == [whole, dropped]
    assert whole[-pauses - 2 :] == [("loss", 1), *[("generate", 0)] * pauses, ("generate", 1)]
    assert dropped == whole[:-pauses]
