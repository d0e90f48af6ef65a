"""Signals in one process: once, in the right places, and as before afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from runtime import interrupts
from runtime.interrupts import Interrupted, check, handled, held, received, released
from tests.runtime.processes import ROOT, SECONDS, first_line, interrupt, start

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


LOADING = """
import time
from runtime.interrupts import handled, loading
from runtime.files import whole_file
with handled(None), whole_file({path!r}):
    try:
        with loading():
            print("loading", flush=True)
            {wait}
    finally:
        print("an exception", flush=True)
"""
WAITS = {
    "in Python": "time.sleep(600)",
    "in native code": "__import__('hashlib').pbkdf2_hmac('md5', b'', b'', 10**9)",
}


@pytest.mark.parametrize("where", WAITS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_libraries_load_the_process_ends_without_an_exception(
    number: signal.Signals, where: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING.format(path=str(tmp_path / "file"), wait=WAITS[where])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert first_line(process) == b"loading\n"
    code, printed, said, _ = interrupt(process, number)
    assert (code, printed, said) == (128 + number, "", f"interrupted by {number.name}: ended at once\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["runtime.infer", "export.maskrcnn"])
def test_a_command_that_has_not_begun_ends_without_a_traceback(module: str, tmp_path: Path) -> None:
    """Its module is imported, and waits there."""
    (tmp_path / "argparse.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    process = start(module, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, stdout=subprocess.PIPE)
    assert first_line(process) == b"importing\n"
    code, _, said, _ = interrupt(process, signal.SIGINT)
    assert (code, said) == (-signal.SIGINT, "")


def test_importing_the_package_leaves_signals_alone() -> None:
    """Also where another program is run with -m, and where it is no program."""
    program = "import signal, runtime; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run(
        [sys.executable, "-c", program, "-m", "runtime.infer"], cwd=ROOT, check=True, timeout=SECONDS
    )


def test_another_thread_leaves_signals_alone() -> None:
    seen = []

    def work() -> None:
        with handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()
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
