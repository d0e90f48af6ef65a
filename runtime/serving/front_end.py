"""A front end: a process that takes requests, decodes images and writes answers, for a model in another process."""

import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.interrupts import NAMES
from runtime.messages import said
from runtime.serving.exchange import Listening, ModelFacts, NotStarted
from runtime.serving.options import ServingOptions
from runtime.streams import safe_streams

if TYPE_CHECKING:
    from runtime.serving.remote_runner import Link

NOT_STARTED, LOST = 2, 3
_WATCH_SECONDS = 0.25
_SHARED = ("max_queue", "max_memory_bytes", "max_connections")


@dataclass(frozen=True)
class FrontEndPlan:
    """What a front end is told.

    Attributes:
        index: its number among them.
        models: by name; the first is the default.
        options: its own, see ``share_of``.
        family, place: where it listens, as ``reserved_socket`` has it.
        folder: of the metrics of all front ends.
        threads: that decode images, of each model, and that write answers.
    """

    index: int
    models: Mapping[str, ModelFacts]
    options: ServingOptions
    family: int
    place: tuple[Any, ...]
    folder: str
    threads: int


def share_of(options: ServingOptions, index: int, number: int) -> ServingOptions:
    """Return the options of one of several front ends, whose limits together are those of the service.

    Queue, memory and connections are divided, so that each has 1 at least. What never has room in a front end's part is
    too large (413): a body, a request of many images.
    """
    parts = {}
    for name in _SHARED:
        whole, rest = divmod(getattr(options, name), number)
        parts[name] = max(1, whole + (index < rest))
    return replace(
        options,
        **parts,
        max_body_bytes=min(options.max_body_bytes, parts["max_memory_bytes"]),
        max_images=min(options.max_images, parts["max_queue"]),
    )


def ignored_signals() -> list[int]:
    """Return the signals that a front end leaves to the process that has started it."""
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def run_front_end(plan: FrontEndPlan, connection: Connection) -> None:
    """Serve until the model's process says that it is over, or ends; this process ends with it.

    Args:
        plan: what to do.
        connection: to the model's process.
    """
    _leave_signals()
    status = NOT_STARTED
    try:
        with safe_streams():
            status = _run(plan, connection)
    except Exception:
        traceback.print_exc()
    # Not by Python's own way: a thread that still writes a line, which nobody reads, would be waited for.
    os._exit(status)


def _leave_signals() -> None:
    """Ignore the signals of a terminal or a supervisor, which go to all processes; they were blocked until now."""
    numbers = ignored_signals()
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _run(plan: FrontEndPlan, connection: Connection) -> int:
    from runtime.serving.metrics import FOLDER_VARIABLE

    os.environ[FOLDER_VARIABLE] = plan.folder
    from runtime.serving.remote_runner import Link
    from runtime.serving.server import LineLog, serve

    link = Link(connection, partial(_lost, plan.folder))
    try:
        app, opened = _opened(plan, link, log := LineLog(lambda line: print(line, flush=True)))
    except (OSError, ValueError, RuntimeError) as error:
        link.send(NotStarted(said(error)))
        return NOT_STARTED
    link.send(Listening())
    with log:
        serve(app, opened, link.is_over)
    return 0


def _opened(plan: FrontEndPlan, link: "Link", log: Any) -> tuple[Any, Any]:
    """Return the app, and the socket at which it listens."""
    from runtime.serving.app import app_of, check_installed
    from runtime.serving.metrics import Metrics
    from runtime.serving.remote_runner import remote_models
    from runtime.serving.remote_service import RemoteService
    from runtime.serving.server import shared_socket

    check_installed()
    metrics = Metrics(Path(plan.folder), plan.index)
    models = remote_models(link, plan.models)
    service = RemoteService(link, models, plan.options, metrics=metrics, threads=plan.threads)
    threading.Thread(target=_watch, args=(link, metrics), daemon=True, name="watch").start()
    return app_of(service, log=log), shared_socket(plan.family, plan.place)


def _watch(link: "Link", metrics: Any) -> None:
    """Keep in touch with the model's process, and have the other front ends know how long the queue is."""
    with suppress(RuntimeError, OSError):  # the model's process has ended, and this one ends
        while True:
            link.keep_up()
            metrics.refresh()
            time.sleep(_WATCH_SECONDS)


def _lost(folder: str) -> None:
    """End at once: the model's process has ended, and cannot remove its folder any more."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(LOST)
