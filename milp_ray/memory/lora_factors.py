"""The three factors of a placement: layer gates α, number of LoRAs n, rank r.

Those of the paper (docs/references.md: Zhang 2024, section 2.2.1 and tables 4 and 6). What they
come to together is :meth:`milp_ray.memory.space.MemorySpace.placement`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from milp_ray.errors import SpaceError
from milp_ray.memory.factors import Factor, MemoryConfig, NumberFactor, Parameter, bucket, listed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]

Gates = tuple[bool, ...]


class LayerGates(Factor):
    """α: which of L layers are active, at least one of them.

    Args:
        num_layers: L.
        default: the active layers while it is not searched.
        searched: whether it is.
    """

    name, log_key = "layer", "gates"

    def __init__(self, num_layers: int, default: Sequence[int], searched: bool) -> None:
        self.num_layers, self.searched = num_layers, searched
        self.default_layers, self.default = list(default), self._only(set(default))
        self.unit_dim = 1 + num_layers
        self.count = 2**num_layers - 1
        self.smallest, self.largest = self._only({0}), (True,) * num_layers

    def from_unit(self, u: Sequence[float]) -> Gates:
        """``u[0]`` says how many layers are active: those with the smallest of the other numbers.

        How many is uniform over 1…L; one coin a layer would almost always activate about half.
        """
        k, scores = 1 + bucket(u[0], self.num_layers), u[1:]
        return self._only(set(sorted(range(self.num_layers), key=lambda layer: (scores[layer], layer))[:k]))

    def values(self) -> Iterator[Gates]:
        """All combinations with an active layer."""
        return (gates for gates in product((False, True), repeat=self.num_layers) if any(gates))

    def of(self, config: MemoryConfig) -> Gates:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return config.gates

    def put(self, config: MemoryConfig, value: Sequence[bool]) -> MemoryConfig:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return MemoryConfig(tuple(value), config.num_loras, config.rank, config.settings)

    def near(self, config: MemoryConfig) -> Bools:
        """Flips of one gate, ``N x L``."""
        import numpy as np

        flips = np.array(config.gates, dtype=bool) ^ np.eye(self.num_layers, dtype=bool)
        return np.asarray(flips[flips.any(axis=1)])

    def far(self, config: MemoryConfig) -> Bools:
        """Swaps of an active with an inactive layer, ``N x L``."""
        import numpy as np

        gates = np.array(config.gates, dtype=bool)
        on, off = np.flatnonzero(gates), np.flatnonzero(~gates)
        swaps = np.repeat(gates[None], len(on) * len(off), axis=0)
        rows = np.arange(len(swaps))
        swaps[rows, np.repeat(on, len(off))] = False
        swaps[rows, np.tile(off, len(on))] = True
        return swaps

    def check(self, config: MemoryConfig) -> None:
        """See :class:`~milp_ray.memory.factors.Factor`; no active layer passes: no memory."""
        if len(config.gates) != self.num_layers:
            raise SpaceError(f"a configuration has {len(config.gates)} gates", expected=f"{self.num_layers}")
        if not self.searched and any(config.gates) and config.gates != self.default:
            raise SpaceError(
                f"active layers {list(config.active)}, but layers are not searched",
                expected=f"{self.default_layers}",
                remedy="add 'layer' to memory.factors, or set memory.defaults.layers",
            )

    def to_log(self, config: MemoryConfig) -> str:
        """``"0110"``, a digit a layer."""
        return "".join("1" if gate else "0" for gate in config.gates)

    def from_log(self, value: object) -> Gates:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        if not isinstance(value, str) or set(value) - {"0", "1"}:
            raise SpaceError("a stored configuration without gates", expected="text of 0 and 1, one a layer")
        return tuple(digit == "1" for digit in value)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """A number 0 or 1 a layer; none for a single layer, which has to be active."""
        if not self.searched or self.num_layers == 1:
            return ()
        width = len(str(self.num_layers - 1))
        return tuple(Parameter(f"gate_{layer:0{width}d}", range(2)) for layer in range(self.num_layers))

    def to_parameters(self, config: MemoryConfig) -> tuple[float, ...]:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return tuple(int(gate) for gate in config.gates) if self.parameters else ()

    def from_parameters(self, values: Sequence[object]) -> Gates:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return tuple(bool(value) for value in values)

    @property
    def constraints(self) -> tuple[str, ...]:
        """At least one layer is active."""
        names = [parameter.name for parameter in self.parameters]
        return (f"{' + '.join(names)} >= 1",) if names else ()

    def _only(self, active: set[int]) -> Gates:
        return tuple(layer in active for layer in range(self.num_layers))


class LoraCount(NumberFactor):
    """n: how many LoRAs are dealt over the active layers.

    Args:
        largest: they are 1 to so many.
        default: n while it is not searched; None: one LoRA per active layer.
        searched: whether it is.
    """

    name, log_key = "num", "num_loras"

    def __init__(self, largest: int, default: int | None, searched: bool) -> None:
        super().__init__(range(1, largest + 1), default, searched)

    def fixed(self, active: Any) -> Any:
        """n with so many active layers, a number or an array, while it is not searched."""
        return active if self.default is None else self.default

    def following(self, config: MemoryConfig) -> MemoryConfig:
        """``config`` with n as its layers ask for, unless n is searched."""
        return config if self.searched else self.put(config, self.fixed(sum(config.gates)))

    def most(self, num_layers: int) -> tuple[int, int]:
        """How many LoRAs fall on one layer at most, and on all of so many."""
        if self.searched:
            return self.largest, self.largest
        return (1, num_layers) if self.default is None else (self.default, self.default)

    def of(self, config: MemoryConfig) -> int:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return config.num_loras

    def put(self, config: MemoryConfig, value: int) -> MemoryConfig:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return MemoryConfig(config.gates, value, config.rank, config.settings)

    def near(self, config: MemoryConfig) -> npt.NDArray[Any]:
        """One less, one more, half as many, twice as many."""
        n = config.num_loras
        return self._array([num for num in (n - 1, n + 1, n // 2, n * 2) if num in self.numbers])

    def check(self, config: MemoryConfig) -> None:
        """See :class:`~milp_ray.memory.factors.Factor`; 0 is of every space: no memory."""
        nums = range(self.largest + 1) if self.searched else (0, self.fixed(len(config.active)))
        if config.num_loras not in nums:
            raise SpaceError(f"a configuration has {config.num_loras} LoRAs", expected=listed(nums))


class LoraRank(NumberFactor):
    """r: the rank of each LoRA."""

    name, log_key = "size", "rank"

    def of(self, config: MemoryConfig) -> int:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return config.rank

    def put(self, config: MemoryConfig, value: int) -> MemoryConfig:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        return MemoryConfig(config.gates, config.num_loras, value, config.settings)

    def check(self, config: MemoryConfig) -> None:
        """See :class:`~milp_ray.memory.factors.Factor`."""
        ranks = self.numbers if self.searched else (self.default,)
        if config.rank not in ranks:
            raise SpaceError(f"a configuration has rank {config.rank}", expected=listed(ranks))
