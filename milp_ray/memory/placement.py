"""A placement: what a memory configuration means for a model, and how LoRAs are dealt over layers.

Covers section 2.2.1 of the paper (docs/references.md: Zhang 2024). Plain Python: no model and no
torch in here. Which modules of a layer get a LoRA is *not* covered:
:mod:`milp_ray.memory.architectures`.
"""

from __future__ import annotations

from dataclasses import dataclass

from milp_ray.errors import SpaceError

#: Values of factors beside the ranks, by name, in the space's order.
Settings = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What a configuration means for a trial: layers with effective ranks, and settings.

    Two configurations with the same placement train the same memory; :attr:`key` is what is
    deduplicated, cached and compared. The empty placement is *no memory*.

    Example:
        >>> placement = Placement(((3, 8), (7, 16)))
        >>> placement.key
        '3:8,7:16'
        >>> Placement.from_key("3:8,7:16") == placement
        True
        >>> len(Placement())  # no memory
        0
        >>> Placement.from_key("3:8;dropout=0.1").setting("dropout", 0.0)
        0.1

    Attributes:
        ranks: ``((layer, effective rank), ...)``, layers increasing.
        settings: what else the study varies from trial to trial
            (:class:`milp_ray.memory.factors.Setting`).
    """

    ranks: tuple[tuple[int, int], ...] = ()
    settings: Settings = ()

    def __post_init__(self) -> None:
        layers = [layer for layer, _ in self.ranks]
        if layers != sorted(set(layers)) or any(layer < 0 or rank < 1 for layer, rank in self.ranks):
            raise SpaceError(
                f"not a placement: {self.ranks!r}", expected="layers increasing from 0 on, ranks of 1 or more"
            )
        if self.settings and not self.ranks:
            raise SpaceError("no memory with settings", expected="settings of a placement with a layer")

    @property
    def key(self) -> str:
        """Canonical text form, ``"3:8,7:16"``, ``"3:8;dropout=0.1"``; ``""`` is no memory."""
        ranks = ",".join(f"{layer}:{rank}" for layer, rank in self.ranks)
        return ranks + "".join(f";{name}={repr(value).removesuffix('.0')}" for name, value in self.settings)

    @classmethod
    def from_key(cls, key: str) -> Placement:
        """The placement whose :attr:`key` is ``key``.

        Raises:
            SpaceError: ``key`` is not a canonical key (of any model).
        """
        ranks, *settings = key.split(";")
        pairs = [pair.split(":") for pair in ranks.split(",")] if ranks else []
        try:
            placement = cls(
                tuple((int(layer), int(rank)) for layer, rank in pairs),
                tuple((name, float(value)) for name, value in (each.split("=") for each in settings)),
            )
        except ValueError:
            placement = None
        if placement is None or placement.key != key:
            raise SpaceError(f"not a placement key: {key[:80]!r}", expected="such as '3:8,7:16'")
        return placement

    def as_dict(self) -> dict[int, int]:
        """``{layer: effective rank}``."""
        return dict(self.ranks)

    def setting(self, name: str, default: float) -> float:
        """The value of a setting; ``default`` where the study does not search it."""
        return dict(self.settings).get(name, default)

    def __len__(self) -> int:
        return len(self.ranks)


NO_MEMORY = Placement()


def deal(k: int, n: int) -> dict[int, int]:
    """How n ≥ 1 LoRAs fall on k ≥ 1 active layers.

    n < k: the layers at ``round(linspace(0, k - 1, n))`` of the active ones get one each (n = 1:
    the lowest). n ≥ k: round-robin, the remainder to the lowest.

    Returns:
        Position among the active layers -> how many, positions increasing.
    """
    if n < k:
        # A step above 1 keeps the rounded positions distinct; division is exact at x.5.
        positions = [round(i * (k - 1) / (n - 1)) for i in range(n)] if n > 1 else [0]
        return dict.fromkeys(positions, 1)
    each, rest = divmod(n, k)
    return {position: each + (position < rest) for position in range(k)}
