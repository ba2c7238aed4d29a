"""Ready files for engines: they are well-formed, and say what the export's documentation says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from milp_ray.memory.architectures import architecture_of
from milp_ray.memory.placement import Placement
from milp_ray.serving.engines import VLLM_RANKS
from tests.cluster.paths import CLUSTER

SERVE = CLUSTER / "serve"


def test_vllm_gets_what_the_script_is_given(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\necho "$@"\nenv | grep VLLM_\n')
    fake.chmod(0o755)
    words = {"BASE": "/models/b", "NAME": "b", "SERVED": str(tmp_path / "served"), "RANK": "64"}
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = str(SERVE / "vllm.sh")
    shown = subprocess.run(
        [script], env=environment | words, capture_output=True, text=True, check=True
    ).stdout
    assert "serve /models/b --served-model-name b --host 127.0.0.1 --enable-lora --max-lora-rank 64" in shown
    assert f"VLLM_LORA_RESOLVER_CACHE_DIR={tmp_path / 'served'}" in shown
    for name in words:
        left = {key: value for key, value in words.items() if key != name}
        clean = {key: value for key, value in environment.items() if key not in words}
        failed = subprocess.run([script], env=clean | left, capture_output=True, text=True, check=False)
        assert failed.returncode != 0 and name in failed.stderr


def test_ray_serves_file_names_a_bucket_and_a_rank_that_vllm_takes() -> None:
    file = yaml.safe_load((SERVE / "ray-serve.yaml").read_text(encoding="utf-8"))
    [application] = file["applications"]
    [config] = application["args"]["llm_configs"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    assert config["lora_config"]["dynamic_lora_loading_path"].startswith("s3://")
    assert ":" not in config["model_loading_config"]["model_id"]
    engine = config["engine_kwargs"]
    assert engine["max_lora_rank"] in VLLM_RANKS
    assert engine["max_loras"] == config["lora_config"]["max_num_adapters_per_replica"]


def test_rays_own_models_take_the_file() -> None:
    llm = pytest.importorskip("ray.serve.llm", reason="Ray Serve LLM is not installed", exc_type=ImportError)
    file = yaml.safe_load((SERVE / "ray-serve.yaml").read_text(encoding="utf-8"))
    [config] = file["applications"][0]["args"]["llm_configs"]
    assert llm.LLMConfig(**config).lora_config.max_num_adapters_per_replica == 16


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "wide"), [("7B", 32, 4096, 11008), ("13B", 40, 5120, 13824)]
)
def test_the_sizing_table_is_computed_from_the_shapes(name: str, layers: int, hidden: int, wide: int) -> None:
    from transformers import LlamaConfig

    shapes = LlamaConfig(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=wide)
    everywhere = Placement(tuple((layer, 1) for layer in range(layers)))
    mib = architecture_of(shapes).trainable_params(everywhere) * 2 / 2**20
    text = (SERVE / "README.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| LLaMA2-{name} \|(.*)\|$", text, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    expected = [f"{mib:.2f} MiB", *(f"{mib * rank:.0f} MiB" for rank in (8, 16, 64, 128))]
    assert cells == [*expected, f"{mib * 64 * 16 / 1024:.1f} GiB"]
