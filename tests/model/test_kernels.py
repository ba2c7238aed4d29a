"""Fused kernels give what transformers' own code gives, forward and backward.

On a GPU they run as they are. Without one, Triton's interpreter runs them on the CPU, in a process
of its own: ``make install`` puts Triton beside the environment, as torch for CPUs lacks it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TRITON = Path(sys.prefix) / "triton"


@pytest.mark.slow
def test_kernels() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        if not (TRITON / "triton").is_dir():
            pytest.skip("no GPU and no Triton beside the environment: make install")
        environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(TRITON)))}
    found = subprocess.run(
        [sys.executable, "-m", "tests.model.check_kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
