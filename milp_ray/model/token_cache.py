"""Token ids of the users seen last, so that the trials of one user encode their texts once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

Made = TypeVar("Made")


class TokenCache:
    """Encoded texts of the users seen last, least recently used first out.

    The key holds the texts themselves, so that an entry can never be stale.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._entries: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What is kept under ``key``, made by ``make`` when it is not."""
        if key not in self._entries:
            self._entries[key] = make()
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return self._entries[key]  # type: ignore[return-value]

    def clear(self) -> None:
        """Forget every user's tokens."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
