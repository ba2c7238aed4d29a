"""The space of memory configurations θ = (layer gates α, number of LoRAs n, rank r), and their placements.

Covers section 2.2.1 and tables 4 and 6 of the paper: the three factors, the seven sub-spaces that search
some of them, and what a configuration means for a model (its placement). Plain Python: no model and no torch
in here. It does *not* cover which modules of a layer get a LoRA (:mod:`milp_ray.memory.architectures`), nor
how configurations are proposed (:mod:`milp_ray.search`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from milp_ray.config.models import MemorySettings
from milp_ray.errors import SpaceError

FACTORS = ("num", "size", "layer")


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """A point θ of the search space.

    Attributes:
        gates: α, one bit a layer; True where the layer may carry a LoRA.
        num_loras: n, how many LoRAs are dealt over the active layers; 0 is *no memory*.
        rank: r of each of them.
    """

    gates: tuple[bool, ...]
    num_loras: int
    rank: int

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the active layers, increasing."""
        return tuple(layer for layer, gate in enumerate(self.gates) if gate)


@dataclass(frozen=True, slots=True)
class Placement:
    """What a configuration means for a model: ``((layer, effective rank), ...)``, layers increasing.

    Two configurations with the same placement train the same memory; :attr:`key` is what is deduplicated,
    cached and compared. The empty placement is *no memory*.
    Example:
        >>> placement = Placement(((3, 8), (7, 16)))
        >>> placement.key
        '3:8,7:16'
        >>> Placement.from_key("3:8,7:16") == placement
        True
        >>> len(Placement())  # no memory
        0

    """

    ranks: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        layers = [layer for layer, _ in self.ranks]
        if layers != sorted(set(layers)) or any(layer < 0 or rank < 1 for layer, rank in self.ranks):
            raise SpaceError(
                f"not a placement: {self.ranks!r}", expected="layers increasing from 0 on, ranks of 1 or more"
            )

    @property
    def key(self) -> str:
        """Canonical text form, ``"3:8,7:16"``; ``""`` is no memory."""
        return ",".join(f"{layer}:{rank}" for layer, rank in self.ranks)

    @classmethod
    def from_key(cls, key: str) -> Placement:
        """The placement whose :attr:`key` is ``key``.

        Raises:
            SpaceError: ``key`` is not a canonical key (of any model).
        """
        pairs = [part.split(":") for part in key.split(",")] if key else []
        try:
            placement = cls(tuple((int(layer), int(rank)) for layer, rank in pairs))
        except ValueError:
            placement = None
        if placement is None or placement.key != key:
            raise SpaceError(f"not a placement key: {key[:80]!r}", expected="such as '3:8,7:16'")
        return placement

    def as_dict(self) -> dict[int, int]:
        """``{layer: effective rank}``."""
        return dict(self.ranks)

    def __len__(self) -> int:
        return len(self.ranks)


NO_MEMORY = Placement()


