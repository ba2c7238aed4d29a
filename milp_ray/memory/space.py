"""The space of memory configurations θ = (layer gates α, number of LoRAs n, rank r).

Composes the factors of :mod:`milp_ray.memory.factors` and :mod:`milp_ray.memory.lora_factors`, of
which a study searches some, and says which placement a configuration means. Plain Python: no model
and no torch in here. How configurations are proposed is *not* covered: :mod:`milp_ray.search`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from milp_ray.config.factors import FACTORS
from milp_ray.config.models import MemorySettings
from milp_ray.config.search import PointToEvaluate
from milp_ray.errors import Problem, SpaceError, StudyError
from milp_ray.memory.factors import SETTINGS, Factor, MemoryConfig
from milp_ray.memory.lora_factors import LayerGates, LoraCount, LoraRank
from milp_ray.memory.placement import NO_MEMORY, Placement, deal


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
        factors: which of num, size and layer are searched, joined by ``+``; the others stay at the
            defaults. Further ones are those of :data:`milp_ray.memory.factors.SETTINGS`.
        default_num: n while num is not searched; None means one LoRA per active layer.
        default_rank: r while size is not searched.
        default_layers: the active layers while layer is not searched; None means all.
        max_rank: the layer width, beyond which a rank would add nothing, or a bound below it; a
            larger effective rank is capped there.

    Attributes:
        layer_gates, lora_count, lora_rank: the factors of a placement.
        settings: the searched factors beside them.
        factors: all of these, in the order in which they are drawn.

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
        self.num_layers, self.max_loras, self.ranks = num_layers, max_loras, tuple(ranks)
        self.max_rank = max_rank
        names = factors.split("+")
        layers = tuple(range(num_layers)) if default_layers is None else tuple(default_layers)
        self._check(names, default_num, default_rank, layers)
        self.layer_gates = LayerGates(num_layers, layers, LayerGates.name in names)
        self.lora_count = LoraCount(max_loras, default_num, LoraCount.name in names)
        self.lora_rank = LoraRank(self.ranks, default_rank, LoraRank.name in names)
        self.settings = tuple(setting for setting in SETTINGS if setting.name in names)
        self.factors: tuple[Factor, ...] = (
            self.layer_gates,
            self.lora_count,
            self.lora_rank,
            *self.settings,
        )
        self._searched = tuple(factor for factor in self.factors if factor.searched)
        start = tuple((setting.name, setting.smallest) for setting in self.settings)
        self._default = self.lora_count.following(
            MemoryConfig(self.layer_gates.default, 1, default_rank, start)
        )

    @property
    def searched(self) -> str:
        """The searched factors in canonical order, joined by ``+``."""
        names = {factor.name for factor in self._searched}
        return "+".join(name for name in FACTORS if name in names)

    def placement(self, config: MemoryConfig) -> Placement:
        """What ``config`` means: n LoRAs of rank r dealt over the k active layers.

        How they are dealt says :func:`milp_ray.memory.placement.deal`. m LoRAs of rank r in one
        layer are one LoRA of rank m·r. n = 0 or k = 0 is the empty placement.
        """
        active, n = config.active, config.num_loras
        k = len(active)
        if n == 0 or k == 0:
            return NO_MEMORY
        cap = self.max_rank if self.max_rank is not None else config.rank * n
        ranks = ((active[position], min(count * config.rank, cap)) for position, count in deal(k, n).items())
        return Placement(tuple(ranks), config.settings)

    def changed(self, config: MemoryConfig, factor: Factor, value: object) -> MemoryConfig:
        """``config`` with another value of one factor; n follows unless it is searched."""
        return self.lora_count.following(factor.put(config, value))

    def validate(self, config: MemoryConfig) -> None:
        """Check that ``config`` is of the space; no memory (n = 0, or no active layer) is.

        Raises:
            SpaceError: wrong number of gates, n or r out of range, or a factor that is not searched
                differs from its default.
        """
        for factor in self.factors:
            factor.check(config)
        if len(config.settings) != len(self.settings):
            raise SpaceError("a configuration has other settings", expected=self.searched)

    def describe(self) -> dict[str, object]:
        """All that tells this space from another, as JSON writes it."""
        settings = {setting.name: list(setting.numbers) for setting in self.settings}
        return {
            "num_layers": self.num_layers,
            "max_loras": self.max_loras,
            "ranks": list(self.ranks),
            "factors": self.searched,
            "default_num": self.lora_count.default,
            "default_rank": self.lora_rank.default,
            "default_layers": self.layer_gates.default_layers,
            "max_rank": self.max_rank,
            **({"settings": settings} if settings else {}),
        }

    def to_log(self, config: MemoryConfig) -> dict[str, object]:
        """``config`` as plain JSON values: ``{"gates": "0110", "num_loras": 2, "rank": 8}``."""
        return {factor.log_key: factor.to_log(config) for factor in self.factors}

    def from_log(self, values: Mapping[str, object]) -> MemoryConfig:
        """The configuration written by :meth:`to_log`.

        Raises:
            SpaceError: a value is missing or of another type.
        """
        config = self._default
        for factor in self.factors:
            config = factor.put(config, factor.from_log(values.get(factor.log_key)))
        return config

    def neighbours(self, config: MemoryConfig) -> list[MemoryConfig]:
        """Configurations one step away, for a local search.

        A step flips a gate, swaps an active with an inactive layer, changes n by one or by a factor
        of two, or takes the next rank (or number of a setting) up or down; only searched factors
        move. Each has at least one active layer and n ≥ 1, and their placements differ from that of
        ``config`` and from each other. Order is fixed.
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
        """A random configuration: uniform in the *number* of active layers, in n and in r."""
        return self.from_unit([rng.random() for _ in range(self.unit_dim)])

    @property
    def unit_dim(self) -> int:
        """Length of the points that :meth:`from_unit` takes."""
        return sum(factor.unit_dim for factor in self._searched)

    def from_unit(self, u: Sequence[float]) -> MemoryConfig:
        """The configuration at ``u`` in [0, 1]^``unit_dim`` (a Sobol point, say).

        Each searched factor takes its share of the numbers, in the order of :attr:`factors`.

        Raises:
            SpaceError: wrong length, or a number outside [0, 1] (NaN included).
        """
        if len(u) != self.unit_dim or not all(0 <= value <= 1 for value in u):
            raise SpaceError(f"not a point of [0, 1]^{self.unit_dim}: {len(u)} numbers")
        config, first = self._default, 0
        for factor in self._searched:
            own, first = u[first : first + factor.unit_dim], first + factor.unit_dim
            config = self.changed(config, factor, factor.from_unit(own))
        return config

    def every_config(self) -> Iterator[MemoryConfig]:
        """All configurations with n ≥ 1 and an active layer; only sensible for small spaces."""
        configs: Iterator[MemoryConfig] = iter((self._default,))
        for factor in self._searched:
            configs = self._with_every(configs, factor)
        return configs

    def size(self) -> int:
        """Number of configurations with a memory; an upper bound on the distinct placements."""
        return math.prod(factor.count for factor in self._searched)

    def smallest(self) -> MemoryConfig:
        """A configuration with as few trainable parameters as any that has a memory."""
        config = self._default
        for factor in self._searched:
            config = self.changed(config, factor, factor.smallest)
        return config

    def largest(self) -> MemoryConfig:
        """A configuration with as many trainable parameters as any."""
        config = self._default
        for factor in self._searched:
            config = self.changed(config, factor, factor.largest)
        return config

    def extreme_placements(self) -> tuple[Placement, Placement]:
        """The placements of :meth:`smallest` and :meth:`largest`."""
        return self.placement(self.smallest()), self.placement(self.largest())

    def point(
        self, num: int | None = None, rank: int | None = None, layers: Sequence[int] | None = None
    ) -> MemoryConfig:
        """A configuration by its parts; what is left out is that of the defaults.

        ``num``: None is one LoRA per active layer, unless the default says otherwise.

        Raises:
            SpaceError: it is not of the space, as :meth:`validate`, or a layer does not exist.
        """
        config = self._default
        if layers is not None:
            if not layers or not set(layers) <= set(range(self.num_layers)):
                raise SpaceError(
                    f"layers {list(layers)} of a model with {self.num_layers}",
                    expected=f"one or more of 0 to {self.num_layers - 1}",
                )
            gates = tuple(layer in layers for layer in range(self.num_layers))
            config = self.layer_gates.put(config, gates)
        if rank is not None:
            config = self.lora_rank.put(config, rank)
        num = num if num is not None else self.lora_count.default
        config = self.lora_count.put(config, len(config.active) if num is None else num)
        self.validate(config)
        return config

    @property
    def num_features(self) -> int:
        """Length of :meth:`features`: L + 1, and one a setting."""
        return self.num_layers + 1 + len(self.settings)

    def features(self, placement: Placement) -> tuple[float, ...]:
        """``placement`` as a point of [0, 1]^d for a surrogate.

        Layer by layer log(1 + effective rank), then log(1 + total rank), each divided by its
        largest value in this space and capped at 1; then the settings. No memory is the origin.
        """
        highest, total = self.largest_ranks()
        ranks = placement.as_dict()
        if ranks and max(ranks) >= self.num_layers:
            raise SpaceError(f"a placement in layer {max(ranks)}", expected=f"layers below {self.num_layers}")
        values = [_log_share(ranks.get(layer, 0), highest) for layer in range(self.num_layers)]
        settings = (setting.feature(placement) for setting in self.settings)
        return (*values, _log_share(sum(ranks.values()), total), *settings)

    def largest_ranks(self) -> tuple[int, int]:
        """The largest effective rank of one layer, and the largest total, in this space."""
        rank = self.lora_rank.largest if self.lora_rank.searched else self.lora_rank.default
        most, num = self.lora_count.most(self.num_layers)
        cap = self.max_rank if self.max_rank is not None else rank * most
        return min(rank * most, cap), min(rank * num, cap * self.num_layers)

    def _steps(self, config: MemoryConfig) -> Iterator[MemoryConfig]:
        for factor in self._searched:
            for value in (*factor.near(config).tolist(), *factor.far(config).tolist()):
                yield self.changed(config, factor, value)

    def _with_every(self, configs: Iterator[MemoryConfig], factor: Factor) -> Iterator[MemoryConfig]:
        for config in configs:
            for value in factor.values():
                yield self.changed(config, factor, value)

    def _check(
        self, names: Sequence[str], default_num: int | None, default_rank: int, layers: Sequence[int]
    ) -> None:
        if self.num_layers < 1 or self.max_loras < 1 or not self.ranks:
            raise SpaceError("an empty space", expected="at least one layer, one LoRA and one rank")
        if list(self.ranks) != sorted(set(self.ranks)) or self.ranks[0] < 1 or default_rank < 1:
            raise SpaceError(f"ranks {list(self.ranks)}", expected="increasing from 1 on, each once")
        if not set(names) <= set(FACTORS):
            raise SpaceError(f"unknown factors {sorted(set(names))}", expected=", ".join(FACTORS))
        if default_num is not None and default_num < 1:
            raise SpaceError(f"a default of {default_num} LoRAs", expected="1 or more")
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
        num_layers: of the base model; also the largest n, unless ``max_loras`` says otherwise.
        width: the smallest dimension of any adapted module; effective ranks are capped there, or at
            ``settings.max_rank``.

    Raises:
        SpaceError: a rank that is in use is above ``width`` or ``max_rank``, or a default layer
            does not exist.
    """
    where, ranks = "memory.ranks", list(settings.ranks)
    if LoraRank.name not in settings.factors.split("+"):
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


def points_of(settings: Sequence[PointToEvaluate], space: MemorySpace) -> tuple[MemoryConfig, ...]:
    """The configurations that ``search.points_to_evaluate`` of a study file means in its space.

    Example:
        >>> space = MemorySpace(num_layers=4, max_loras=4, ranks=(8, 16))
        >>> [point] = points_of([PointToEvaluate()], space)  # the plain one: every layer, one rank
        >>> space.placement(point).key
        '0:16,1:16,2:16,3:16'

    Raises:
        StudyError: points are not of the space; all of them are told.
    """
    points, problems = list[MemoryConfig](), list[Problem]()
    for place, setting in enumerate(settings):
        try:
            points.append(space.point(setting.num, setting.size, setting.layers))
        except SpaceError as error:
            problems += [
                Problem(f"search.points_to_evaluate[{place}]", problem.fact, problem.expected, problem.remedy)
                for problem in error.problems
            ]
    if problems:
        raise StudyError("study", problems)
    return tuple(points)


def _log_share(value: int, largest: int) -> float:
    return min(1.0, math.log1p(value) / math.log1p(largest))
