"""URLs of run folders and data: what is one, which are usable, and which are refused.

Cheap to import: the libraries that open a URL are :mod:`milp_ray.storage.objects`'s.
"""

from __future__ import annotations

import re
from pathlib import Path

# Opened by pyarrow, which milp_ray needs anyway; all others by fsspec and a package for the scheme.
NATIVE = ("s3", "gs")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._=-]*)*/?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(text: str | Path) -> bool:
    """Whether it is a URL rather than a path: ``s3://bucket/runs``."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def has_credentials(text: str) -> bool:
    """Whether a URL has an ``@`` or a query, where secrets stand. It is not to be shown then."""
    return is_url(text) and re.search(r"[@?#]", text) is not None


def url_fault(url: str) -> str:
    """What should stand there instead of this URL; empty if it is usable. Never quotes the URL.

    Whether the place exists and may be used is not looked at.
    """
    found = _SCHEME.match(url)
    scheme = found.group(1) if found else ""
    if has_credentials(url):
        return (
            "a URL without credentials or a query: it is written to study.yaml and shown on the dashboard; "
            "give keys and the endpoint in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"
        )
    if scheme in ("file", "local"):
        return "the path itself, without file://"
    if not _URL.fullmatch(url):
        return f"{scheme}://bucket/folder, of letters, digits, '.', '_', '=' and '-'"
    if scheme in NATIVE:
        return ""
    from fsspec import available_protocols, get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:  # fsspec knows the scheme, and says which package is missing
        return f"a scheme whose package is installed ({error})"
    except ValueError:
        known = ", ".join(sorted({*NATIVE, *available_protocols()} - {"file", "local"}))
        return f"a URL of a scheme that is known here: {known}"
    return ""


def joined(url: str, name: str) -> str:
    """The URL of ``name`` below ``url``."""
    return f"{url.rstrip('/')}/{name}"