class MemorySpace:
    """All configurations a study may try on one model.

    Example:
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> theta = MemoryConfig(gates=(True, False, True, False), num_loras=3, rank=8)
        >>> space.placement(theta).as_dict()  # three LoRAs of rank 8 on two layers
        {0: 16, 2: 8}
        >>> space.placement(space.sample(random.Random(0))).key
        '0:16,3:16'

    Args:
        num_layers: L, layers of the model.
        max_loras: largest n that is searched.
        ranks: the ranks that are searched, increasing.
        factors: which of num, size and layer are searched, joined by ``+``; the others stay at the defaults.
        default_num: n while num is not searched; None means one LoRA per active layer.
        default_rank: r while size is not searched.
        default_layers: the active layers while layer is not searched; None means all.
        max_rank: the layer width, beyond which a rank would add nothing, or a bound below it; a larger
            effective rank is capped there.

    Raises:
        SpaceError: an argument is out of range.
    """

    def __init__(
        self,
        num_layers: int,
        max_loras: int,
        ranks: Sequence[int],
        factors: str = "num+size+layer",
        default_num: int | None = None,
        default_rank: int = 16,
        default_layers: Sequence[int] | None = None,
        max_rank: int | None = None,
    ) -> None:
        self.num_layers = num_layers
        self.max_loras = max_loras
        self.ranks = tuple(ranks)
        self.searched = frozenset(factors.split("+"))
        self.default_num = default_num
        self.default_rank = default_rank
        self.default_layers = tuple(range(num_layers)) if default_layers is None else tuple(default_layers)
        self.max_rank = max_rank
        self._check()
        self._default_gates = tuple(layer in set(self.default_layers) for layer in range(num_layers))

    @property
    def factors(self) -> str:
        """The searched factors in canonical order, joined by ``+``."""
        return "+".join(factor for factor in FACTORS if factor in self.searched)

    def placement(self, config: MemoryConfig) -> Placement:
        """What ``config`` means: n LoRAs of rank r dealt over the k active layers.

        n < k: the layers at ``round(linspace(0, k - 1, n))`` of the active ones get one each (n = 1: the
        lowest). n ≥ k: round-robin, the remainder to the lowest. m LoRAs of rank r in one layer are one LoRA
        of rank m·r. n = 0 or k = 0 is the empty placement.
        """
        active, n = config.active, config.num_loras
        k = len(active)
        if n == 0 or k == 0:
            return NO_MEMORY
        cap = self.max_rank if self.max_rank is not None else config.rank * n
        counts = self.deal(k, n)
        return Placement(
            tuple((active[position], min(count * config.rank, cap)) for position, count in counts.items())
        )

    @staticmethod
    def deal(k: int, n: int) -> dict[int, int]:
        """How n ≥ 1 LoRAs fall on k ≥ 1 active layers: position among these -> how many, positions
        increasing."""
        if n < k:
            # A step above 1 keeps the rounded positions distinct; division is exact where the value is x.5.
            positions = [round(i * (k - 1) / (n - 1)) for i in range(n)] if n > 1 else [0]
            return dict.fromkeys(positions, 1)
        each, rest = divmod(n, k)
        return {position: each + (position < rest) for position in range(k)}

    def validate(self, config: MemoryConfig) -> None:
        """Check that ``config`` is a member of the space (n = 0, or no active layer, is: no memory).

        Raises:
            SpaceError: wrong number of gates, n or r out of range, or a factor that is not searched differs
                from its default.
        """
        k = len(config.active)
        nums = range(self.max_loras + 1) if "num" in self.searched else (0, self.fixed_num(k))
        ranks = self.ranks if "size" in self.searched else (self.default_rank,)
        if len(config.gates) != self.num_layers:
            raise SpaceError(f"a configuration has {len(config.gates)} gates", expected=f"{self.num_layers}")
        if config.num_loras not in nums:
            raise SpaceError(f"a configuration has {config.num_loras} LoRAs", expected=_listed(nums))
        if config.rank not in ranks:
            raise SpaceError(f"a configuration has rank {config.rank}", expected=_listed(ranks))
        if "layer" not in self.searched and k > 0 and config.gates != self._default_gates:
            raise SpaceError(
                f"active layers {list(config.active)}, but layers are not searched",
                expected=f"{list(self.default_layers)}",
                remedy="add 'layer' to memory.factors, or set memory.defaults.layers",
            )

    def describe(self) -> dict[str, object]:
        """All that tells this space from another, as JSON writes it."""
        return {
            "num_layers": self.num_layers,
            "max_loras": self.max_loras,
            "ranks": list(self.ranks),
            "factors": self.factors,
            "default_num": self.default_num,
            "default_rank": self.default_rank,
            "default_layers": list(self.default_layers),
            "max_rank": self.max_rank,
        }

    def neighbours(self, config: MemoryConfig) -> list[MemoryConfig]:
        """Configurations one step away, for a local search.

        A step flips a gate, swaps an active with an inactive layer, changes n by one or by a factor of two,
        or takes the next rank up or down; only searched factors move. Each has at least one active layer and
        n ≥ 1, and their placements differ from that of ``config`` and from each other. Order is fixed.
        """
        seen = {self.placement(config).key, ""}
        result = []
        for candidate in self._steps(config):
            key = self.placement(candidate).key
            if key not in seen:
                seen.add(key)
                result.append(candidate)
        return result

    def sample(self, rng: random.Random) -> MemoryConfig:
        """A random configuration: the *number* of active layers is uniform, then which; n and r uniform."""
        return self.from_unit([rng.random() for _ in range(self.unit_dim)])

    @property
    def unit_dim(self) -> int:
        """Length of the points that :meth:`from_unit` takes."""
        layer = 1 + self.num_layers if "layer" in self.searched else 0
        return layer + ("num" in self.searched) + ("size" in self.searched)

    def from_unit(self, u: Sequence[float]) -> MemoryConfig:
        """The configuration at ``u`` in [0, 1]^``unit_dim`` (a Sobol point, say).

        With layer searched, ``u[0]`` says how many layers are active (uniform over 1…L, where one coin a
        layer would almost always activate about half) and the next L numbers which: the smallest ones win.
        Then n (uniform over 1…max_loras) and r (uniform over the ranks), as far as they are searched.

        Raises:
            SpaceError: wrong length, or a number outside [0, 1] (NaN included).
        """
        if len(u) != self.unit_dim or not all(0 <= value <= 1 for value in u):
            raise SpaceError(f"not a point of [0, 1]^{self.unit_dim}: {len(u)} numbers")
        rest = list(u)
        gates = self._default_gates
        if "layer" in self.searched:
            k = 1 + _bucket(rest[0], self.num_layers)
            scores = rest[1 : 1 + self.num_layers]
            chosen = set(sorted(range(self.num_layers), key=lambda layer: (scores[layer], layer))[:k])
            gates = tuple(layer in chosen for layer in range(self.num_layers))
            rest = rest[1 + self.num_layers :]
        num = self.fixed_num(sum(gates))
        if "num" in self.searched:
            num = 1 + _bucket(rest.pop(0), self.max_loras)
        rank = self.default_rank
        if "size" in self.searched:
            rank = self.ranks[_bucket(rest.pop(0), len(self.ranks))]
        return MemoryConfig(gates, num, rank)

    def size(self) -> int:
        """Number of configurations with a memory; an upper bound on the distinct placements."""
        gates = 2**self.num_layers - 1 if "layer" in self.searched else 1
        nums = self.max_loras if "num" in self.searched else 1
        return gates * nums * (len(self.ranks) if "size" in self.searched else 1)

    def smallest(self) -> MemoryConfig:
        """A configuration with as few trainable parameters as any that has a memory."""
        gates = self._default_gates
        if "layer" in self.searched:
            gates = tuple(layer == 0 for layer in range(self.num_layers))
        num = 1 if "num" in self.searched else self.fixed_num(sum(gates))
        return MemoryConfig(gates, num, self.ranks[0] if "size" in self.searched else self.default_rank)

    def largest(self) -> MemoryConfig:
        """A configuration with as many trainable parameters as any."""
        gates = (True,) * self.num_layers if "layer" in self.searched else self._default_gates
        num = self.max_loras if "num" in self.searched else self.fixed_num(sum(gates))
        return MemoryConfig(gates, num, self.ranks[-1] if "size" in self.searched else self.default_rank)

    def extreme_placements(self) -> tuple[Placement, Placement]:
        """The placements of :meth:`smallest` and :meth:`largest`."""
        return self.placement(self.smallest()), self.placement(self.largest())

    @property
    def num_features(self) -> int:
        """Length of :meth:`features`: L + 1."""
        return self.num_layers + 1

    def features(self, placement: Placement) -> tuple[float, ...]:
        """``placement`` as a point of [0, 1]^(L + 1) for a surrogate.

        Layer by layer log(1 + effective rank), then log(1 + total rank), each divided by its largest value
        in this space and capped at 1. No memory is the origin.
        """
        highest, total = self.largest_ranks()
        ranks = placement.as_dict()
        if ranks and max(ranks) >= self.num_layers:
            raise SpaceError(f"a placement in layer {max(ranks)}", expected=f"layers below {self.num_layers}")
        values = [_log_share(ranks.get(layer, 0), highest) for layer in range(self.num_layers)]
        return (*values, _log_share(sum(ranks.values()), total))

    def _steps(self, config: MemoryConfig) -> Iterator[MemoryConfig]:
        gates, n, rank = config.gates, config.num_loras, config.rank
        if "layer" in self.searched:
            inactive = [layer for layer, gate in enumerate(gates) if not gate]
            flips = [(layer,) for layer in range(self.num_layers)]
            for changed in [*flips, *product(config.active, inactive)]:
                new = tuple(gate != (layer in changed) for layer, gate in enumerate(gates))
                if any(new):
                    yield MemoryConfig(new, n if "num" in self.searched else self.fixed_num(sum(new)), rank)
        for num, step in self.steps_of_size(config):
            yield MemoryConfig(gates, num, step)

    def steps_of_size(self, config: MemoryConfig) -> list[tuple[int, int]]:
        """The (n, r) that :meth:`neighbours` goes to without touching a gate, in its order."""
        n, rank = config.num_loras, config.rank
        result = []
        if "num" in self.searched:
            result += [(num, rank) for num in (n - 1, n + 1, n // 2, n * 2) if 1 <= num <= self.max_loras]
        if "size" in self.searched:
            lower = [r for r in self.ranks if r < rank][-1:]
            upper = [r for r in self.ranks if r > rank][:1]
            result += [(n, step) for step in (*lower, *upper)]
        return result

    def fixed_num(self, active: int) -> int:
        """n with so many active layers while it is not searched."""
        return active if self.default_num is None else self.default_num

    def largest_ranks(self) -> tuple[int, int]:
        """The largest effective rank of one layer, and the largest total, in this space."""
        rank = self.ranks[-1] if "size" in self.searched else self.default_rank
        if "num" in self.searched:
            most, num = self.max_loras, self.max_loras
        elif self.default_num is None:
            most, num = 1, self.num_layers
        else:
            most, num = self.default_num, self.default_num
        cap = self.max_rank if self.max_rank is not None else rank * most
        return min(rank * most, cap), min(rank * num, cap * self.num_layers)

    def _check(self) -> None:
        if self.num_layers < 1 or self.max_loras < 1 or not self.ranks:
            raise SpaceError("an empty space", expected="at least one layer, one LoRA and one rank")
        if list(self.ranks) != sorted(set(self.ranks)) or self.ranks[0] < 1 or self.default_rank < 1:
            raise SpaceError(f"ranks {list(self.ranks)}", expected="increasing from 1 on, each once")
        if not self.searched <= set(FACTORS):
            raise SpaceError(f"unknown factors {sorted(self.searched)}", expected="num, size, layer")
        if self.default_num is not None and self.default_num < 1:
            raise SpaceError(f"a default of {self.default_num} LoRAs", expected="1 or more")
        layers = self.default_layers
        if not layers or len(set(layers)) != len(layers) or not all(0 <= i < self.num_layers for i in layers):
            raise SpaceError(
                f"default layers {list(layers)} of a model with {self.num_layers} layers",
                where="memory.defaults.layers",
                expected=f"one or more of 0 to {self.num_layers - 1}, each once",
                remedy="name layers of this model, or null for all of them",
            )


def space_from(settings: MemorySettings, num_layers: int, width: int) -> MemorySpace:
    """The space that ``memory:`` of a study file means for a model.

    Args:
        settings: the section of the study file.
        num_layers: layers of the base model; also the largest n, unless ``max_loras`` says otherwise.
        width: the smallest dimension of any adapted module; effective ranks are capped there, or at
            ``settings.max_rank``.

    Raises:
        SpaceError: a rank that is in use is above ``width`` or ``max_rank``, or a default layer does not
            exist.
    """
    searched = settings.factors.split("+")
    where, ranks = "memory.ranks", list(settings.ranks)
    if "size" not in searched:
        where, ranks = "memory.defaults.size", [settings.defaults.size]
    bound = min(width, settings.max_rank or width)
    if high := [rank for rank in ranks if width >= rank > bound]:
        raise SpaceError(
            f"rank {', '.join(map(str, high))} is above memory.max_rank, {bound}",
            where=where,
            expected=f"ranks of at most {bound}",
            remedy=f"remove the ranks above {bound} from {where}, or raise memory.max_rank",
        )
    wide = [rank for rank in ranks if rank > width]
    if wide:
        raise SpaceError(
            f"rank {', '.join(map(str, wide))} is above the layer width of the model, {width}",
            where=where,
            expected=f"ranks of at most {width}: a LoRA of more has no more capacity",
            remedy=f"remove the ranks above {width} from {where}, or use a wider base model",
        )
    return MemorySpace(
        num_layers,
        settings.max_loras or num_layers,
        settings.ranks,
        settings.factors,
        default_num=settings.defaults.num,
        default_rank=settings.defaults.size,
        default_layers=settings.defaults.layers,
        max_rank=bound,
    )


def _bucket(value: float, count: int) -> int:
    return min(int(value * count), count - 1)


def _log_share(value: int, largest: int) -> float:
    return min(1.0, math.log1p(value) / math.log1p(largest))


def _listed(values: Sequence[int]) -> str:
    return f"{values[0]} to {values[-1]}" if isinstance(values, range) else ", ".join(map(str, values))


def config_from(values: Mapping[str, object]) -> MemoryConfig:
    """The configuration written by :func:`config_to`.

    Raises:
        SpaceError: a value is missing or of another type.
    """
    gates, num, rank = (values.get(name) for name in ("gates", "num_loras", "rank"))
    if not isinstance(gates, str) or set(gates) - {"0", "1"}:
        raise SpaceError("a stored configuration without gates", expected="text of 0 and 1, one a layer")
    if type(num) is not int or type(rank) is not int:
        raise SpaceError("a stored configuration without num_loras and rank", expected="whole numbers")
    return MemoryConfig(tuple(bit == "1" for bit in gates), num, rank)


def config_to(config: MemoryConfig) -> dict[str, object]:
    """``config`` as plain JSON values: ``{"gates": "0110", "num_loras": 2, "rank": 8}``."""
    gates = "".join("1" if gate else "0" for gate in config.gates)
    return {"gates": gates, "num_loras": config.num_loras, "rank": config.rank}
