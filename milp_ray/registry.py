"""Names for things that can be added to: readers, architectures, surrogates.

A registry refuses a name twice, loads the modules of its built-in entries when it is first asked,
and says what it knows. What an entry must be able to do is the business of the package that owns
the registry.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Generic, TypeVar

T = TypeVar("T")
Entry = TypeVar("Entry")


class Registry(Generic[T]):
    """Entries by name.

    Args:
        what: one of its things, for messages: "reader".
        modules: dotted names of modules that register built-in entries when they are imported. They
            are imported late, because they themselves import the module that owns the registry.
    """

    def __init__(self, what: str, modules: Sequence[str] = ()) -> None:
        self._what = what
        self._modules = tuple(modules)
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """A decorator that makes what it decorates known under ``names``.

        Raises:
            ValueError: a name is taken.
        """

        def add(entry: Entry) -> Entry:
            for name in names:
                if name in self._entries:
                    taken = self._entries[name]
                    raise ValueError(f"{self._what} {name!r} is registered already: {taken!r}")
                self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        for module in self._modules:
            import_module(module)
        return tuple(sorted(self._entries))

    def find(self, name: object) -> T | None:
        """The entry called ``name``, or None."""
        return self._entries[name] if isinstance(name, str) and name in self.names() else None

    def hint(self, name: object) -> str:
        """``did you mean 'saas'?``, or nothing if no name is near."""
        near = difflib.get_close_matches(str(name), self.names(), n=1)
        return f"did you mean {near[0]!r}?" if near else ""
