"""Fused kernels compared with transformers' own code; test_kernels.py runs it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from milp_ray.model.fused import fuse

FORMATS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}


def close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    assert error < tolerance, f"{name}: {error:.1e}"


def compare(
    name: str, ours: Callable[..., Tensor], own: Callable[..., Tensor], inputs: list[Tensor], tolerance: float
) -> None:
    """Results and gradients."""
    found, expected = ours(*inputs), own(*inputs)
    close(name, found, expected, tolerance)
    gradient = torch.randn_like(expected)
    each = zip(
        torch.autograd.grad(found, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        strict=True,
    )
    for index, (one, other) in enumerate(each):
        close(f"{name}, gradient {index}", one, other, tolerance)


def random(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()


def check_norm(device: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from milp_ray.model.kernels import rms_norm

    for dtype, tolerance in FORMATS.items():
        for width in (16, 96, 192):
            norm = LlamaRMSNorm(width, eps=1e-5).to(device, dtype)
            nn.init.normal_(norm.weight)
            norm.requires_grad_(False)
            x = random(2, 5, width, device=device, dtype=dtype)
            compare("norm", lambda x, n=norm: rms_norm(x, n.weight, 1e-5), norm, [x], tolerance)


def check_rotation(device: str) -> None:
    from transformers.models.llama import modeling_llama

    from milp_ray.model.kernels import rotate

    own = modeling_llama.apply_rotary_pos_emb
    for dtype, tolerance in FORMATS.items():
        for texts in (1, 2):
            q, k = (random(2, 7, heads, 32, device=device, dtype=dtype).transpose(1, 2) for heads in (6, 3))
            q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
            cos, sin = (torch.randn(texts, 7, 32, device=device, dtype=dtype) for _ in range(2))
            found, expected = rotate(q, k, cos, sin), own(q, k, cos, sin)
            gradients = [torch.randn_like(one) for one in expected]
            back = (
                torch.autograd.grad(found, (q, k), gradients),
                torch.autograd.grad(expected, (q, k), gradients),
            )
            for one, other in zip((*found, *back[0]), (*expected, *back[1]), strict=True):
                close("rotation", one, other, tolerance)


def check_gate(device: str) -> None:
    from milp_ray.model.kernels import swiglu

    for dtype, tolerance in FORMATS.items():
        inputs = [random(3, 1700, device=device, dtype=dtype) for _ in range(2)]
        compare("gate", swiglu, lambda gate, up: nn.functional.silu(gate) * up, inputs, tolerance)


def check_models(device: str) -> None:
    """Whole models of every kind that can be fused: the same logits, and all modules changed."""
    for kind in ("llama", "mistral", "qwen2", "qwen3"):
        for dtype, tolerance in FORMATS.items():
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, **SIZES)
            model = AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    nn.init.normal_(parameter, 1, 0.3)
            ids = torch.randint(0, 64, (2, 9), device=device)
            with torch.no_grad():
                expected = model(ids).logits
                fuse(model)
                found = model(ids).logits
            close(kind, found, expected, 20 * tolerance if dtype == torch.float32 else 2 * tolerance)
            fused = [type(module).__name__ for module in model.modules() if "forward" in vars(module)]
            norms = {"qwen3": 4}.get(kind, 2) * 2 + 1
            assert len(fused) == norms + 2, fused


def check_what_does_not_run(device: str) -> None:
    """A base without the tools that Triton needs is used as it is."""
    from milp_ray.model import kernels

    def broken(*_: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    kept = kernels.rms_norm, kernels.swiglu
    kernels.rms_norm, kernels.swiglu = broken, lambda gate, up: gate * up
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).to(device)
        fuse(model)
        assert not any("forward" in vars(module) for module in model.modules())
    finally:
        kernels.rms_norm, kernels.swiglu = kept


def main(device: str) -> None:
    check_norm(device)
    check_rotation(device)
    check_gate(device)
    check_models(device)
    check_what_does_not_run(device)


if __name__ == "__main__":
    main("cuda" if torch.cuda.is_available() else "cpu")
