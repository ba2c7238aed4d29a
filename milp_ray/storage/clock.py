"""How much time has passed, for a lease; the machine may have been suspended meanwhile."""

from __future__ import annotations

import time
from typing import NamedTuple


class Instant(NamedTuple):
    """A moment, by this machine's two clocks, in seconds."""

    boot: float
    wall: float


class Clock:
    """This machine's clocks.

    ``time.monotonic`` stands still while a machine is suspended. The boot clock (Linux) goes on.
    Both stand still while a hypervisor holds a virtual machine, whose wall clock jumps once it is
    corrected.
    """

    def boot(self) -> float:
        """Seconds since the machine started, suspensions included where the system counts them."""
        clock = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic() if clock is None else time.clock_gettime(clock)

    def wall(self) -> float:
        """Seconds since 1970, as this machine believes."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def now(self) -> Instant:
        """This moment, to be handed to :meth:`at_most` later."""
        return Instant(self.boot(), self.wall())

    def at_most(self, since: Instant) -> float:
        """Seconds that have passed at most: what the clock that went further says."""
        return max(self.boot() - since.boot, self.wall() - since.wall)


CLOCK = Clock()
