"""The registry of surrogates and samplers: names to classes, whose options are checked at once.

To add one: a module in this folder whose class is decorated with ``@register("name")``, and its
name in the list below (one that needs Ax stands in :mod:`milp_ray.search.ax`); it then has to pass
tests/search/surrogates/test_surrogates.py. Checking a name and its options imports nothing heavy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from milp_ray.errors import SearchError
from milp_ray.registry import Registry
from milp_ray.search.surrogates.base import ModelSurrogate, PlanSampler, Sampler, Surrogate

Factory = Callable[..., Surrogate]

_REGISTRY: Registry[Factory] = Registry(
    "surrogate",
    [*(f"{__name__}.{m}" for m in ("gp", "map_saas", "saas", "samplers")), "milp_ray.search.ax.generator"],
)
register = _REGISTRY.register
surrogate_names = _REGISTRY.names


def check_surrogate(name: str, options: Mapping[str, object] | None = None) -> None:
    """Check a name and its options.

    Raises:
        SearchError: see :func:`make_surrogate`.
    """
    make_surrogate(name, options)


def make_surrogate(name: str, options: Mapping[str, object] | None = None) -> Surrogate:
    """The surrogate called ``name``.

    Args:
        name: as registered.
        options: keyword arguments of its class.

    Raises:
        SearchError: the name or an option is unknown, or an option has a value that it cannot have.
    """
    factory = _REGISTRY.find(name)
    if factory is None:
        raise SearchError(
            "no such surrogate or sampler",
            where="search.surrogate",
            expected=f"one of {', '.join(surrogate_names())}",
            remedy=_REGISTRY.hint(name),
        )
    known = list(inspect.signature(factory).parameters)
    if set(options or {}) - set(known):
        raise SearchError(
            f"surrogate {name} does not have all of these options",
            expected=f"some of {', '.join(known)}" if known else "no options",
        )
    return factory(**(options or {}))


__all__ = [
    "ModelSurrogate",
    "PlanSampler",
    "Sampler",
    "Surrogate",
    "check_surrogate",
    "make_surrogate",
    "register",
    "surrogate_names",
]
