"""Factors: what a search varies, each of them an object that knows its values.

A factor says how a value is drawn, which values are one step away, and how the event log, a
surrogate and another optimiser see it. :class:`milp_ray.memory.space.MemorySpace` composes factors,
and says what the configuration that they make up means.

Three factors place LoRAs: :mod:`milp_ray.memory.lora_factors`. A :class:`Setting` lies beside
these: it is a number that a trial is trained with. To add one: its name in
:data:`milp_ray.config.factors.FACTORS`, its values in :data:`SETTINGS`, and where
:mod:`milp_ray.trial.lifecycle` uses the number, ``placement.setting(name, default)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milp_ray.errors import SpaceError
from milp_ray.memory.placement import Placement, Settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """A point θ of the search space.

    Attributes:
        gates: α, one bit a layer; True where the layer may carry a LoRA.
        num_loras: n, how many LoRAs are dealt over the active layers; 0 is *no memory*.
        rank: r of each of them.
        settings: values of the searched settings.
    """

    gates: tuple[bool, ...]
    num_loras: int
    rank: int
    settings: Settings = ()

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the active layers, increasing."""
        return tuple(layer for layer, gate in enumerate(self.gates) if gate)


@dataclass(frozen=True)
class Parameter:
    """A parameter of another optimiser (Ax), as which it can see a factor; plain data.

    Attributes:
        name: of the parameter.
        values: a range of whole numbers, or an ordered choice.
    """

    name: str
    values: range | tuple[float, ...]


class Factor(ABC):
    """What a search varies: a part of a configuration that takes one of finitely many values.

    Attributes:
        name: in ``memory.factors`` of a study.
        searched: whether the study varies it; otherwise it stays at its default.
        log_key: under which the event log has its value.
        unit_dim: how many numbers in [0, 1] a value is drawn from.
        count: number of values with a memory.
        smallest, largest: the values with fewest and with most trainable parameters.
    """

    name: str
    searched: bool
    log_key: str
    unit_dim: int
    count: int
    smallest: Any
    largest: Any

    @abstractmethod
    def from_unit(self, u: Sequence[float]) -> Any:
        """The value at ``u`` in [0, 1]^``unit_dim``."""

    @abstractmethod
    def values(self) -> Iterator[Any]:
        """All values with a memory, each once, in a fixed order."""

    @abstractmethod
    def of(self, config: MemoryConfig) -> Any:
        """Its value in a configuration."""

    @abstractmethod
    def put(self, config: MemoryConfig, value: Any) -> MemoryConfig:
        """``config`` with another value of it."""

    @abstractmethod
    def near(self, config: MemoryConfig) -> npt.NDArray[Any]:
        """The values one step away, a row each, in a fixed order."""

    def far(self, config: MemoryConfig) -> npt.NDArray[Any]:
        """Values of larger steps, which a local search takes last; none by default."""
        return self.near(config)[:0]

    @abstractmethod
    def check(self, config: MemoryConfig) -> None:
        """Raise a SpaceError unless its value in ``config`` is one of the space."""

    @abstractmethod
    def to_log(self, config: MemoryConfig) -> object:
        """Its value in ``config``, as JSON."""

    @abstractmethod
    def from_log(self, value: object) -> Any:
        """The value that :meth:`to_log` gave.

        Raises:
            SpaceError: it is of another type.
        """

    @property
    @abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """What it is to another optimiser; nothing where it cannot vary."""

    @abstractmethod
    def to_parameters(self, config: MemoryConfig) -> tuple[float, ...]:
        """Values of :attr:`parameters`."""

    @abstractmethod
    def from_parameters(self, values: Sequence[object]) -> Any:
        """The value that :meth:`to_parameters` gave."""

    @property
    def constraints(self) -> tuple[str, ...]:
        """Linear inequalities between its parameters, by their names; none by default."""
        return ()


