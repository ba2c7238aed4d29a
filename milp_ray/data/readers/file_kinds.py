"""What a file that is not JSON lines is instead, told from its first bytes.

Whoever names a parquet file, an archive or a spreadsheet as ``data.path`` is told so in one
problem, not that each of its lines is damaged. Only gzip is unpacked on the way
(:mod:`milp_ray.data.readers.strict`); the rest is for its owner to convert. Nothing of the content
is ever part of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 1 << 16
"""How much of a file's beginning tells its kind."""

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"

Content = Literal["JSON lines", "JSON", "text", "table"]
"""What a reader's format has in a file: a JSON value a line, one JSON value, any text, or a table
(text, JSON or parquet)."""

EXPECTED: Mapping[Content, str] = {
    "JSON lines": "JSON lines in UTF-8, one user a line (docs/data.md)",
    "JSON": "the JSON file of data.format",
    "text": "a text of data.format, in UTF-8",
    "table": "a table: CSV, TSV, JSON, JSON lines (in UTF-8) or parquet",
}


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is, and how JSON lines are made of it."""

    fact: str
    remedy: str


def _compressed(name: str, program: str) -> FileKind:
    return FileKind(
        f"is compressed ({name})", f"unpack it ({program}), or compress it with gzip, which is read"
    )


def _table(name: str) -> FileKind:
    return FileKind(f"is {name}", "write its rows as CSV or parquet, and read them with data.format: table")


def _readable_table(name: str) -> FileKind:
    remedy = "read it with data.format: table, and say in data.columns what its columns are (docs/data.md)"
    return FileKind(f"is {name}", remedy)


_ARCHIVE = "unpack it, and name the file inside that holds the users"
_DOCUMENT = "save what is in it as CSV (data.format: table), or as JSON lines: docs/data.md has the keys"
_ONE_A_LINE = (
    "write one user a line, without brackets and commas around them (jq -c '.[]' does so for a list); "
    "rows of a table are read with data.format: table (docs/data.md)"
)

# By the bytes that a file of the kind begins with; longer beginnings first where one begins
# another.
_MAGIC: tuple[tuple[bytes, FileKind], ...] = (
    (b"\x28\xb5\x2f\xfd", _compressed("zstd", "unzstd")),
    (b"\xfd7zXZ\x00", _compressed("xz", "unxz")),
    (b"BZh", _compressed("bzip2", "bunzip2")),
    (b"\x04\x22\x4d\x18", _compressed("lz4", "unlz4")),
    (b"7z\xbc\xaf\x27\x1c", FileKind("is a 7z archive", _ARCHIVE)),
    (b"Rar!\x1a\x07", FileKind("is a rar archive", _ARCHIVE)),
    (PARQUET, _readable_table("a parquet file")),
    (b"PARE", _table("an encrypted parquet file")),
    (b"ARROW1", _table("an Arrow (Feather) file")),
    (b"FEA1", _table("a Feather file")),
    (b"\xff\xff\xff\xff", _table("a stream of Arrow batches")),
    (b"ORC", _table("an ORC file")),
    (b"Obj\x01", _table("an Avro file")),
    (b"SQLite format 3\x00", _table("an SQLite database")),
    (b"\x89HDF\r\n\x1a\n", _table("an HDF5 file")),
    (b"\x93NUMPY", _table("a NumPy array")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileKind("is an old Office document (xls, doc)", _DOCUMENT)),
    (b"%PDF", FileKind("is a PDF", _DOCUMENT)),
    (b"{\\rtf", FileKind("is an RTF document", _DOCUMENT)),
    (b"\x89PNG", FileKind("is an image (PNG)", "correct data.path")),
    (b"\xff\xd8\xff", FileKind("is an image (JPEG)", "correct data.path")),
    (b"-----BEGIN PGP", FileKind("is encrypted (PGP)", "decrypt it to a private place first")),
    (b"age-encryption.org/", FileKind("is encrypted (age)", "decrypt it to a private place first")),
    (
        b"version https://git-lfs.github.com/spec/",
        FileKind("is a Git LFS pointer, not the data itself", "fetch the data: git lfs pull"),
    ),
)
# Without what Unicode allows before them; compared in lower case.
_MARKUP = (b"<!doctype html", b"<html")
_UTF8_MARK = b"\xef\xbb\xbf"


def kind_of_file(head: bytes, content: Content = "JSON lines") -> FileKind | None:
    """What a file is by its first bytes; None where it may be what its reader reads.

    Args:
        head: up to :data:`HEAD_BYTES` bytes.
        content: what the reader reads.
    """
    if content == "table" and head.startswith(PARQUET):
        return None
    if found := _binary_kind(head):
        return found
    return _text_kind(head) if content == "JSON lines" else None


def _binary_kind(head: bytes) -> FileKind | None:
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    if head[257:262] == b"ustar":
        return FileKind("is a tar archive", _ARCHIVE)
    if encoding := _wide_encoding(head):
        remedy = f"save it as UTF-8: iconv -f {encoding} -t UTF-8 OLD > NEW"
        return FileKind(f"is {encoding} text", remedy)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _table("a Python pickle")
    if head.removeprefix(_UTF8_MARK).lstrip()[:14].lower().startswith(_MARKUP):
        return FileKind("is a web page (HTML), such as an error in place of a download", "download it again")
    return None


def _zip_kind(head: bytes) -> FileKind:
    """Spreadsheets and text documents are zip archives, too: their first entries tell."""
    if b"xl/" in head or b"[Content_Types].xml" in head[:100]:
        return FileKind("is an Office document (xlsx, docx)", _DOCUMENT)
    if b"mimetypeapplication/vnd.oasis" in head[:100]:
        return FileKind("is an OpenDocument file (ods, odt)", _DOCUMENT)
    if b".npy" in head[:100]:
        return _table("an archive of NumPy arrays")
    return FileKind("is a zip archive", _ARCHIVE)


def _wide_encoding(head: bytes) -> str:
    """UTF-32 or UTF-16, by its mark or by the zero bytes of ASCII in it; empty for neither."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    start = head[:64]
    if len(start) >= 4 and start.isascii():
        if not any(start[0::2]) and all(start[1::2]):
            return "UTF-16BE"
        if not any(start[1::2]) and all(start[0::2]):
            return "UTF-16LE"
    return ""


