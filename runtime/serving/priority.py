"""Who waits for whom on a processor that has more to do than it can."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, TypeVar

Result = TypeVar("Result")
# Of nice: the threads that compute have a third of the weight of those that read requests and answer.
_NICENESS = 5


def yield_to_answers() -> None:
    """Let the calling thread, and those that it starts from now on, wait for the threads that answer.

    A refusal that is ready in a millisecond would otherwise wait for its turn behind a network's threads. Without
    contention nothing is slower. Linux only, where threads have a niceness of their own.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    own = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, min(own + _NICENESS, 19))


def yielding(call: Callable[[], Result]) -> Result:
    """Return what a function returns that is called in such a thread; a model that it opens has its threads from it."""
    with ThreadPoolExecutor(1, "opens-models", initializer=yield_to_answers) as threads:
        return threads.submit(call).result()
