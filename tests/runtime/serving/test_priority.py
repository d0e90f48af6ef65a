"""Threads that compute wait for those that answer."""

import os
import sys
import threading
from pathlib import Path

import pytest

from runtime.serving.priority import yielding

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a niceness of each thread is Linux's")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_model_and_what_it_starts_yield_and_the_caller_does_not() -> None:
    before, found = niceness(), []

    def opens_a_model() -> str:
        found.append(niceness())
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join(10)
        return "model"

    assert yielding(opens_a_model) == "model"
    assert found == [min(before + 5, 19)] * 2
    assert niceness() == before


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(FileNotFoundError):
        yielding(lambda: Path("/no/such/file").read_bytes())
