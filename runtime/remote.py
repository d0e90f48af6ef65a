"""Images behind http and https addresses: how much is read, for how long, and where redirects may lead.

Addresses of the machine itself and of its own network are allowed: who names the sources decides. So a service must not
pass on addresses that strangers name.
"""

import http.client
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Optional

import numpy as np

from runtime.images import BYTES_VARIABLE, IN_COLOR, MAX_BYTES, decode_image
from runtime.messages import said
from runtime.reading import limit
from runtime.transforms import Load

SCHEMES = ("http", "https")
SECONDS_VARIABLE = "MASKRCNN_URL_SECONDS"
# For all of an image, redirects included.
MAX_SECONDS = 60
MAX_REDIRECTS = 5
_SILENCE_SECONDS = 20
_CHUNK = 1 << 16


@dataclass(frozen=True)
class RemoteImage:
    """An image behind an address.

    Attributes:
        url: the address, http or https.
    """

    url: str

    def __post_init__(self) -> None:
        try:
            host = urllib.parse.urlsplit(self.url).hostname
        except ValueError as error:
            raise ValueError(f"{self.url}: expected an http or https address, found {said(error)}") from error
        if not host or not is_address(self.url):
            raise ValueError(f"{self.url}: expected an http or https address, found none with a host")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address's path, or the host; what files that are made of it are called after."""
        parts = urllib.parse.urlsplit(self.url)
        return PurePosixPath(urllib.parse.unquote(parts.path)).name or parts.hostname or "image"

    def read(self, load: Load = IN_COLOR) -> np.ndarray:
        """Return the image; see ``runtime.images.read_image``.

        Raises:
            OSError: it cannot be fetched, or not in time.
            ValueError: it is no image, or too large.
        """
        return decode_image(fetch(self.url), load, name=self.url)


def is_address(source: str) -> bool:
    """Return whether a source is an http or https address."""
    return source.partition("://")[0].lower() in SCHEMES


def fetch(url: str) -> bytes:
    """Return what an http or https address has.

    Raises:
        OSError: no connection, an error of the server, too many redirects or such to other schemes, or too slow.
        ValueError: it is larger than ``MASKRCNN_MAX_IMAGE_BYTES``, or no address.
    """
    seconds, most = limit(SECONDS_VARIABLE, MAX_SECONDS), limit(BYTES_VARIABLE, MAX_BYTES)
    with _within(seconds) as watch:
        try:
            with _opener(watch).open(url, timeout=min(seconds, _SILENCE_SECONDS)) as answer:
                data = _read(answer, most, watch)
        except urllib.error.HTTPError as error:
            raise OSError(
                f"{url}: expected an image, found HTTP status {error.code} {error.reason}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if watch.is_over:
                raise _too_slow(url, seconds) from error
            raise OSError(f"{url}: expected an image, found no answer: {_reason(error)}") from error
        except ValueError as error:
            raise ValueError(f"{url}: expected an image, {said(error)}") from error
    if watch.is_over:
        raise _too_slow(url, seconds)
    return data


class _Watch:
    """Closes the connections of one image when its time is over, whatever they wait for."""

    def __init__(self) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection)

    def end(self) -> None:
        self.is_over = True
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _within(seconds: float) -> Iterator[_Watch]:
    watch = _Watch()
    timer = threading.Timer(seconds, watch.end)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()


def _read(answer: Any, most: int, watch: _Watch) -> bytes:
    data = bytearray()
    while not watch.is_over:
        part = answer.read1(_CHUNK)
        if not part:
            break
        data += part
        if len(data) > most:
            raise ValueError(f"found more than {most} bytes; if it is one, set {BYTES_VARIABLE} to as much")
    missing = answer.length
    if missing and not watch.is_over:
        raise OSError(f"the connection ended {missing} bytes early")
    return bytes(data)


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """Return what opens http and https alone; urllib's own opens files and FTP too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(watch),
        _Https(watch),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "maskrcnn-deploy"), ("Accept", "image/*")]
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[urllib.request.Request]:
        """Follow to http and https."""
        if not is_address(newurl):
            raise OSError(f"a redirect to {newurl[:200]!r}, which is not {' or '.join(SCHEMES)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def http_open(self, req: urllib.request.Request) -> Any:
        """Open a connection that is watched."""
        return self.do_open(_watched(http.client.HTTPConnection, self._watch), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def https_open(self, req: urllib.request.Request) -> Any:
        """Open a connection that is watched."""
        return self.do_open(_watched(http.client.HTTPSConnection, self._watch), req)


def _watched(kind: type, watch: _Watch) -> Any:
    def connection(host: str, **options: Any) -> Any:
        made = kind(host, **options)
        connect = made.connect

        def connect_watched() -> None:
            connect()
            watch.add(made.sock)

        made.connect = connect_watched
        return made

    return connection


def _too_slow(url: str, seconds: float) -> OSError:
    return OSError(
        f"{url}: expected an image within {seconds} s, found none; set {SECONDS_VARIABLE} to as much as it needs"
    )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return said(reason) if isinstance(reason, BaseException) else said(error)
