"""Fused functions for a frozen base on a GPU: fewer kernels, the same numbers.

Known modules of the base get :mod:`milp_ray.model.kernels` in place of their own element-wise work;
a module whose function is not certain keeps its own. LoRA modules get one function for the frozen
product and their own. It makes autocast superfluous: LoRA weights are fp32, and all else has the
base's dtype already. Does *not* cover a sharded base, whose weights come and go.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

_LOG = logging.getLogger(__name__)
_TOLERANCE = 0.02  # relative; bf16 has 8 bits, and two orders of the same sums differ by less
_ROTATE = "apply_rotary_pos_emb"
_MARK = "_fused_by_milp_ray"


def fuse(model: nn.Module) -> None:
    """Give the modules of a model on a GPU fused functions, in place; do nothing without Triton."""
    try:
        from milp_ray.model import kernels
    except ImportError:
        return
    for is_known, forward in (
        (_is_rms_norm, partial(_rms_norm, kernels.rms_norm)),
        (_is_swiglu, partial(_swiglu, kernels.swiglu)),
    ):
        modules = [module for module in model.modules() if is_known(module)]
        if modules and _computes_the_same(modules[0], forward):
            for module in modules:
                module.forward = partial(forward, module)
    _fuse_rotation(model, kernels.rotate)


def adapt(layers: Iterable[LoraLayer]) -> None:
    """Give freshly made LoRA modules one function for the frozen product and their own."""
    for layer in layers:
        # Weak: a layer that held itself would keep its adapter until the next full collection.
        layer.forward = partial(_lora_forward, weakref.proxy(layer))


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _rms_norm(rms_norm: Callable[..., Tensor], module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


def _is_swiglu(module: nn.Module) -> bool:
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    silu = ("SiLUActivation", "SiLU")  # transformers' and PyTorch's
    return all(hasattr(module, part) for part in parts) and type(module.act_fn).__name__ in silu


def _swiglu(swiglu: Callable[..., Tensor], module: Any, x: Tensor) -> Tensor:
    result: Tensor = module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))
    return result


def _computes_the_same(module: nn.Module, forward: Callable[..., Tensor]) -> bool:
    """Whether a function computes what a module does: the name alone proves nothing."""
    weight = next(module.parameters())
    x = _random((4, weight.shape[-1]), weight.device, weight.dtype)
    return _agree(type(module).__name__, lambda: [module(x)], lambda: [forward(module, x)])


def _random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    draw = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, generator=draw, device=device).to(dtype)


def _agree(name: str, own: Callable[[], Iterable[Tensor]], ours: Callable[[], Iterable[Tensor]]) -> bool:
    """Whether ours runs here, and gives the same numbers as the model's own up to rounding.

    Triton needs a C compiler, and a GPU that it knows.
    """
    try:
        with torch.no_grad():
            pairs = [(a.float(), b.float()) for a, b in zip(own(), ours(), strict=True)]
        if all(bool((a - b).norm() <= _TOLERANCE * a.norm()) for a, b in pairs):
            return True
        reason = "it is not what was expected"
    except Exception as error:  # Triton, its compiler and the driver raise many kinds
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    _LOG.warning("%s is used as it is, and is slower for it: %s", name, reason)
    return False


def _fuse_rotation(model: nn.Module, rotate: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Replace the function that attention looks up in its own module, once a process, for GPUs."""
    code = sys.modules[type(model).__module__]
    own = getattr(code, _ROTATE, None)
    if own is None or not code.__name__.startswith("transformers.") or hasattr(own, _MARK):
        return
    device = next(model.parameters()).device
    q, k = (_random((2, heads, 3, 32), device, torch.float32) for heads in (4, 2))
    cos, sin = _random((2, 2, 3, 32), device, torch.float32)
    if not _agree(_ROTATE, lambda: own(q, k, cos, sin), lambda: rotate(q, k, cos, sin)):
        return

    def either(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        usual = not more and not named and q.is_cuda
        if usual and cos.shape[-1] == q.shape[-1] and _is_power_of_two(q.shape[-1] // 2):
            return rotate(q, k, cos, sin)
        return own(q, k, cos, sin, *more, **named)

    setattr(either, _MARK, True)
    setattr(code, _ROTATE, either)


def _is_power_of_two(number: int) -> bool:
    """As the width of a kernel's block must be."""
    return number > 0 and number & (number - 1) == 0


def _lora_forward(layer: Any, x: Tensor) -> Tensor:
    name = layer.active_adapters[0]
    dropout, base = layer.lora_dropout[name], layer.base_layer
    drops = isinstance(dropout, nn.Dropout) and dropout.training
    result: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x,
        dropout(x) if drops else None,
        base.weight.t() if layer.fan_in_fan_out else base.weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )
    return result


class _LoraLinear(torch.autograd.Function):
    """A frozen linear module and its LoRA: ``x W' + bias + scaling · (dropped A') B'``.

    The LoRA's product is added in the memory of the frozen one, which saves three passes over it.

    Args of the forward pass:
        x: ``* x in``.
        dropped: ``x`` after the LoRA's dropout, ``* x in``; None where there is no dropout.
        weight: ``out x in``.
        bias: ``out``, or None.
        a, b: of the LoRA, fp32, ``r x in`` and ``out x r``.
        scaling: alpha / r.

    Returns:
        ``* x out``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # n x in
        lora_rows = rows if dropped is None else dropped.reshape(rows.shape)
        narrow_a, narrow_b = a.to(x.dtype), b.to(x.dtype)
        inner = lora_rows @ narrow_a.t()  # n x r
        if scaling != 1:
            inner *= scaling
        y = functional.linear(rows, weight, bias).addmm_(inner, narrow_b.t())  # n x out
        ctx.save_for_backward(lora_rows, weight, narrow_a, narrow_b, inner)
        ctx.scaling, ctx.shape, ctx.dropout = scaling, x.shape, dropped is not None
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, Tensor, Tensor, None]:
        lora_rows, weight, a, b, inner = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])  # n x out
        dinner = dy @ b  # n x r
        if ctx.scaling != 1:
            dinner *= ctx.scaling
        dx = dy @ weight if ctx.needs_input_grad[0] else None  # n x in
        ddropped = None
        if ctx.dropout:
            ddropped = (dinner @ a).view(ctx.shape) if ctx.needs_input_grad[1] else None
        elif dx is not None:
            dx.addmm_(dinner, a)
        da, db = (dinner.t() @ lora_rows).float(), (dy.t() @ inner).float()
        return None if dx is None else dx.view(ctx.shape), ddropped, None, None, da, db, None
