"""Engines that read LoRA adapters: what each takes, as pure functions of an adapter's two files.

Each engine's rules are those of the version named with it, read in its code or documentation, and
partly run (docs/serving.md). Before a search :func:`study_problems` says what could not be served
whatever is found; an export asks :func:`problems` of every memory that it has written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from milp_ray.errors import Problem, SpaceError, StudyError
from milp_ray.layout import ADAPTER_CONFIG as CONFIG
from milp_ray.memory.adapter_files import WEIGHTS
from milp_ray.memory.export import LAYER, module_of, scaling_of

#: What vLLM's --max-lora-rank can be; a memory may have any rank up to it.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class AdapterFiles:
    """What an engine sees of an adapter.

    Attributes:
        config: of ``adapter_config.json``.
        shapes: of the tensors of ``adapter_model.safetensors``, by name.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> AdapterFiles:
        """Of the contents of the two files, by name.

        Raises:
            ValueError: one is damaged.
        """
        weights = files[WEIGHTS]
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        header.pop("__metadata__", None)
        return cls(json.loads(files[CONFIG]), {name: tuple(it["shape"]) for name, it in header.items()})

    @property
    def modules(self) -> dict[str, int]:
        """Rank of each adapted module, by its name from the model's root."""
        return {
            module_of(name): shape[0]
            for name, shape in self.shapes.items()
            if name.endswith(".lora_A.weight")
        }

    @property
    def rank(self) -> int:
        """The largest one of a module."""
        return max(self.modules.values(), default=0)


@dataclass(frozen=True)
class Served:
    """What an adapter is served on, and where from.

    Attributes:
        model_type: of the base model, as in its config.json.
        num_layers: of the base model.
        base_name: what the server calls the base.
        place: the export's folder or URL.
    """

    model_type: str
    num_layers: int
    base_name: str
    place: str = ""


Rule = Callable[[AdapterFiles, Served], Iterator[Problem]]


@dataclass(frozen=True)
class Engine:
    """An engine, and what it takes.

    Attributes:
        name: for ``--for``.
        version: whose rules these are.
        rules: that every adapter must keep.
        one_rank: whether an adapter is given to it with one rank, lesser ones filled up with zeros.
        ranks: what its largest rank can be set to, increasing; empty: anything.
        every_layer: whether all layers must carry the same modules; zeros stand where there are
            none.
        no_models: model types without support for LoRA on their feed-forward part.
        schemes: of URLs that it loads from; empty: any place.
        start: how a server is told to take adapters of a rank, in words.
    """

    name: str
    version: str
    rules: tuple[Rule, ...] = ()
    one_rank: bool = False
    ranks: tuple[int, ...] = ()
    every_layer: bool = False
    no_models: frozenset[str] = frozenset()
    schemes: tuple[str, ...] = ()
    start: str = ""

    def rank_for(self, largest: int) -> int:
        """The rank that an export has whose largest one is this.

        Raises:
            StudyError: the engine serves no rank as large.
        """
        fitting = [rank for rank in self.ranks if rank >= largest] if self.ranks else [largest]
        if not fitting:
            fact = f"a memory has rank {largest}, and {self.name} serves at most {self.ranks[-1]}"
            remedy = f"search with memory.max_rank: {self.ranks[-1]}, or serve with another engine"
            raise StudyError("export", [Problem("", fact, f"ranks of at most {self.ranks[-1]}", remedy)])
        return fitting[0]


def problems(engine: Engine, files: AdapterFiles, served: Served) -> list[Problem]:
    """Why an engine would refuse an adapter, or serve another function; empty: it serves it."""
    found = list(study_problems(engine, served))
    for rule in engine.rules:
        found += rule(files, served)
    return found


def study_problems(engine: Engine, served: Served, largest_rank: int | None = None) -> Iterator[Problem]:
    """Why nothing of a study could be served, whatever is found.

    Args:
        engine: that is to serve it.
        served: the base and the place.
        largest_rank: of a layer in the study's space; None: not asked.
    """
    model = served.model_type
    if model in engine.no_models:
        yield Problem(
            "model.path",
            f"{engine.version} has no LoRA on the feed-forward part of {model}",
            "an architecture that it adapts",
            "serve it with another engine (--for peft), or search on another base model",
        )
    scheme = served.place.partition("://")[0] if "://" in served.place else ""
    if engine.schemes and served.place and scheme not in engine.schemes:
        yield Problem(
            "destination",
            f"{engine.version} loads adapters from a cloud store only",
            "a URL that begins with one of " + ", ".join(f"{one}://" for one in engine.schemes),
            "export to a bucket",
        )
    if largest_rank is not None and engine.ranks and largest_rank > engine.ranks[-1]:
        yield Problem(
            "memory.max_rank",
            f"a layer's rank can be {largest_rank}, and {engine.version} serves at most {engine.ranks[-1]}",
            f"at most {engine.ranks[-1]}; the largest rank of any user is what every slot of a server takes",
            f"set memory.max_rank: {engine.ranks[-1]}, or less",
        )


