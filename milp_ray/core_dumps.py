"""No core dumps of processes that hold users' texts: a crash must leave none on a disk.

Child processes inherit it, so it holds for a private Ray's processes, too, whose object store has
texts. A cluster's own processes are the cluster's to set.
"""

from __future__ import annotations

import contextlib
import resource

# Not 0: where core_pattern names a helper (systemd-coredump, apport), Linux minds no limit but
# exactly this one, with which it starts none (do_coredump in fs/coredump.c). A file would be
# larger: none is made either.
_LIMIT = 1


def no_core_dumps() -> None:
    """Forbid core dumps of this process and those that it starts from now on."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = _LIMIT if hard == resource.RLIM_INFINITY else min(_LIMIT, hard)
    with contextlib.suppress(OSError, ValueError):  # where a sandbox forbids it, there is nothing to be done
        resource.setrlimit(resource.RLIMIT_CORE, (limit, hard))
