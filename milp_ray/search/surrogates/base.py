"""What proposes: a surrogate, a model that is fitted anew for every batch, or a sampler.

A surrogate fits BoTorch models of the *measured* objectives; the acquisition turns them into
proposals. A sampler has no model of ours: it proposes from the space directly, or from the whole
plan if it is somebody else's optimiser. Which acquisition is used, exact objectives and pending
points are *not* a surrogate's business.

Importing a surrogate's module must stay cheap: torch, BoTorch and JAX are imported inside ``fit``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from milp_ray.memory.factors import MemoryConfig
from milp_ray.memory.space import MemorySpace

if TYPE_CHECKING:
    from botorch.models.model import ModelList
    from torch import Tensor

    from milp_ray.search.core.plan import Plan
    from milp_ray.search.core.records import Candidates


class SurrogateFailed(RuntimeError):  # noqa: N818  (an outcome, which the search survives)
    """No model could be fitted to the data; the message says why and carries no values."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and what the acquisition must know about it.

    Attributes:
        model: a BoTorch ``ModelList`` with m outputs, each to be maximised, in the units of the Y
            that was given; inputs are ``… x n x d`` in the unit cube.
        components: S, how many Gaussian components each posterior is a mixture of (1: not a
            mixture). A posterior's mean is ``… x S x q x 1`` then, and an acquisition value is
            averaged over the S components.
        source: name of the surrogate that fitted it, which may be the one fallen back to.
        notes: what should be reported: a fallback and its cause.
    """

    model: ModelList
    components: int
    source: str
    notes: tuple[str, ...] = ()


@runtime_checkable
class ModelSurrogate(Protocol):
    """A surrogate with a model."""

    def fit(self, X: Tensor, Y: Tensor, seed: int) -> Fitted:
        """Fit one model per output.

        Args:
            X: ``n x d`` double tensor in the unit cube, n ≥ 1; rows may repeat.
            Y: ``n x m`` double tensor, to be maximised, finite; columns may be constant.
            seed: all randomness derives from it; the global generators are neither used nor
                changed.

        Raises:
            SurrogateFailed: no model could be fitted.
            ValueError: shapes do not fit, or a value is not finite.
        """
        ...


@runtime_checkable
class Sampler(Protocol):
    """What proposes from the space directly, without a model."""

    def configs(self, space: MemorySpace, seen: Collection[str], count: int, seed: int) -> list[MemoryConfig]:
        """Up to ``count`` configurations with distinct placements, none empty and none in ``seen``.

        Args:
            space: where to propose.
            seen: placement keys that must not be proposed.
            count: how many are wanted.
            seed: of this batch.
        """
        ...


@runtime_checkable
class PlanSampler(Protocol):
    """A sampler that is somebody else's optimiser: it models and proposes by itself."""

    def candidates(self, plan: Plan) -> Candidates:
        """Up to ``plan.count`` candidates of distinct placements, none empty or seen.

        Raises:
            SurrogateFailed: it gave up.
        """
        ...


Surrogate = ModelSurrogate | Sampler | PlanSampler


def check_data(X: Tensor, Y: Tensor) -> None:
    """Check what :meth:`ModelSurrogate.fit` was given.

    Raises:
        ValueError: shapes or number types do not fit, n = 0, X leaves the unit cube, or a value is
            not finite.
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or len(X) == 0:
        raise ValueError(
            f"expected X n x d and Y n x m with n >= 1, got {tuple(X.shape)} and {tuple(Y.shape)}"
        )
    if str(X.dtype) != "torch.float64" or str(Y.dtype) != "torch.float64":
        raise ValueError("expected double tensors")
    if not bool(X.isfinite().all()) or not bool(Y.isfinite().all()):
        raise ValueError("X and Y must be finite")
    if bool((X < 0).any()) or bool((X > 1).any()):
        raise ValueError("X must lie in the unit cube")