class NumberFactor(Factor):
    """A factor whose value is one of a few numbers, in increasing order.

    Args:
        numbers: that it can be, increasing.
        default: what it is while it is not searched.
        searched: whether it is.
    """

    unit_dim = 1
    kind: type[int] | type[float] = int

    def __init__(self, numbers: Sequence[float], default: Any, searched: bool) -> None:
        self.numbers, self.default, self.searched = numbers, default, searched
        self.count, self.smallest, self.largest = len(numbers), numbers[0], numbers[-1]

    def from_unit(self, u: Sequence[float]) -> Any:
        """Uniform over the numbers."""
        return self.numbers[bucket(u[0], len(self.numbers))]

    def values(self) -> Iterator[Any]:
        """The numbers."""
        return iter(self.numbers)

    def near(self, config: MemoryConfig) -> npt.NDArray[Any]:
        """The next number down, the next one up."""
        value = self.of(config)
        lower = [number for number in self.numbers if number < value][-1:]
        upper = [number for number in self.numbers if number > value][:1]
        return self._array([*lower, *upper])

    def to_log(self, config: MemoryConfig) -> object:
        """The number."""
        return self.of(config)

    def from_log(self, value: object) -> Any:
        """See :class:`Factor`."""
        if type(value) not in (int, self.kind):
            what = "whole numbers" if self.kind is int else "numbers"
            raise SpaceError(f"a stored configuration without {self.log_key}", expected=what)
        return self.kind(str(value))

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One, where there is more than one number."""
        if not self.searched or len(self.numbers) == 1:
            return ()
        numbers = self.numbers if isinstance(self.numbers, range) else tuple(self.numbers)
        return (Parameter(self.log_key, numbers),)

    def to_parameters(self, config: MemoryConfig) -> tuple[float, ...]:
        """See :class:`Factor`."""
        return (self.of(config),) if self.parameters else ()

    def from_parameters(self, values: Sequence[object]) -> Any:
        """See :class:`Factor`."""
        return self.kind(str(values[0]))

    def _array(self, numbers: Sequence[float]) -> npt.NDArray[Any]:
        import numpy as np

        return np.array(numbers, dtype=np.int32 if self.kind is int else np.float64)


class Setting(NumberFactor):
    """A factor beside the placement's ranks: a number that a trial is trained with.

    While it is not searched it stands in no configuration, and a trial has the study's own value.

    Args:
        name: of the factor, and of the setting of a placement.
        numbers: that it can be; finite, increasing.
    """

    kind = float

    def __init__(self, name: str, numbers: Sequence[float]) -> None:
        self.name = self.log_key = name
        if not numbers or list(numbers) != sorted(set(numbers)) or not all(map(math.isfinite, numbers)):
            raise SpaceError(f"values of {name}: {list(numbers)}", expected="finite, increasing, each once")
        super().__init__(tuple(map(float, numbers)), None, searched=True)

    def of(self, config: MemoryConfig) -> float:
        """See :class:`Factor`."""
        return dict(config.settings)[self.name]

    def put(self, config: MemoryConfig, value: Any) -> MemoryConfig:
        """See :class:`Factor`."""
        settings = tuple((name, value if name == self.name else old) for name, old in config.settings)
        return MemoryConfig(config.gates, config.num_loras, config.rank, settings)

    def check(self, config: MemoryConfig) -> None:
        """See :class:`Factor`."""
        value = dict(config.settings).get(self.name)
        if value not in self.numbers:
            raise SpaceError(f"a configuration has {self.name} {value}", expected=listed(self.numbers))

    def feature(self, placement: Placement) -> float:
        """Its value as a surrogate sees it: the numbers evenly spread over [0, 1]."""
        value = placement.setting(self.name, self.numbers[0])
        return bisect_left(self.numbers, value) / max(1, self.count - 1)

    def features(self, values: Floats) -> Floats:
        """:meth:`feature` of ``N`` values."""
        import numpy as np

        places = np.searchsorted(np.array(self.numbers), values)
        return np.asarray(places / max(1, self.count - 1), dtype=np.float64)


#: All factors beside the ranks that a study can search. Their values are these, not a study's.
#: Where one is searched, a setting of the same meaning (``memory.dropout``) has no effect.
SETTINGS: tuple[Setting, ...] = (
    # None so far; one would be: Setting("dropout", (0.0, 0.1)),
)


def bucket(value: float, count: int) -> int:
    """Into which of ``count`` equal parts of [0, 1] a number falls."""
    return min(int(value * count), count - 1)


def listed(values: Sequence[float]) -> str:
    """Values for a message."""
    return f"{values[0]} to {values[-1]}" if isinstance(values, range) else ", ".join(map(str, values))
