"""`milp-ray placement`: a placement as other trainers' settings, for those who train elsewhere.

What each of them takes was read in its source: PEFT 0.21.2, axolotl 0.19.0, LLaMA-Factory 0.9.5,
TRL 1.16.0. A trainer that cannot express a placement is an error that says what can be done. Not
covered: the optimizer's settings, which are the study's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from milp_ray.config.loading import resolved
from milp_ray.errors import Problem, RunFolderError, StudyError
from milp_ray.ids import POPULATION
from milp_ray.memory.placement import Placement
from milp_ray.model.fingerprint import check_code
from milp_ray.model.pretrained import load_architecture
from milp_ray.study.run_folder import RunFolder
from milp_ray.study.tables import search_tables

if TYPE_CHECKING:
    from peft import LoraConfig


def recipe(run: str, user: str, trainer: str = "peft", trial: int | None = None) -> str:
    """A user's chosen placement, or that of any trial, in a trainer's own words.

    Args:
        run: the run folder, or its URL.
        user: an alias, a raw id, or ``population``. Of a user for whom the population was searched,
            the placement is the population's.
        trainer: a name of :data:`TRAINERS`.
        trial: its number; None: the chosen one.

    Returns:
        Python or YAML, whose first line is a comment that says whose trial it is.

    Raises:
        RunFolderError: there is no run, no such user or trial, or nothing is chosen yet.
        StudyError: no trainer has that name, or it cannot express the placement.
        ModelError: the base model's configuration is not usable.
    """
    if trainer not in TRAINERS:
        problem = Problem("--for", f"no trainer is named {trainer!r}", "one of " + ", ".join(TRAINERS))
        raise StudyError("placement", [problem])
    folder = RunFolder.open(run)
    alias, number, placement = _placement(folder, user, trial)
    from milp_ray.memory.adapters import lora_config  # PEFT, and so torch

    study = resolved(folder.study)
    check_code(folder.base, study.model)
    architecture = load_architecture(study.model)
    config = lora_config(placement, architecture, study.memory.scaling, study.memory.dropout)
    settings = "".join(f", {name} {value:g}" for name, value in placement.settings)
    return f"# {alias}, trial {number}{settings}\n{TRAINERS[trainer](config)}"


def as_peft(config: LoraConfig) -> str:
    """Python that makes the configuration.

    Example:
        >>> from peft import LoraConfig
        >>> config = LoraConfig(r=4, lora_alpha=4, target_modules=["model.layers.1.mlp.up_proj"])
        >>> made = {}
        >>> exec(as_peft(config), made)
        >>> made["config"].r, made["config"].target_modules
        (4, {'model.layers.1.mlp.up_proj'})
    """
    values = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules or ()),
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "lora_dropout": config.lora_dropout,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": config.bias,
        "task_type": config.task_type,
    }
    given = {name: value for name, value in values.items() if value not in ({}, False)}
    lines = [f"    {name}={_literal(value)}," for name, value in given.items()]
    return "\n".join(["from peft import LoraConfig", "", "config = LoraConfig(", *lines, ")", ""])


def as_trl(config: LoraConfig) -> str:
    """Python for a trainer's ``peft_config``; the command ``trl`` has one rank for all modules."""
    words = "# TRL: SFTTrainer(..., peft_config=config), and so its other trainers.\n"
    return words + as_peft(config)


def as_axolotl(config: LoraConfig) -> str:
    """The LoRA part of axolotl's YAML; patterns of ranks came with 0.18."""
    values: dict[str, Any] = {
        "adapter": "lora",
        "lora_r": config.r,
        "lora_alpha": _whole("axolotl", config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "lora_target_modules": sorted(config.target_modules or ()),
    }
    if config.rank_pattern:
        values["lora_rank_pattern"] = dict(config.rank_pattern)
        values["lora_alpha_pattern"] = {
            name: _whole("axolotl", alpha) for name, alpha in config.alpha_pattern.items()
        }
    if config.fan_in_fan_out:
        values["lora_fan_in_fan_out"] = True
    older = (
        "# axolotl 0.18 or newer: older ones do not know lora_rank_pattern\n" if config.rank_pattern else ""
    )
    return older + yaml.safe_dump(values, sort_keys=False, width=1000)


def as_llama_factory(config: LoraConfig) -> str:
    """The LoRA part of LLaMA-Factory's YAML, of a placement with one rank.

    Raises:
        StudyError: the placement has several ranks.
    """
    if config.rank_pattern:
        ranks = sorted({config.r, *config.rank_pattern.values()})
        problem = Problem(
            "--for",
            f"llama-factory has one rank for all modules, and the placement has {_listed(ranks)}",
            "a placement of one rank",
            "let it go on with the memory itself, whose ranks PEFT keeps: milp-ray export RUN PLACE --for "
            "peft, and adapter_name_or_path: the memory's folder",
        )
        raise StudyError("placement", [problem])
    values = {
        "finetuning_type": "lora",
        "lora_rank": config.r,
        "lora_alpha": _whole("llama-factory", config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "lora_target": ",".join(sorted(config.target_modules or ())),
    }
    return yaml.safe_dump(values, sort_keys=False, width=100_000)


#: How each trainer is told, by the name that ``--for`` gives it.
TRAINERS: Mapping[str, Callable[[LoraConfig], str]] = {
    "peft": as_peft,
    "axolotl": as_axolotl,
    "llama-factory": as_llama_factory,
    "trl": as_trl,
}


def _placement(folder: RunFolder, user: str, trial: int | None) -> tuple[str, int, Placement]:
    trials, chosen = search_tables(folder)
    alias = folder.alias(user)
    if folder.study.unit == "population" and alias not in set(trials.user):
        alias = POPULATION
    mine = trials[(trials.user == alias) & (trials.trial >= 0)]
    if mine.empty:
        raise folder.no_such_user()
    if trial is None:
        mine = chosen[chosen.user == alias]
        if mine.empty:
            raise RunFolderError(
                f"nothing is chosen for {alias} yet",
                where=folder.location,
                expected="a user with a measured trial",
                remedy=f"look at the trials: milp-ray show {folder.location} {alias}",
            )
    elif (mine := mine[mine.trial == trial]).empty:
        raise RunFolderError(
            f"{alias} has no trial {trial}",
            where=folder.location,
            expected="the number of one of the user's trials",
            remedy=f"list them: milp-ray show {folder.location} {alias}",
        )
    row = mine.iloc[0]
    return alias, int(row.trial), Placement.from_key(row.placement)


def _whole(trainer: str, alpha: float) -> int:
    if alpha != int(alpha):
        problem = Problem(
            "--for",
            f"{trainer} takes whole numbers for alpha, and memory.scaling makes it {alpha:g}",
            "memory.scaling that makes rank × scaling whole",
            "take --for peft, which knows any",
        )
        raise StudyError("placement", [problem])
    return int(alpha)


def _literal(value: object) -> str:
    """As Python, one item a line; black would write it so."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        items: Sequence[str] = [f"{_literal(name)}: {_literal(one)}" for name, one in value.items()]
        return "{\n" + "".join(f"        {item},\n" for item in items) + "    }"
    if isinstance(value, Sequence):
        return "[\n" + "".join(f"        {_literal(one)},\n" for one in value) + "    ]"
    return repr(value)


def _listed(ranks: Sequence[int]) -> str:
    return f"{', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
