"""Plots are drawn from tables alone, for every shape of study; people have looked at them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from milp_ray.report.plots import front_plot, hypervolume_plot


def trials(count: int = 14, reference: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    loss = 2.2 + rng.random(count)
    rouge = 0.35 - 0.08 * (loss - 2.2) + 0.02 * rng.standard_normal(count)
    on_front = [
        not any((loss <= a) & (rouge >= b) & ((loss < a) | (rouge > b)))
        for a, b in zip(loss, rouge, strict=True)
    ]
    frame = pd.DataFrame(
        {"trial": range(count), "state": "done", "loss": loss, "rouge_l": rouge, "on_front": on_front}
    )
    base = pd.DataFrame(
        [{"trial": -1, "state": "no memory", "loss": 3.2, "rouge_l": 0.21, "on_front": False}]
    )
    frame["trainable_params"] = 1000 * (1 + frame.trial)
    return pd.concat([base, frame]) if reference else frame


def size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


@pytest.mark.parametrize(
    "objectives", [("loss", "rouge_l"), ("loss",), ("loss", "rouge_l", "trainable_params")]
)
@pytest.mark.parametrize("reference", [True, False])
def test_front(tmp_path: Path, objectives: tuple[str, ...], reference: bool) -> None:
    path = tmp_path / "front.png"
    table = trials(reference=reference)
    front_plot(table, objectives, int(table[table.on_front].trial.iloc[0]), "Front of u-abc", path)
    assert size(path)[0] > 600


@pytest.mark.parametrize("users", [0, 1, 3, 40])
def test_hypervolume(tmp_path: Path, users: int) -> None:
    rng = np.random.default_rng(1)
    curves = {f"u-{i}": list(np.maximum.accumulate(rng.random(12 - i % 3))) for i in range(users)}
    hypervolume_plot(curves, tmp_path / "hv.png")
    assert size(tmp_path / "hv.png")[0] > 600
