"""Ctrl-C, SIGTERM and a lost terminal (SIGHUP): requests obeyed between two slices.

The first signal asks; the second ends the process as if nothing handled it. Install it after Ray
has been started: Ray sets a handler of its own for SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


class _Interrupt:
    """A handler that ends what runs by KeyboardInterrupt, and remembers that it did.

    Python drops an exception that a handler raises inside a callback of its own, such as the weak
    references of the import system: a run that is importing when the signal comes would go on as if
    nothing had been.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        raise KeyboardInterrupt

    def raise_again(self) -> None:
        """KeyboardInterrupt, where one was raised and went nowhere."""
        if self.signal is not None:
            raise KeyboardInterrupt


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does, for parts too short to ask for a stop.

    None of the three is lost: one whose KeyboardInterrupt was swallowed ends the block, or the next
    :func:`stop_on_signals` within it, at its first line.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt = _Interrupt()
    with _handled_by(interrupt), _unsaid():
        yield
        interrupt.raise_again()


@contextmanager
def stop_on_signals(notify: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a :class:`StopRequest` for a ``with`` block.

    ``notify`` is called once, with what to tell the person at the keyboard. Outside the main thread
    (a notebook's worker, a test) signals cannot be handled, and the request is only ever set by
    hand.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        request.signal = number
        notify("stopping: running trials end within seconds (a second signal ends at once)")

    with _handled_by(ask) as before:
        for handler in before.values():
            if isinstance(handler, _Interrupt):
                handler.raise_again()
        yield request


@contextmanager
def _unsaid() -> Iterator[None]:
    """Print no traceback of an interruption that Python drops; it is not lost, see above."""
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None],
) -> Iterator[Mapping[signal.Signals, object]]:
    """``handler`` for the three signals; yields, and puts back, the handlers before it.

    SIGHUP stays ignored where it was: that is what `nohup` is for.
    """
    kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {n: signal.signal(n, handler) for n in _SIGNALS if not (kept and n == signal.SIGHUP)}
    try:
        yield before
    finally:
        for number, former in before.items():
            signal.signal(number, former)
