"""The element-wise work between the matrix products of a decoder layer, one Triton kernel each.

In plain PyTorch, a LLaMA layer launches about 160 kernels, forward and backward, of which 14 are
the base's matrix products: each pass over the hidden states costs time on the GPU, and each launch
costs time on the host. Every function rounds where transformers' own code rounds, so that a base
gives the same numbers up to the order of sums. The base's weights are frozen, and get no gradient.
:mod:`milp_ray.model.fused` decides which modules use these functions.

Shapes: ``*`` any leading sizes, ``h`` width of the hidden states, ``B`` texts, ``H`` heads, ``T``
tokens, ``D`` width of a head. Any floating dtype; sums are in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of one program of the element-wise kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LlamaRMSNorm: ``weight · x / sqrt(mean(x²) + eps)`` over the last dimension of ``* x h``."""
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """LLaMA's ``apply_rotary_pos_emb``: rotary positions of queries and keys.

    Args:
        q, k: ``B x H x T x D``; k has fewer heads where several queries share a key.
        cos, sin: ``B x T x D``, or ``1 x T x D`` where all texts begin at the same position.
    """
    rotated: tuple[Tensor, Tensor] = _Rotate.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) · up``, element by element."""
    result: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


@triton.jit
def _rms_norm_forward(x_ptr, weight_ptr, y_ptr, rstd_ptr, width, eps, BLOCK_SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_SIZE)
    mask = column < width
    x = tl.load(x_ptr + row * width + column, mask=mask, other=0.0)
    x32 = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x32 * x32, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    y = (x32 * rstd).to(x.dtype).to(tl.float32) * weight
    tl.store(y_ptr + row * width + column, y.to(x.dtype), mask=mask)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def _rms_norm_backward(g_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, width, BLOCK_SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_SIZE)
    mask = column < width
    g = tl.load(g_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    g *= tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * width + column, mask=mask, other=0.0)
    rstd = tl.load(rstd_ptr + row)
    unit = x.to(tl.float32) * rstd
    dx = rstd * (g - unit * (tl.sum(g * unit, 0) / width))
    tl.store(dx_ptr + row * width + column, dx.to(x.dtype), mask=mask)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        rows = x.reshape(-1, width).contiguous()
        y, rstd = torch.empty_like(rows), rows.new_empty(len(rows), dtype=torch.float32)
        ctx.block_size = triton.next_power_of_2(width)
        ctx.warps = min(16, max(1, ctx.block_size // 512))
        _rms_norm_forward[(len(rows),)](
            rows, weight, y, rstd, width, eps, BLOCK_SIZE=ctx.block_size, num_warps=ctx.warps
        )
        ctx.save_for_backward(rows, weight, rstd)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, weight, rstd = ctx.saved_tensors
        g, dx = grads[0].contiguous(), torch.empty_like(rows)
        launch = _rms_norm_backward[(len(rows),)]
        launch(g, rows, weight, rstd, dx, rows.shape[1], BLOCK_SIZE=ctx.block_size, num_warps=ctx.warps)
        return dx.view(g.shape), None, None


# Triton compiles a kernel again for an integer that 16 divides, which this one is in some batches.
@triton.jit(do_not_specialize=["positions"])
def _rotate_kernel(
    x_ptr, y_ptr, cos_ptr, sin_ptr, positions, heads,
    x_text, x_position, x_head, y_text, y_position, y_head, text_angle, position_angle,
    HALF: tl.constexpr, HEADS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    text, position = token // positions, token % positions
    column = tl.arange(0, HALF)
    angle = text * text_angle + position * position_angle + column
    cos_low = tl.load(cos_ptr + angle).to(tl.float32)[None, :]
    cos_high = tl.load(cos_ptr + angle + HALF).to(tl.float32)[None, :]
    sin_low = tl.load(sin_ptr + angle).to(tl.float32)[None, :]
    sin_high = tl.load(sin_ptr + angle + HALF).to(tl.float32)[None, :]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    mask = head < heads
    x = x_ptr + text * x_text + position * x_position + head * x_head + column[None, :]
    y = y_ptr + text * y_text + position * y_position + head * y_head + column[None, :]
    low = tl.load(x, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)
    if BACKWARD:
        first, second = low * cos_low + high * sin_high, high * cos_high - low * sin_low
    else:
        first, second = low * cos_low - high * sin_low, high * cos_high + low * sin_high
    tl.store(y, first.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y + HALF, second.to(y_ptr.dtype.element_ty), mask=mask)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, backward: bool) -> Tensor:
    """``x`` rotated by the angles of its position; if ``backward``, a gradient rotated back."""
    texts, heads, positions, width = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    # The heads of a token lie side by side, as the projections and attention lay them out.
    y = x.new_empty(texts, positions, heads, width).transpose(1, 2)
    heads_at_once = min(32, triton.next_power_of_2(heads))
    _rotate_kernel[(texts * positions, triton.cdiv(heads, heads_at_once))](
        x, y, cos, sin, positions, heads,
        x.stride(0), x.stride(2), x.stride(1), y.stride(0), y.stride(2), y.stride(1),
        cos.stride(0) if len(cos) > 1 else 0, cos.stride(1),
        HALF=width // 2, HEADS=heads_at_once, BACKWARD=backward, num_warps=4,
    )  # fmt: skip
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _rotated(q, cos, sin, backward=False), _rotated(k, cos, sin, backward=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        dq, dk = (_rotated(grad, cos, sin, backward=True) for grad in grads)
        return dq, dk, None, None


@triton.jit
def _swiglu_forward(gate_ptr, up_ptr, y_ptr, size, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < size
    gate = tl.load(gate_ptr + offsets, mask=mask, other=0.0)
    up = tl.load(up_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    gate32 = gate.to(tl.float32)
    y = (gate32 * tl.sigmoid(gate32)).to(gate.dtype).to(tl.float32) * up
    tl.store(y_ptr + offsets, y.to(gate.dtype), mask=mask)


@triton.jit
def _swiglu_backward(g_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, size, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < size
    g = tl.load(g_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + offsets, mask=mask, other=0.0)
    up = tl.load(up_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    gate32 = gate.to(tl.float32)
    sigmoid = tl.sigmoid(gate32)
    tl.store(dup_ptr + offsets, (g * gate32 * sigmoid).to(gate.dtype), mask=mask)
    tl.store(dgate_ptr + offsets, (g * up * sigmoid * (1 + gate32 * (1 - sigmoid))).to(gate.dtype), mask=mask)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        y, size = torch.empty_like(gate), gate.numel()
        _swiglu_forward[(triton.cdiv(size, _ELEMENTS),)](gate, up, y, size, BLOCK_SIZE=_ELEMENTS, num_warps=8)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        g, size = grads[0].contiguous(), gate.numel()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        launch = _swiglu_backward[(triton.cdiv(size, _ELEMENTS),)]
        launch(g, gate, up, dgate, dup, size, BLOCK_SIZE=_ELEMENTS, num_warps=8)
        return dgate, dup
