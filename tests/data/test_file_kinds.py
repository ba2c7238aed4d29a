"""A file of another kind altogether is one problem, which says what it is; what gzip packed is
read."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from milp_ray.config.models import DataSettings
from milp_ray.data.readers import read_users, strict
from milp_ray.errors import DataError

SECRET = "zq canary zq"


def user(number: int) -> dict[str, object]:
    samples = [{"query": f"what, {SECRET}?", "response": "well", "n_hist": 1}]
    return {"user_id": f"{SECRET} {number}", "history": [f"one, {SECRET}", "two"], "samples": samples}


USERS = [user(number) for number in range(30)]
LINES = "".join(json.dumps(record) + "\n" for record in USERS).encode()


def refusal(path: Path, format: str = "jsonl") -> str:
    with pytest.raises(DataError) as caught:
        read_users(DataSettings(path=str(path), format=format))
    assert len(caught.value.problems) == 1 and SECRET not in str(caught.value)
    return str(caught.value)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _table() -> pd.DataFrame:
    return pd.DataFrame({"user_id": [SECRET, "b"], "history": ["x", "y"], "samples": ["p", "q"]})


def _zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, LINES)
    return out.getvalue()


def _tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        entry = tarfile.TarInfo("users.jsonl")
        entry.size = len(LINES)
        file.addfile(entry, io.BytesIO(LINES))
    return out.getvalue()


def _sqlite() -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("create table users (name)")
    return database.serialize()


def _parquet() -> bytes:
    return _table().to_parquet()


def _feather() -> bytes:
    out = io.BytesIO()
    _table().to_feather(out)
    return out.getvalue()


def _numpy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


def _compressed(name: str) -> Callable[[], bytes]:
    import bz2
    import lzma

    return lambda: {"bz2": bz2.compress, "xz": lzma.compress}[name](LINES)


KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "bz2": (_compressed("bz2"), "is compressed (bzip2)"),
    "xz": (_compressed("xz"), "is compressed (xz)"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd\x04\x58" + bytes(40), "is compressed (zstd)"),
    "zip": (lambda: _zipped("users.jsonl"), "is a zip archive"),
    "xlsx": (lambda: _zipped("[Content_Types].xml"), "is an Office document"),
    "tar": (_tarred, "is a tar archive"),
    "tar.gz": (lambda: gzip.compress(_tarred()), "is compressed (gzip), and inside is a tar archive"),
    "parquet": (_parquet, "is a parquet file"),
    "feather": (_feather, "is an Arrow (Feather) file"),
    "sqlite": (_sqlite, "is an SQLite database"),
    "npy": (_numpy, "is a NumPy array"),
    "pickle": (lambda: pickle.dumps(USERS), "is a Python pickle"),
    "pdf": (lambda: b"%PDF-1.7\n" + LINES, "is a PDF"),
    "html": (lambda: b"\n<!DOCTYPE html><html>no such file", "is a web page (HTML)"),
    "xml": (lambda: b'<?xml version="1.0"?>\n<users/>', "is XML"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "is a Git LFS pointer",
    ),
    "utf-16": (lambda: LINES.decode().encode("utf-16"), "is UTF-16 text"),
    "utf-16 without a mark": (lambda: LINES.decode().encode("utf-16-le"), "is UTF-16LE text"),
    "utf-32": (lambda: LINES.decode().encode("utf-32"), "is UTF-32 text"),
    "list on one line": (lambda: json.dumps(USERS).encode(), "is one JSON list\n"),
    "long list on one line": (lambda: json.dumps(USERS * 99).encode(), "is one JSON list\n"),
    "list of one user a line": (
        lambda: ("[\n" + ",\n".join(map(json.dumps, USERS)) + "\n]\n").encode(),
        "is one JSON list over several lines",
    ),
    "pretty list": (lambda: json.dumps(USERS, indent=2).encode(), "is one JSON list over several lines"),
    "pretty long list": (
        lambda: json.dumps(USERS * 99, indent=2).encode(),
        "is one JSON list over several lines",
    ),
    "pretty object": (
        lambda: b"\xef\xbb\xbf" + json.dumps({"users": USERS}, indent=1).encode(),
        "is one JSON value over several lines",
    ),
    "csv": (lambda: _table().to_csv(index=False).encode(), "is CSV (a table)"),
    "semicolons": (lambda: _table().to_csv(index=False, sep=";").encode(), "is CSV (a table)"),
    "tsv": (lambda: _table().to_csv(index=False, sep="\t").encode(), "is TSV (a table with tabs)"),
    "prose": (lambda: f"{SECRET}.\nIt is fine.\n".encode() * 30, "none of its 60 lines is a user record"),
    "latin-1": (lambda: b'{"user_id": "\xe9"}\n' * 30, "line 1 (byte 13): is not UTF-8"),
    "other keys": (
        lambda: b'{"messages": [{"role": "user", "content": "hi"}]}\n' * 30,
        "lines is a user record (line 1 (byte 0): the object has none of a user record's keys)",
    ),
    "lists": (lambda: b'["a", "b"]\n' * 30, "none of its 30 lines is a user record"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_one_problem(tmp_path: Path, kind: str) -> None:
    make, fact = KINDS[kind]
    text = refusal(written(tmp_path / "users.jsonl", make()))
    assert fact in text and "docs/data.md" in text and "remedy: " in text
    if kind in ("parquet", "csv", "semicolons", "tsv"):
        assert "data.format: table" in text and "data.columns" in text


def test_text_in_another_encoding_is_to_be_saved_as_utf8(tmp_path: Path) -> None:
    """Whose keys are right: "convert it" would send people after them."""
    latin = LINES.replace(b'"history": [', '"history": ["café", '.encode("latin-1"))
    assert latin != LINES
    text = refusal(written(tmp_path / "users.jsonl", latin))
    assert "is not UTF-8" in text and "iconv -f LATIN1 -t UTF-8" in text and "the keys" not in text


@pytest.mark.parametrize("kind", ["parquet", "utf-16", "zip", "tar.gz"])
def test_the_other_readers_know_them_too(tmp_path: Path, kind: str) -> None:
    make, fact = KINDS[kind]
    assert fact in refusal(written(tmp_path / "dialogues.json", make()), "malp")


def test_a_damaged_line_is_still_said_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    for torn in (b'{"user_id": "a",', b'{"user_id": "a", "history": [', b"[1]", b'{"user_id": '):
        text = refusal(written(path, torn + b"\n" + LINES))
        assert f"{path}:1 (byte " in text
    assert f"{path}:31 (byte " in refusal(written(path, LINES + b'{"user_id": "a",'))


def test_what_gzip_packed_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in ("users.jsonl.gz", "users.jsonl"):
        found = read_users(DataSettings(path=str(written(tmp_path / name, gzip.compress(LINES)))))
        assert len(found.users) == len(USERS)
        assert found.fingerprint == hashlib.sha256(LINES).hexdigest(), "packed again, it is the same data"
    dialogue = [
        [{"0": {"Assistant": "Hello.", "User": "I am ill."}}, {"1": {"Assistant": "Rest.", "User": ""}}]
    ]
    packed = gzip.compress(json.dumps(dialogue).encode())
    found = read_users(DataSettings(path=str(written(tmp_path / "d.json", packed)), format="malp"))
    assert len(found.users) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "more"])
def test_what_gzip_packed_and_is_damaged_is_no_shorter_data(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(LINES))
    if damage == "cut":
        del packed[-20:]
    elif damage == "changed":
        packed[-6] ^= 255
    else:
        packed += b"tail"
    assert "is damaged or cut off (gzip)" in refusal(written(tmp_path / "users.jsonl.gz", bytes(packed)))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "_UNPACKED_AT_LEAST", 1 << 16)
    path = written(tmp_path / "users.jsonl", gzip.compress(LINES + b"\n" * (1 << 22)))
    assert "unpacks to more than" in refusal(path)
    assert "unpacks to more than" in refusal(path, "malp")
