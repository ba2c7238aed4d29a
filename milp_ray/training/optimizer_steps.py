"""Optimizer steps on an adapter, on one rank or several: AdamW with clipped gradients.

Each rank's loss is its share of the batch's mean, so losses and gradients are *summed* over the
ranks, and a step is that of a single rank, up to rounding. There are two steppers:

- data parallel: each rank all-reduces all gradients in one message, and steps its own copy;
- DeepSpeed's ZeRO, stages 1 and 2: optimizer states, and gradients, are sharded over the ranks.
  DeepSpeed wraps a thin module of the adapter's parameters, never the base, so that nothing of a
  trial stays behind on the base.

How the base is sharded is :mod:`milp_ray.model.parallel.sharding`'s.
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

_BUCKET_SIZE = 50_000_000  # numbers in a bucket of ZeRO's; an adapter seldom fills one


class Stepper(Protocol):
    """Takes the optimizer steps of one adapter in one stage."""

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
        """This rank's part of the optimizer's state, by name, for :meth:`load`."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from another stepper's state. Parameters must be what they were then.

        Raises:
            ValueError: the state is of another adapter, or of another number of ranks.
        """
        ...


@contextlib.contextmanager
def stepping(
    parameters: Sequence[nn.Parameter], settings: OptimizerSettings, parallel: Parallel
) -> Iterator[Stepper]:
    """A stepper for the length of a stage.

    Args:
        parameters: of the adapter, the same values on every rank.
        settings: of the optimizer.
        parallel: the ranks, and whether ZeRO shards the optimizer's states over them.
    """
    stepper = (
        _Zero(parameters, settings, parallel)
        if parallel.zero
        else _DataParallel(parameters, settings, parallel.group)
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
    """Copies of an optimizer's tensors, by index of the parameter and name: ``0.exp_avg``."""
    parameters = _parameters_of(optimizer)
    return {
        f"{index}.{name}": tensor.detach().to("cpu", copy=True)
        for index, parameter in enumerate(parameters)
        for name, tensor in optimizer.state[parameter].items()
    }


def _load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    parameters = _parameters_of(optimizer)
    by_index: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        number, _, name = key.partition(".")
        by_index.setdefault(int(number), {})[name] = tensor
    fits = len(by_index) == len(parameters) and all(
        index in by_index and by_index[index]["exp_avg"].shape == parameter.shape
        for index, parameter in enumerate(parameters)
    )
    if not fits:
        raise ValueError("the optimizer's state is of another adapter or number of ranks")
    for index, parameter in enumerate(parameters):
        # In one fused kernel, torch keeps the count of steps on the parameter's device.
        optimizer.state[parameter] = {
            name: tensor.to(parameter.device, copy=True) for name, tensor in by_index[index].items()
        }


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class _DataParallel:
    """Each rank holds all gradients and optimizer states.

    The adapter's matrices are views of one vector, and so are their gradients: one kernel steps the
    vector, another one clips its gradient, and one message goes to the other ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings, group: Group) -> None:
        self._parameters = parameters
        self._max_norm = settings.max_grad_norm
        self._group = group
        self._flat = nn.Parameter(torch.cat([matrix.detach().reshape(-1) for matrix in parameters]))
        self._grads_and_loss = self._flat.new_zeros(self._flat.numel() + 1)
        self._flat.grad = self._grads_and_loss[:-1]
        sizes = [matrix.numel() for matrix in parameters]
        values = torch.split(self._flat.detach(), sizes)
        grads = torch.split(self._grads_and_loss[:-1], sizes)
        for matrix, value, grad in zip(parameters, values, grads, strict=True):
            matrix.data, matrix.grad = value.view_as(matrix), grad.view_as(matrix)
        self._optimizer = _adamw([self._flat], settings, fused=True)

    def step(self, loss: RankLoss, lr: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._grads_and_loss.zero_()
        self._grads_and_loss[-1] = self._backward(loss)
        self._group.all_reduce(self._grads_and_loss)
        norm = torch.nn.utils.clip_grad_norm_([self._flat], self._max_norm)
        self._optimizer.step()
        return torch.stack([self._grads_and_loss[-1], norm.detach()])

    def _backward(self, loss: RankLoss) -> Tensor:
        """This rank's loss, and its gradients. The other ranks do not notice a second try."""
        try:
            return loss.backward()
        except RuntimeError as error:
            if not (is_out_of_memory(error) and loss.release()):
                raise
        torch.cuda.empty_cache()  # the error has gone by now, and with it the tensors of its frames
        self._grads_and_loss.zero_()
        return loss.backward()

    def state(self) -> dict[str, Tensor]:
        return _state_of(self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        _load_state(self._optimizer, state)

    def close(self) -> None:
        """Free the gradients."""
        for matrix in self._parameters:
            matrix.grad = None


class _Adapter(nn.Module):
    """The module that DeepSpeed wraps: the adapter's parameters, and a loss as its forward pass."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(parameters)

    def forward(self, loss: RankLoss) -> Tensor:
        return loss()


class _Zero:
    """DeepSpeed shards optimizer states (stage 1), and gradients (stage 2), over the ranks."""

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
            "reduce_bucket_size": _BUCKET_SIZE,
            "allgather_bucket_size": _BUCKET_SIZE,
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
        """Free everything. DeepSpeed's objects refer to each other."""
        self._engine.destroy()
        del self._engine, self._optimizer
        gc.collect()
