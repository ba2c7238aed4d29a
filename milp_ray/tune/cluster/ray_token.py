"""Where Ray looks for a cluster's token, for drivers and for the job client alike.

Drivers ask whether there is a token; the job client sends it. This module does not check what a
token looks like.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def token_source(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> str | Path | None:
    """RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, or ``~/.ray/auth_token`` if it exists.

    Returns:
        The token itself (str), the file that should hold it (Path), or None: there is none.
    """
    if given := environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    if named := environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(named)
    default = (home or Path.home()) / ".ray" / "auth_token"
    return default if default.is_file() else None
