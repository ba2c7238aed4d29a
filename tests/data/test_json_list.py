"""A JSON list is read item by item as the whole of it would be, whatever pieces it comes in."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milp_ray.data.readers import json_list
from milp_ray.data.readers.json_list import JsonList
from milp_ray.data.readers.strict import Fault, parse
from milp_ray.errors import DataError

SECRET = "zq canary zq"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(path: Path, raw: bytes) -> list[object]:
    path.write_bytes(raw)
    return list(JsonList(path, "a list"))


def fault(path: Path, raw: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(path, raw)
    (problem,) = caught.value.problems
    assert SECRET not in str(caught.value)
    return f"{problem.where}: {problem.fact}"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    items=st.lists(values, max_size=5),
    chunk=st.integers(1, 40),
    ascii=st.booleans(),
    indent=st.none() | st.just(1),
)
def test_items_are_those_of_the_whole_list_in_whatever_pieces(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    items: list[object],
    chunk: int,
    ascii: bool,
    indent: int | None,
) -> None:
    raw = json.dumps(items, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    assert read(tmp_path / "list.json", raw) == items


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    items=st.lists(values, min_size=1, max_size=4),
    place=st.integers(0, 200),
    noise=st.sampled_from('x",[]{}:\\1é'),
    chunk=st.integers(1, 40),
)
def test_a_damaged_list_is_refused_where_the_whole_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: list[object], place: int, noise: str, chunk: int
) -> None:
    text = json.dumps(items)
    place %= len(text)
    raw = (text[:place] + noise + text[place + 1 :]).encode()
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    path = tmp_path / "list.json"
    try:
        whole = parse(raw)
    except Fault:
        fault(path, raw)
        return
    if isinstance(whole, list):
        assert read(path, raw) == whole
    else:
        fault(path, raw)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_faults_have_the_byte_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    path = tmp_path / "list.json"
    for raw, told in {
        b'[{"a": 1}, {"a": x}]': "byte 17: is not valid JSON (expecting value)",
        '["é", x]'.encode(): "byte 7: is not valid JSON (expecting value)",
        b"\xef\xbb\xbf[x]": "byte 4: is not valid JSON (expecting value)",
        b'[1, "zq canary zq]': "byte 4: is not valid JSON (unterminated string starting at)",
        b"[1, 2": "byte 5: is not valid JSON (expecting ',' delimiter)",
        b"[1 2]": "byte 4: is not valid JSON (expecting ',' delimiter)",
        b"[1] 2": "byte 4: is not valid JSON (extra data)",
        b'[1, {"a": NaN}]': "byte 4: holds NaN or Infinity",
        b'[1, {"a": 1, "a": 2}]': "byte 4: an object has the same key twice",
        b'["a", "\xff"]': "byte 7: is not UTF-8",
        b'{"a": []}': "byte 0: the file is an object",
        b"": "byte 0: the file is empty",
    }.items():
        assert fault(path, raw) == told
    monkeypatch.setattr(json_list, "_CHUNK", 9)
    monkeypatch.setattr(json_list, "MAX_ITEM_CHARACTERS", 50)
    assert "an item of more than 50 characters" in fault(path, json.dumps([SECRET * 60]).encode())


def test_memory_holds_an_item_and_not_the_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    raw = b"[" + b",".join(json.dumps({"text": "x" * 1000}).encode() for _ in range(12_000)) + b"]"
    path.write_bytes(raw)
    items = JsonList(path, "a list")
    tracemalloc.start()
    try:
        count = sum(1 for _ in items)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 12_000 and items.fingerprint == hashlib.sha256(raw).hexdigest()
    assert peak < len(raw) / 2, "12 MB in a list"
