"""What lies between the matrix products of a decoder layer, as one GPU kernel each (Triton).

In plain PyTorch a LLaMA layer starts about 160 kernels, forward and backward, of which 14 are the base's
matrix products: each pass over the hidden states costs time on the GPU, and each start costs time on the
host. Every function here rounds where transformers' own code rounds, so that a base gives the numbers that it
gave without them up to the order of sums. Weights of the base are frozen: they get no gradient. Which modules
use these functions is :mod:`milp_ray.model.fused`'s business.

Shapes: ``*`` any leading sizes, ``h`` the width of hidden states, ``B`` texts, ``H`` heads, ``T`` tokens,
``D`` width of a head. Any floating format; sums are fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of one program of the elementwise kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight · x / sqrt(mean(x²) + eps)`` over the last dimension of ``* x h``, as LlamaRMSNorm has it."""
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions of queries and keys, as LLaMA's apply_rotary_pos_emb has them.

    Args:
        q, k: ``B x H x T x D``, of different H where several queries share a key.
        cos, sin: ``B x T x D``, or ``1 x T x D`` where all texts begin at the same position.
    """
    rotated: tuple[Tensor, Tensor] = _Rotate.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) · up``, element by element."""
    result: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


@triton.jit
def _norm(x_at, weight_at, y_at, rstd_at, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < width
    x = tl.load(x_at + row * width + column, mask=there, other=0.0)
    wide = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    weight = tl.load(weight_at + column, mask=there, other=0.0).to(tl.float32)
    y = (wide * rstd).to(x.dtype).to(tl.float32) * weight
    tl.store(y_at + row * width + column, y.to(x.dtype), mask=there)
    tl.store(rstd_at + row, rstd)


@triton.jit
def _norm_back(g_at, x_at, weight_at, rstd_at, dx_at, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < width
    g = tl.load(g_at + row * width + column, mask=there, other=0.0).to(tl.float32)
    g *= tl.load(weight_at + column, mask=there, other=0.0).to(tl.float32)
    x = tl.load(x_at + row * width + column, mask=there, other=0.0)
    rstd = tl.load(rstd_at + row)
    unit = x.to(tl.float32) * rstd
    dx = rstd * (g - unit * (tl.sum(g * unit, 0) / width))
    tl.store(dx_at + row * width + column, dx.to(x.dtype), mask=there)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        rows = x.reshape(-1, width).contiguous()
        y, rstd = torch.empty_like(rows), rows.new_empty(len(rows), dtype=torch.float32)
        ctx.block = triton.next_power_of_2(width)
        ctx.warps = min(16, max(1, ctx.block // 512))
        _norm[(len(rows),)](rows, weight, y, rstd, width, eps, BLOCK=ctx.block, num_warps=ctx.warps)
        ctx.save_for_backward(rows, weight, rstd)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, weight, rstd = ctx.saved_tensors
        g, dx = grads[0].contiguous(), torch.empty_like(rows)
        launch = _norm_back[(len(rows),)]
        launch(g, rows, weight, rstd, dx, rows.shape[1], BLOCK=ctx.block, num_warps=ctx.warps)
        return dx.view(g.shape), None, None


# Triton compiles a kernel anew for a number that 16 divides: not for one that differs from batch to batch.
@triton.jit(do_not_specialize=["positions"])
def _turn(
    x_at, y_at, cos_at, sin_at, positions, heads,
    x_text, x_position, x_head, y_text, y_position, y_head, text_angle, position_angle,
    HALF: tl.constexpr, HEADS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    text, position = place // positions, place % positions
    column = tl.arange(0, HALF)
    angle = text * text_angle + position * position_angle + column
    cos_low = tl.load(cos_at + angle).to(tl.float32)[None, :]
    cos_high = tl.load(cos_at + angle + HALF).to(tl.float32)[None, :]
    sin_low = tl.load(sin_at + angle).to(tl.float32)[None, :]
    sin_high = tl.load(sin_at + angle + HALF).to(tl.float32)[None, :]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    there = head < heads
    x = x_at + text * x_text + position * x_position + head * x_head + column[None, :]
    y = y_at + text * y_text + position * y_position + head * y_head + column[None, :]
    low = tl.load(x, mask=there, other=0.0).to(tl.float32)
    high = tl.load(x + HALF, mask=there, other=0.0).to(tl.float32)
    if BACK:
        first, second = low * cos_low + high * sin_high, high * cos_high - low * sin_low
    else:
        first, second = low * cos_low - high * sin_low, high * cos_high + low * sin_high
    tl.store(y, first.to(y_at.dtype.element_ty), mask=there)
    tl.store(y + HALF, second.to(y_at.dtype.element_ty), mask=there)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """``x`` turned by its position's angles, or (``back``) what a gradient of that is for ``x``."""
    texts, heads, positions, width = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    # The heads of a token side by side, as the projections make them and attention gives them back.
    y = x.new_empty(texts, positions, heads, width).transpose(1, 2)
    together = min(32, triton.next_power_of_2(heads))
    _turn[(texts * positions, triton.cdiv(heads, together))](
        x, y, cos, sin, positions, heads,
        x.stride(0), x.stride(2), x.stride(1), y.stride(0), y.stride(2), y.stride(1),
        cos.stride(0) if len(cos) > 1 else 0, cos.stride(1),
        HALF=width // 2, HEADS=together, BACK=back, num_warps=4,
    )  # fmt: skip
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turned(q, cos, sin, back=False), _turned(k, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, back=True), _turned(grads[1], cos, sin, back=True), None, None


@triton.jit
def _gated(gate_at, up_at, y_at, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    gate = tl.load(gate_at + at, mask=there, other=0.0)
    up = tl.load(up_at + at, mask=there, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    y = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32) * up
    tl.store(y_at + at, y.to(gate.dtype), mask=there)


@triton.jit
def _gated_back(g_at, gate_at, up_at, dgate_at, dup_at, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    g = tl.load(g_at + at, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(gate_at + at, mask=there, other=0.0)
    up = tl.load(up_at + at, mask=there, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    share = tl.sigmoid(wide)
    tl.store(dup_at + at, (g * wide * share).to(gate.dtype), mask=there)
    tl.store(dgate_at + at, (g * up * share * (1 + wide * (1 - share))).to(gate.dtype), mask=there)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        y, size = torch.empty_like(gate), gate.numel()
        _gated[(triton.cdiv(size, _ELEMENTS),)](gate, up, y, size, BLOCK=_ELEMENTS, num_warps=8)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        g, size = grads[0].contiguous(), gate.numel()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        launch = _gated_back[(triton.cdiv(size, _ELEMENTS),)]
        launch(g, gate, up, dgate, dup, size, BLOCK=_ELEMENTS, num_warps=8)
        return dgate, dup
