"""Signals in one process: once, in the right places, and as before afterwards."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from runtime import interrupts
from runtime.interrupts import Interrupted, check, handled, held, received, released

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def _send(number: int) -> None:
    """Send a signal to this process and give its handler time."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_an_exception(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in NUMBERS]
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}") as error, handled():
        _send(number)
        pytest.fail("was not interrupted")
    assert error.value.exit_status == 128 + number
    assert [signal.getsignal(n) for n in NUMBERS] == before
    assert received() is None


def test_cleaning_up_is_not_cut_by_the_next_signal() -> None:
    cleaned = []
    with pytest.raises(Interrupted, match="SIGTERM"), handled():
        try:
            _send(signal.SIGTERM)
        finally:
            _send(signal.SIGINT)
            cleaned.append(True)
    assert cleaned == [True]


def test_what_is_held_waits() -> None:
    done = []
    with handled():
        with pytest.raises(Interrupted), held():
            with released():
                done.append("before")
            _send(signal.SIGINT)
            done.append("not cut")
            check()
            done.append("checks wait too")
            with released():
                done.append("never")
        with held(), released():
            done.append("once")
        assert received() == signal.SIGINT
        with pytest.raises(Interrupted):
            check()
    assert done == ["before", "not cut", "checks wait too", "once"]


def test_an_exception_that_was_lost_is_raised_again() -> None:
    with pytest.raises(Interrupted), handled():
        with suppress(Interrupted):  # as native code does
            _send(signal.SIGTERM)
        check()


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            _send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_leaves_signals_alone() -> None:
    seen = []

    def work() -> None:
        with handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_no_thread_and_no_descriptor_is_left() -> None:
    def count() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    with handled():
        pass
    before = count()
    for _ in range(20):
        with handled():
            pass
    assert count() == before
    assert signal.set_wakeup_fd(-1) == -1
    assert interrupts.received() is None
