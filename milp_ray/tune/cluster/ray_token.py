"""Where Ray looks for a cluster's token: one order for drivers, which ask whether there is one, and for the
job client, which sends it. What a token may look like is not looked at here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def token_source(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> str | Path | None:
    """RAY_AUTH_TOKEN's value, else the file of RAY_AUTH_TOKEN_PATH, else ``~/.ray/auth_token`` if it exists.

    Returns:
        The token itself (str), the file that should hold it (Path), or None: there is none.
    """
    if given := environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    if named := environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(named)
    default = (home or Path.home()) / ".ray" / "auth_token"
    return default if default.is_file() else None
