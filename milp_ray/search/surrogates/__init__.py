"""The registry of surrogates: names to classes, with their options checked before anything heavy is imported.

To add one: a module in this folder whose class is decorated with ``@register("name")``, and its name in
``_MODULES``; it then has to pass tests/search/test_surrogates.py.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeVar

from milp_ray.errors import SearchError
from milp_ray.search.surrogates.base import FreeSurrogate, ModelSurrogate, Surrogate

_MODULES = ("free", "gp", "saas")
T = TypeVar("T", bound=Callable[..., Surrogate])

_KNOWN: dict[str, Callable[..., Surrogate]] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator that makes a surrogate known as ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def add(factory: T) -> T:
        if name in _KNOWN:
            raise ValueError(f"a surrogate named {name!r} is registered already: {_KNOWN[name]!r}")
        _KNOWN[name] = factory
        return factory

    return add


def surrogate_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    _load()
    return tuple(sorted(_KNOWN))


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
    _load()
    if name not in _KNOWN:
        near = difflib.get_close_matches(str(name), _KNOWN, n=1)
        raise SearchError(
            "no such surrogate",
            where="search.surrogate",
            expected=f"one of {', '.join(surrogate_names())}",
            remedy=f"did you mean {near[0]}?" if near else "",
        )
    known = list(inspect.signature(_KNOWN[name]).parameters)
    if set(options or {}) - set(known):
        raise SearchError(
            f"surrogate {name} does not have all of these options",
            expected=f"some of {', '.join(known)}" if known else "no options",
        )
    return _KNOWN[name](**(options or {}))


def _load() -> None:
    for module in _MODULES:
        import_module(f"milp_ray.search.surrogates.{module}")


__all__ = [
    "FreeSurrogate",
    "ModelSurrogate",
    "Surrogate",
    "check_surrogate",
    "make_surrogate",
    "register",
    "surrogate_names",
]