def _plain(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    odd = [name for name in ("use_dora", "modules_to_save", "lora_bias") if files.config.get(name)]
    odd += ["bias"] if files.config.get("bias", "none") != "none" else []
    if odd:
        yield Problem(CONFIG, f"{', '.join(odd)} is set", "a plain LoRA, as milp_ray trains")


def _listed_targets(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    if not isinstance(files.config.get("target_modules"), list):
        yield Problem(CONFIG, "target_modules is a pattern", "a list of modules' names")


def _no_patterns(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    given = [name for name in ("rank_pattern", "alpha_pattern") if files.config.get(name)]
    if given or set(files.modules.values()) != {files.config.get("r")}:
        yield Problem(CONFIG, f"layers have ranks of their own ({', '.join(given) or 'tensors'})", "one rank")


def _one_scaling(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    try:
        scaling_of(files.config)
    except SpaceError:
        fact = "alpha / rank differs between layers, and the engine may take one for all"
        yield Problem(CONFIG, fact, "one alpha / rank")


def _rank_served(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    if not 1 <= files.rank <= VLLM_RANKS[-1]:
        yield Problem(CONFIG, f"the largest rank is {files.rank}", f"1 to {VLLM_RANKS[-1]}")


def _named_base(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    named = files.config.get("base_model_name_or_path")
    if named != served.base_name:
        fact = f"the adapter is of the base {named!r}, and the server calls its base {served.base_name!r}"
        yield Problem(CONFIG, fact, "the same name: its filesystem resolver compares them", "--base-name")


def _every_layer(files: AdapterFiles, served: Served) -> Iterator[Problem]:
    parts: dict[str, set[int]] = {}
    for name in files.modules:
        if (found := LAYER.match(name)) is not None:
            parts.setdefault(found["part"], set()).add(int(found["layer"]))
    lacking = sorted(part for part, layers in parts.items() if len(layers) < served.num_layers)
    if lacking:
        fact = f"some layers lack {', '.join(part.lstrip('.') for part in lacking)}"
        yield Problem(WEIGHTS, fact, "all layers: the engine leaves out a module that any layer lacks")


_VLLM_RULES = (_plain, _listed_targets, _one_scaling, _rank_served, _named_base)
_VLLM_NONE = frozenset({"gpt2", "roberta"})

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("peft", "PEFT 0.7.1 to 0.21.2"),
        Engine(
            "vllm",
            "vLLM 0.33.0",
            _VLLM_RULES,
            one_rank=True,
            ranks=VLLM_RANKS,
            no_models=_VLLM_NONE,
            start="vllm serve BASE --served-model-name {base} --enable-lora --max-lora-rank {rank}",
        ),
        Engine(
            "sglang",
            "SGLang 0.5.23",
            (_plain, _listed_targets, _no_patterns, _one_scaling),
            one_rank=True,
            start="python -m sglang.launch_server --model-path BASE --enable-lora --max-lora-rank {rank}",
        ),
        Engine(
            "ray-serve",
            "Ray Serve LLM 2.60",
            _VLLM_RULES,
            one_rank=True,
            ranks=VLLM_RANKS,
            no_models=_VLLM_NONE,
            schemes=("s3", "gs", "abfss", "azure"),
            start="lora_config: {{dynamic_lora_loading_path: {place}}}, engine_kwargs: {{enable_lora: true, "
            "max_lora_rank: {rank}}}",
        ),
        Engine(
            "lorax",
            "LoRAX a7394ba3",
            (_plain, _listed_targets, _no_patterns, _one_scaling, _every_layer),
            one_rank=True,
            every_layer=True,
            start="adapter_source: local, adapter_id: a folder of the export",
        ),
        Engine(
            "llama.cpp",
            "llama.cpp (convert_lora_to_gguf.py)",
            (_plain, _no_patterns, _one_scaling),
            one_rank=True,
            no_models=frozenset({"gpt2"}),
            start="convert_lora_to_gguf.py --base BASE FOLDER, then llama-server --lora FILE",
        ),
    )
}


def find_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        StudyError: there is none.
    """
    if name not in ENGINES:
        problem = Problem("--for", f"no engine is named {name!r}", "one of " + ", ".join(ENGINES))
        raise StudyError("export", [problem])
    return ENGINES[name]
