"""What is trained and what is kept for a user, computed from shapes: table 7 and figure 3.

Both are drawn for LLaMA2, as in the paper (docs/references.md: Zhang 2024), from the public shapes
of these models, and for the models at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter
from transformers import LlamaConfig

from milp_ray.comparison.rendering import Table
from milp_ray.evaluation.memory_use import parameter_memory, parameters_of, prompt_memory
from milp_ray.memory.architectures import Architecture, architecture_of
from milp_ray.memory.placement import Placement
from milp_ray.report.colours import BLUE, GREEN, GREY, ORANGE
from milp_ray.storage import atomic_write

_CONTEXT = 4096


def llama2_7b() -> LlamaConfig:
    """The shapes of LLaMA2-7B."""
    return LlamaConfig(max_position_embeddings=_CONTEXT)


def llama2_13b() -> LlamaConfig:
    """The shapes of LLaMA2-13B."""
    return LlamaConfig(
        hidden_size=5120,
        num_hidden_layers=40,
        intermediate_size=13824,
        num_attention_heads=40,
        max_position_embeddings=_CONTEXT,
    )


def everywhere(architecture: Architecture, rank: int) -> Placement:
    """One LoRA of a rank in every layer: what there is to train without a search."""
    return Placement(tuple((layer, rank) for layer in range(architecture.num_layers)))


def parameters_table(
    configs: Mapping[str, Any], ranks: Sequence[int], chosen: Mapping[str, Sequence[int]]
) -> Table:
    """Table 7: trainable parameters of full training, of LoRAs everywhere, and of searched ones.

    Args:
        configs: name of a base model -> its transformers configuration; LLaMA2 is added.
        ranks: of the search space.
        chosen: name of a base model -> trainable parameters of each user's chosen placement.
    """
    everyone = {"LLaMA2-7B": llama2_7b(), "LLaMA2-13B": llama2_13b()} | dict(configs)
    rows, numbers = [], []
    for name, config in everyone.items():
        architecture, full = architecture_of(config), parameters_of(config)
        fixed = {rank: architecture.trainable_params(everywhere(architecture, rank)) for rank in ranks}
        values = [("full training", full)]
        values += [(f"every layer, rank {rank}", value) for rank, value in fixed.items()]
        if found := chosen.get(name):
            values.append(("searched (mean of the users' chosen)", round(sum(found) / len(found))))
        for method, value in values:
            rows.append([name, method, f"{value / 1e6:,.2f}", f"{100 * value / full:.3g} %"])
            numbers.append({"model": name, "method": method, "parameters": value, "share": value / full})
    caption = "Trainable parameters, in millions, and their share of the model's."
    notes = (
        "The paper has 50.38 M for LoRAs in every layer of LLaMA2-7B, and 43.17 M with the search. Its rank "
        "is not given; in all three feed-forward modules a rank of 8, 16, 32, 64 or 96 makes 11.60, 23.20, "
        "46.40, 92.80 or 139.20 M.",
    )
    return Table(
        "table_7_parameters",
        caption,
        ["model", "method", "parameters (M)", "share"],
        rows,
        pd.DataFrame(numbers),
        notes,
    )


def memory_figure(path: Path, rank: int, measured: Mapping[str, Sequence[tuple[int, int, int]]]) -> None:
    """Figure 3: memory of a growing prompt, and of parameters, over the tokens of a user's history.

    Args:
        path: of the PNG.
        rank: of the LoRAs in every layer, the largest memory of that rank.
        measured: name of a model at hand -> (tokens, measured bytes, computed bytes).

    Raises:
        StorageError: the file cannot be written.
    """
    count = 1 + len(measured)
    figure, axes = plt.subplots(1, count, figsize=(5.6 * count, 4.2), layout="constrained", squeeze=False)
    config = llama2_7b()
    architecture = architecture_of(config)
    tokens = [2**power for power in range(6, 13)]
    terms = [prompt_memory(config, count) for count in tokens]
    first = axes[0][0]
    for values, label, colour, style in (
        ([term.total for term in terms], "prompt: Eq. 5, all of it", ORANGE, "-"),
        ([term.attention for term in terms], "  of it keys and values", GREY, "--"),
    ):
        first.plot(tokens, [value / 2**20 for value in values], style, color=colour, marker="o", label=label)
    kept = parameter_memory(architecture, everywhere(architecture, rank)) / 2**20
    first.axhline(kept, color=BLUE, label=f"parameters: Eq. 6, rank {rank} in all layers")
    first.set(title="LLaMA2-7B in bfloat16, computed")
    for (name, points), panel in zip(measured.items(), axes[0][1:], strict=True):
        lengths = [point[0] for point in points]
        panel.plot(
            lengths, [point[1] / 2**20 for point in points], "o-", color=GREEN, label="prompt, measured"
        )
        panel.plot(
            lengths,
            [point[2] / 2**20 for point in points],
            "--",
            color=ORANGE,
            label="prompt, computed (Eq. 5)",
        )
        panel.set(title=f"{name}, measured")
    for panel in axes[0]:
        panel.set(xlabel="tokens of the prompt", ylabel="memory of one response (MiB)")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
    atomic_write(path, lambda draft: figure.savefig(draft, format="png", dpi=130))
    plt.close(figure)
