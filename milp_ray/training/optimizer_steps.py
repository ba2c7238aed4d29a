"""How an adapter takes an optimizer step when several ranks have each computed a part of the loss.

Losses are *summed* over the ranks: each rank's is its part of the whole batch's mean, so that a step is the
one that a single rank would have taken, up to rounding. Three ways, all AdamW with clipped gradients:

- alone: nothing to exchange;
- ``reduced``: every rank sums all gradients in one message and steps on its own copy;
- DeepSpeed's ZeRO stages 1 and 2: optimizer states, and gradients, divided over the ranks. A thin module of
  the adapter's parameters is what DeepSpeed wraps, never the base: nothing of a trial stays behind on it.

The base's division is :mod:`milp_ray.model.parallel.sharding`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from milp_ray.config.models import OptimizerSettings
from milp_ray.model.batches import RankLoss
from milp_ray.model.limits import is_out_of_memory
from milp_ray.model.parallel.group import Group
from milp_ray.model.parallel.sharding import Parallel

_BUCKET = 50_000_000  # numbers of one ZeRO bucket; an adapter seldom fills one


class Stepper(Protocol):
    """Steps one adapter through one stage."""

    def step(self, loss: RankLoss, lr: float) -> Tensor:
        """One optimizer step of all ranks.

        Args:
            loss: of this rank.
            lr: the learning rate of this step.

        Returns:
            The loss and the gradient's norm before clipping, both of the whole batch: 2 numbers on
            the device, which may still be computing them.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """This rank's part of the optimizer's state, by name; :meth:`load` goes on from it."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of another stepper of as many ranks, parameters being what they were then.

        Raises:
            ValueError: it is the state of another adapter, or of another number of ranks.
        """
        ...


@contextlib.contextmanager
def stepping(
    parameters: Sequence[nn.Parameter], settings: OptimizerSettings, parallel: Parallel
) -> Iterator[Stepper]:
    """A stepper for the length of a stage.

    Args:
        parameters: of the adapter, the same numbers on every rank.
        settings: of the optimizer.
        parallel: the ranks, and whether DeepSpeed's ZeRO divides the optimizer's states over them.
    """
    stepper = (
        _Zero(parameters, settings, parallel)
        if parallel.zero
        else _Reduced(parameters, settings, parallel.group)
    )
    try:
        yield stepper
    finally:
        stepper.close()


def _adamw(
    parameters: Sequence[nn.Parameter], settings: OptimizerSettings, *, fused: bool
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's tensors, by number of the parameter and name; copies."""
    parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
    return {
        f"{index}.{name}": tensor.detach().to("cpu", copy=True)
        for index, parameter in enumerate(parameters)
        for name, tensor in optimizer.state[parameter].items()
    }


def _load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        number, _, kind = name.partition(".")
        found.setdefault(int(number), {})[kind] = tensor
    fits = len(found) == len(parameters) and all(
        index in found and found[index]["exp_avg"].shape == parameter.shape
        for index, parameter in enumerate(parameters)
    )
    if not fits:
        raise ValueError("the optimizer's state is of another adapter or number of ranks")
    for index, parameter in enumerate(parameters):
        # torch keeps the count of steps where the parameter is when it steps in one fused kernel.
        optimizer.state[parameter] = {
            kind: tensor.to(parameter.device, copy=True) for kind, tensor in found[index].items()
        }


class _Reduced:
    """Each rank holds all gradients and optimizer states.

    The adapter is laid out as one vector, of which its matrices are views, and so are its gradients: one
    kernel steps it, another one clips it, one message goes to the other ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings, group: Group) -> None:
        self._parameters = parameters
        self._max_norm = settings.max_grad_norm
        self._group = group
        self._flat = nn.Parameter(torch.cat([matrix.detach().reshape(-1) for matrix in parameters]))
        self._sums = self._flat.new_zeros(self._flat.numel() + 1)  # gradients, and behind them the loss
        self._flat.grad = self._sums[:-1]
        sizes = [matrix.numel() for matrix in parameters]
        values = torch.split(self._flat.detach(), sizes)
        grads = torch.split(self._sums[:-1], sizes)
        for matrix, value, grad in zip(parameters, values, grads, strict=True):
            matrix.data, matrix.grad = value.view_as(matrix), grad.view_as(matrix)
        self._optimizer = _adamw([self._flat], settings, fused=True)

    def step(self, loss: RankLoss, lr: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._sums.zero_()
        self._sums[-1] = self._backward(loss)
        self._group.all_reduce(self._sums)
        norm = torch.nn.utils.clip_grad_norm_([self._flat], self._max_norm)
        self._optimizer.step()
        return torch.stack([self._sums[-1], norm.detach()])

    def _backward(self, loss: RankLoss) -> Tensor:
        """This rank's loss, its gradients in the sums. The other ranks do not notice a second try."""
        try:
            return loss.backward()
        except RuntimeError as error:
            if not (is_out_of_memory(error) and loss.release()):
                raise
        torch.cuda.empty_cache()  # the error is gone by now, and with it what its frames held
        self._sums.zero_()
        return loss.backward()

    def state(self) -> dict[str, Tensor]:
        return _state_of(self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        _load_state(self._optimizer, state)

    def close(self) -> None:
        """Let go of the gradients."""
        for matrix in self._parameters:
            matrix.grad = None


class _Adapter(nn.Module):
    """What DeepSpeed wraps: the adapter's parameters, and a function instead of the base's modules."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(parameters)

    def forward(self, loss: RankLoss) -> Tensor:
        return loss()


class _Zero:
    """Optimizer states (stage 1), and gradients (stage 2), are divided over the ranks by DeepSpeed."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        settings: OptimizerSettings,
        parallel: Parallel,
    ) -> None:
        from milp_ray.model.parallel.deepspeed import initialize

        zero: dict[str, object] = {
            "stage": parallel.zero,
            "overlap_comm": False,
            "contiguous_gradients": False,
            "reduce_bucket_size": _BUCKET,
            "allgather_bucket_size": _BUCKET,
        }
        if parallel.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        self._group = parallel.group
        self._optimizer = _adamw(parameters, settings, fused=not parallel.offload)
        self._engine: Any = initialize(
            _Adapter(parameters),
            {
                "gradient_clipping": settings.max_grad_norm,
                "zero_optimization": zero,
                "zero_force_ds_cpu_optimizer": False,
            },
            self._optimizer,
        )

    def step(self, loss: RankLoss, lr: float) -> Tensor:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        own = self._engine(loss)
        self._engine.backward(own * self._group.size)  # DeepSpeed takes the mean over ranks
        self._engine.step()
        total = self._group.total([float(own.detach())])[0]
        return torch.tensor([total, float(self._engine.get_global_grad_norm())])

    def state(self) -> dict[str, Tensor]:
        return _state_of(self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        _load_state(self._optimizer, state)

    def close(self) -> None:
        """Let go of everything: DeepSpeed's objects refer to each other."""
        self._engine.destroy()
        del self._engine, self._optimizer
        gc.collect()
