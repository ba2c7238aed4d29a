"""Signals are never lost, wherever in the run they arrive."""

from __future__ import annotations

import contextlib
import signal
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest

from milp_ray.study.stopping import signals_interrupt, stop_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """As in a shell's foreground, whatever these tests were started by."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def swallowed(number: int) -> None:
    """A signal whose KeyboardInterrupt is dropped, as within a weak reference's callback."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(number)
        raise AssertionError("went on")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_swallowed_interrupt_ends_the_block(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        swallowed(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_swallowed_interrupt_ends_the_run_before_it_begins(number: int) -> None:
    began = False
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        swallowed(number)
        with stop_on_signals(lambda text: None):
            began = True
    assert not began


def test_of_what_python_drops_only_interrupts_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: printed.append(dropped.exc_type))

    def in_a_callback(what: Callable[[], object]) -> None:
        thing = set[int]()
        watch = weakref.ref(thing, lambda _: what())
        del thing
        assert watch() is None

    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        in_a_callback(lambda: signal.raise_signal(signal.SIGTERM))
        in_a_callback(lambda: 1 // 0)
    assert printed == [ZeroDivisionError]
    in_a_callback(lambda: 1 // 0)
    assert printed == [ZeroDivisionError] * 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_is_obeyed_later_and_said_once(number: int) -> None:
    said: list[str] = []
    with signals_interrupt(), stop_on_signals(said.append) as stopping:
        assert not stopping()
        signal.raise_signal(number)
        assert stopping() and stopping.signal == number
    assert len(said) == 1


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with signals_interrupt(), stop_on_signals(lambda text: None):
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_nohup_keeps_its_meaning() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_interrupt():
        signal.raise_signal(signal.SIGHUP)
        with stop_on_signals(lambda text: None) as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert not stopping()
            signal.raise_signal(signal.SIGTERM)
            assert stopping()
