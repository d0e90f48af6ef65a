"""The service behind a socket: connections that end in time, and an end that loses nothing."""

import asyncio
import logging
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Callable, Optional

from runtime.closing import Closing
from runtime.serving.connection import HEAD_BYTES, connection_class
from runtime.serving.descriptors import NUM_ACCEPTED, Shortage, num_connections
from runtime.serving.metrics import required
from runtime.serving.service import Service

BACKLOG = 2048
# A thread that computes gives the event loop its turn after so long; Python's own 5 ms would be paid several times a
# request.
_SWITCH_SECONDS = 0.0005
_MOST_LINES = 10_000


def opened_socket(address: str, port: int) -> socket.socket:
    """Return a socket that listens nowhere else than asked.

    Raises:
        ValueError: no such address, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        opened = socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ValueError(
            f"--address {address} --port {port}: expected an address of this machine and a free port, found: {error}; "
            "name others, or --port 0 for any"
        ) from error
    opened.setblocking(False)
    return opened


def reserved_socket(address: str, port: int) -> socket.socket:
    """Return a socket that does not listen, and keeps the port for those of ``shared_socket``.

    Raises:
        ValueError: no such address, the port is taken or not allowed, or the system has no such sockets.
    """
    with opened_socket(
        address, port
    ) as alone:  # among sockets that share it, nobody would say that it is taken
        family, place = alone.family, alone.getsockname()
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            reserved.setsockopt(socket.SOL_SOCKET, option, 1)
        reserved.bind(place)
    except OSError as error:
        reserved.close()
        raise ValueError(
            f"--address {address} --port {port}: expected a free port, found: {error}"
        ) from error
    return reserved


def shared_socket(family: int, place: tuple[Any, ...]) -> socket.socket:
    """Return a socket that listens where others do: Linux gives each its part of the connections.

    Args:
        family, place: of ``reserved_socket``.

    Raises:
        OSError: it cannot listen there.
    """
    opened = socket.create_server(place, family=family, backlog=BACKLOG, reuse_port=True)
    opened.setblocking(False)
    return opened


def url_of(opened: socket.socket) -> str:
    """Return where the socket is reached."""
    address, port = opened.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def serve(app: Any, opened: socket.socket, is_over: Callable[[], bool]) -> None:
    """Serve until it is over, then finish what was taken.

    Args:
        app: of ``create_app``.
        opened: of ``opened_socket``; closed at the end.
        is_over: asked ten times a second.

    Raises:
        RuntimeError: the extra ``serve`` is not installed.
    """
    service: Service = app.state.service
    uvicorn = required("uvicorn")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    options = service.options
    config = uvicorn.Config(
        app,
        http=connection_class(options, num_connections(options.max_connections)),
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=NUM_ACCEPTED,
        timeout_keep_alive=int(max(1, min(75, options.client_timeout_s))),
        # Nothing takes longer: a request to come, to be answered, and the answer to be taken.
        timeout_graceful_shutdown=int(2 * options.client_timeout_s + options.timeout_s) + 5,
    )
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        asyncio.run(_server(uvicorn, config, service, is_over).serve(sockets=[opened]))
    finally:
        sys.setswitchinterval(before)
        opened.close()


def _server(uvicorn: Any, config: Any, service: Service, is_over: Callable[[], bool]) -> Any:
    class Server(uvicorn.Server):
        """Handles no signals: they are the command's."""

        should_exit: bool

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: Any = None) -> None:
            asyncio.get_running_loop().set_exception_handler(Shortage())
            await super().startup(sockets)
            # asyncio takes as many at once as the system keeps waiting; more may wait than are taken.
            for opened in sockets:
                opened.listen(BACKLOG)

        async def on_tick(self, counter: int) -> bool:
            if is_over() and not self.should_exit:
                service.drain()
                await asyncio.sleep(service.options.drain_delay_s)
                self.should_exit = True
            return await super().on_tick(counter)

    return Server(config)


class LineLog(Closing):
    """Prints lines from a thread: whoever does not read them keeps no request waiting."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lines: queue.Queue[Optional[str]] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._run, daemon=True, name="log")
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Print a line soon; it is lost where thousands wait already."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        """Print what is left, within a second."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(1)

    def _run(self) -> None:
        for line in iter(self._lines.get, None):
            self._write(line)
