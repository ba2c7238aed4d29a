"""The cache of encoded texts forgets whom it has not seen longest."""

from __future__ import annotations

from milp_ray.model.token_cache import TokenCache


def test_cache_forgets_the_least_used() -> None:
    cache, made = TokenCache(2), []

    def make(value: str) -> str:
        made.append(value)
        return value

    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: make(key)) == key  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    cache.clear()
    assert len(cache) == 0