def _text_kind(head: bytes) -> FileKind | None:
    """A list or one value over several lines, or a table, where JSON lines should be."""
    text = head.removeprefix(_UTF8_MARK).decode("utf-8", errors="replace")
    lines = [line for line in text.split("\n") if line.strip()]
    if len(head) >= HEAD_BYTES and len(lines) > 1:
        lines.pop()  # may be cut
    if not lines:
        return None
    first = lines[0].strip()
    if first[0] in "[{":
        return _one_value(first, lines, cut=len(head) >= HEAD_BYTES)
    if len(lines) > 1 and (separator := _separator(lines)):
        return _readable_table("TSV (a table with tabs)" if separator == "\t" else "CSV (a table)")
    if first.startswith("<?xml"):
        return FileKind("is XML", _DOCUMENT)
    return None


def _one_value(first: str, lines: list[str], cut: bool) -> FileKind | None:
    """A file whose first value is not complete: a list of all users, or one over several lines.

    What follows goes on with that value. ``cut``: the file is longer than what is known of it.
    """
    if len(lines) == 1 and first[0] == "[" and (cut or _is_complete(first)):
        return FileKind("is one JSON list", _ONE_A_LINE)
    if _is_complete(first) or first[-1] not in "[{,:":
        return None
    if _goes_on("\n".join(lines[:64])):
        what = "list" if first[0] == "[" else "value"
        return FileKind(f"is one JSON {what} over several lines", _ONE_A_LINE)
    return None


def _is_complete(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:
        return True  # whose line it is, is said by the reader
    return True


def _goes_on(text: str) -> bool:
    """Whether a text is the beginning of one JSON value, or all of it."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return True


def _separator(lines: list[str]) -> str:
    """What divides a table's cells, by its header and next line; empty where it is none."""
    for separator in ("\t", ",", ";", "|"):
        header = lines[0].split(separator)
        names = [name.strip().strip('"') for name in header]
        short = all(0 < len(name) <= 40 and not set(name) & set("{}[]:") for name in names)
        if len(header) > 1 and short and lines[1].count(separator) >= len(header) - 1:
            return separator
    return ""
