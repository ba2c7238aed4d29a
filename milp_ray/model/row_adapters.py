"""Adapters side by side: each row of a batch has its own, or none, on one base.

The base's own modules stay as they are. A hook on each module that some adapter changes adds to
every row the product of that row's LoRA. A second kind of hook puts soft tokens, vectors in place
of tokens' embeddings, where a row has some. PEFT can do the first with its own modules
(``adapter_names``), but there a row keeps its place for ever, while a decoder drops rows as they
end; and all adapters must be on the model before.

Shapes: ``B`` rows, ``T`` tokens, ``r`` a rank, ``R`` the sum of ranks of all adapters of a module.
Does *not* cover which requests share a batch (:mod:`milp_ray.evaluation.common_batches`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn import functional

from milp_ray.errors import StorageError
from milp_ray.memory.adapters import matrices_of, read_adapter
from milp_ray.model.base import BaseModel

# So many multiplications take about as long as starting the three small kernels of one adapter.
_AS_LONG_AS_A_LAUNCH = 1_000_000

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """An adapter's matrices on a device.

    Attributes:
        modules: module's name -> A, ``r x in``, and B, ``out x r``, with alpha / rank in it.
    """

    modules: Mapping[str, Pair]


@dataclass(frozen=True, eq=False)
class SoftTokens:
    """Vectors that stand in place of tokens' embeddings.

    Attributes:
        vectors: ``k x h``.
        start: the place of the first among the row's own tokens; the tokens there are any.
    """

    vectors: Tensor
    start: int


@dataclass(frozen=True, eq=False)
class Row:
    """What one row of a batch has beside its tokens.

    Attributes:
        length: the row's tokens.
        lora: its adapter.
        soft: its soft tokens.
    """

    length: int
    lora: LoraWeights | None = None
    soft: SoftTokens | None = None


def load_lora(base: BaseModel, folder: Path) -> LoraWeights:
    """A saved adapter, for rows of this base.

    Raises:
        StorageError: the folder is damaged, does not fit the model, or holds another kind of LoRA.
    """
    config, weights = read_adapter(folder)
    pairs = matrices_of(weights)
    known = dict(base.model.named_modules())
    modules: dict[str, Pair] = {}
    for name, (a, b) in pairs.items():
        shape = _shape(known.get(name), base.architecture.transposed)
        if shape != (a.shape[1], b.shape[0]) or config.use_rslora or config.use_dora:
            raise StorageError(
                "an adapter does not fit the base model",
                where=folder.name,
                expected="a plain LoRA adapter of this base model's modules",
                remedy="load it on the base model that its adapter_config.json names",
            )
        scaled = b.float() * _scaling(config, name, len(a))
        modules[name] = (a.float().to(base.device), scaled.to(base.device))
    return LoraWeights(modules)


class SideBySide:
    """The adapters of a batch's rows; :meth:`select` says which rows are computed next.

    Args:
        rows: of the batch, in its order; fastest where rows of one adapter stand together.
        left: whether rows are padded on the left (a decoder's), or on the right.
    """

    def __init__(self, base: BaseModel, rows: Sequence[Row], *, left: bool) -> None:
        self._rows, self._left, self._device = rows, left, base.device
        loras = {id(row.lora): row.lora for row in rows if row.lora is not None}
        self._index = {key: number for number, key in enumerate(loras)}
        names = sorted({name for lora in loras.values() for name in lora.modules})
        self._modules = {name: _Stack([lora.modules.get(name) for lora in loras.values()]) for name in names}
        self._selected: list[int] = []
        self.select(range(len(rows)))

    def select(self, rows: Sequence[int]) -> None:
        """From now on the model gets these rows of the batch, in this order."""
        if self._selected == list(rows):
            return
        self._selected = list(rows)
        chosen = (self._rows[row].lora for row in self._selected)
        owners = [-1 if lora is None else self._index[id(lora)] for lora in chosen]
        plans: dict[tuple[int, ...], _Plan] = {}  # most modules have the same ranks, and share one
        for stack in self._modules.values():
            if stack.ranks not in plans:
                plans[stack.ranks] = _plan(owners, stack.ranks, self._device)
            stack.plan = plans[stack.ranks]

    @contextlib.contextmanager
    def on(self, base: BaseModel) -> Iterator[None]:
        """Inside the block, rows have their adapters; the base's own modules are as they were."""
        handles = [
            base.model.get_submodule(name).register_forward_hook(_adding(stack.add))
            for name, stack in self._modules.items()
        ]
        if any(row.soft is not None for row in self._rows):
            embedding = base.model.get_input_embeddings()  # type: ignore[operator]
            handles.append(embedding.register_forward_hook(lambda _, __, out: self._softened(out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _softened(self, embedded: Tensor) -> Tensor:
        """Embeddings ``B x T x h`` with the soft tokens of rows that begin here."""
        width = embedded.shape[1]
        changed = embedded
        for place, number in enumerate(self._selected):
            row = self._rows[number]
            if row.soft is None or (self._left and width < row.length):  # one more token of a response
                continue
            first = row.soft.start + (width - row.length if self._left else 0)
            vectors = row.soft.vectors.to(embedded.dtype)
            if changed is embedded:
                changed = embedded.clone()
            changed[place, first : first + len(vectors)] = vectors
        return changed


@contextlib.contextmanager
def beneath(base: BaseModel, lora: LoraWeights | None) -> Iterator[None]:
    """Inside the block all rows have one frozen adapter, also beneath another that is trained."""
    if lora is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, (a, b) in lora.modules.items():
            hook = _adding(partial(_sum, a, b))
            stack.callback(base.model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def concatenated(first: LoraWeights, second: LoraWeights) -> LoraWeights:
    """One adapter that does what two do together: ranks side by side, exactly."""
    both = {**first.modules, **second.modules}
    for name in first.modules.keys() & second.modules.keys():
        (a, b), (c, d) = first.modules[name], second.modules[name]
        both[name] = (torch.cat([a, c]), torch.cat([b, d], 1))
    return LoraWeights(both)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which rows of a module's input have which adapter.

    Attributes:
        runs: first row, end, adapter: rows that follow each other and have one.
        mask: ``B x 1 x R``, 1 where a row's adapter owns a rank; None of a single run.
    """

    runs: list[tuple[int, int, int]]
    mask: Tensor | None


def _plan(owners: list[int], ranks: tuple[int, ...], device: torch.device) -> _Plan:
    """For the adapters of rows (-1: none), and the rank of each adapter (0: not on the module)."""
    runs = []
    for owner, members in itertools.groupby(range(len(owners)), key=lambda row: owners[row]):
        places = list(members)
        if owner >= 0 and ranks[owner]:
            runs.append((places[0], places[-1] + 1, owner))
    if len(runs) < 2:
        return _Plan(runs, None)
    owned = torch.tensor([owner for owner, rank in enumerate(ranks) for _ in range(rank)])
    mask = torch.tensor(owners)[:, None] == owned
    return _Plan(runs, mask[:, None].to(device=device, dtype=torch.float32))


class _Stack:
    """The LoRAs of all adapters on one module.

    Args:
        pairs: by adapter; None where it leaves the module alone.

    Attributes:
        ranks: by adapter; 0 where it leaves the module alone.
        plan: of the rows that are computed next.
    """

    def __init__(self, pairs: list[Pair | None]) -> None:
        self._pairs = pairs
        there = [pair for pair in pairs if pair is not None]
        self._a = torch.cat([a for a, _ in there])  # R x in
        self._b = torch.cat([b for _, b in there], 1)  # out x R
        self.ranks = tuple(0 if pair is None else len(pair[0]) for pair in pairs)
        self._each = sum(self.ranks) / len(there)
        self.plan = _Plan([], None)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """What the module gives, ``B x T x out``, with each row's LoRA added."""
        runs, mask = self.plan.runs, self.plan.mask
        if len(runs) == 1 and runs[0][:2] == (0, len(x)):
            return y + _product(x, *self._pair(runs[0][2]))
        if not runs:
            return y
        positions = x.shape[:-1].numel()
        masked = positions * self._each * (x.shape[-1] + y.shape[-1]) < _AS_LONG_AS_A_LAUNCH
        if masked and mask is not None:
            inner = functional.linear(x, self._a.to(x.dtype)) * mask.to(x.dtype)
            return y + functional.linear(inner, self._b.to(x.dtype))
        y = y.clone()
        for first, end, owner in runs:
            y[first:end] += _product(x[first:end], *self._pair(owner))
        return y

    def _pair(self, owner: int) -> Pair:
        pair = self._pairs[owner]
        assert pair is not None
        return pair


def _product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, a.to(x.dtype)), b.to(x.dtype))


def _sum(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return y + _product(x, a, b)


def _adding(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _, inputs, output: add(inputs[0], output)


def _shape(module: nn.Module | None, transposed: bool) -> tuple[int, int] | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    rows, columns = weight.shape
    return (rows, columns) if transposed else (columns, rows)


def _scaling(config: LoraConfig, name: str, rank: int) -> float:
    key = get_pattern_key(config.alpha_pattern.keys(), name)
    return float(config.alpha_pattern.get(key, config.lora_alpha)) / rank
