"""Bodies of requests: read within limits, and what image files are in them."""

import asyncio
import base64
import binascii
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable

from runtime.documents import parsed
from runtime.messages import printable, said, shown
from runtime.serving.options import MIB, ServingOptions
from runtime.serving.refusals import (
    BAD_REQUEST,
    CLIENT_GONE,
    CLIENT_TOO_SLOW,
    NO_MEMORY,
    TOO_LARGE,
    UNSUPPORTED,
    Refused,
)

# Of ASGI: awaited, it returns the next message.
Receive = Callable[[], Any]
_MOST_FIELDS = 100
_MOST_NAME = 100  # characters of a file's, in messages


@dataclass(frozen=True)
class NamedImage:
    """An image file in a request, and what it is called in messages."""

    name: str
    data: bytes


class Memory:
    """How many bytes of bodies are held. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most, self.held = most, 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Hold bytes until the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.held

    def take(self, num_bytes: int) -> None:
        """Count bytes.

        Raises:
            Refused: there would be too many.
        """
        if self.held + num_bytes > self._most:
            raise Refused(
                NO_MEMORY,
                f"expected room for requests of {self._most // MIB} MiB together, found it taken; send it again later",
                retry_after_s=1,
            )
        self.held += num_bytes


class Share:
    """The bytes of one request."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self.held = memory, 0

    def take(self, num_bytes: int) -> None:
        """Count bytes; see ``Memory.take``."""
        self._memory.take(num_bytes)
        self.held += num_bytes


async def read_body(
    receive: Receive, headers: Mapping[str, str], options: ServingOptions, share: Share
) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: it is larger than allowed, compressed, does not come in time, or the client has gone.
    """
    _check_declared(headers, options)
    deadline = time.monotonic() + options.client_timeout_s
    chunks = []
    more = True
    while more:
        message = await _within(receive, deadline, options)
        if message["type"] == "http.disconnect":
            raise Refused(CLIENT_GONE, "the client went before its request was whole")
        chunk = message.get("body", b"")
        if share.held + len(chunk) > options.max_body_bytes:
            raise _too_large(options, "more")
        share.take(len(chunk))
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _within(receive: Receive, deadline: float, options: ServingOptions) -> Any:
    try:
        return await asyncio.wait_for(receive(), deadline - time.monotonic())
    except asyncio.TimeoutError:
        raise Refused(
            CLIENT_TOO_SLOW,
            f"expected the whole request within {options.client_timeout_s:g} s, found a part; use a faster "
            "connection, a smaller image, or start the service with a larger --client-timeout-s",
        ) from None


def _check_declared(headers: Mapping[str, str], options: ServingOptions) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(
            UNSUPPORTED,
            f"Content-Encoding: expected none, found {shown(encoding)}; image files are compressed already",
        )
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > options.max_body_bytes:
        raise _too_large(options, length[:20])


def _too_large(options: ServingOptions, found: str) -> Refused:
    return Refused(
        TOO_LARGE,
        f"expected a body of up to {options.max_body_bytes} bytes, found {found}; send fewer or smaller images, or "
        "start the service with a larger --max-body-mb",
    )


def images_in(body: bytes, content_type: str, max_images: int) -> list[NamedImage]:
    """Return the image files in the body of a plain request: itself, files of a form, or base64 in JSON.

    Raises:
        Refused: there are none or too many, or it is no such form or JSON.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images = _images_in_form(body, content_type, max_images)
    elif kind == "application/json" or kind.endswith("+json"):
        images = _images_in_json(body, max_images)
    else:
        images = [NamedImage("image", body)]
    if not images:
        raise Refused(BAD_REQUEST, "expected one or more images, found none")
    return images


def too_many(found: int, max_images: int) -> Refused:
    """Return the refusal of a request with too many images."""
    return Refused(
        TOO_LARGE,
        f"expected up to {max_images} images in one request, found {found} or more; send several requests, or start "
        "the service with a larger --max-images",
    )


def _images_in_json(body: bytes, max_images: int) -> list[NamedImage]:
    document = json_object(body)
    keys = [key for key in ("image", "images") if key in document]
    if not keys:
        raise Refused(
            BAD_REQUEST, f'expected {{"image": base64}} or {{"images": [base64, …]}}, found {shown(document)}'
        )
    if len(keys) > 1:
        raise Refused(BAD_REQUEST, 'expected "image" or "images", found both; put all into "images"')
    key = keys[0]
    values = document[key] if isinstance(document[key], list) else [document[key]]
    if len(values) > max_images:
        raise too_many(len(values), max_images)
    names = [f"{key}[{index}]" if len(values) > 1 else key for index in range(len(values))]
    return [NamedImage(name, from_base64(value, name)) for name, value in zip(names, values)]


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        Refused: it is none.
    """
    try:
        document = parsed(body)
    except ValueError as error:
        raise Refused(BAD_REQUEST, f"body: {error}") from error
    if not isinstance(document, dict):
        raise Refused(BAD_REQUEST, f"body: expected a JSON object, found {shown(document)}")
    return document


def from_base64(value: Any, name: str) -> bytes:
    """Return the bytes of a base64 string, also of a ``data:`` URL.

    Raises:
        Refused: it is none.
    """
    if not isinstance(value, str):
        raise Refused(BAD_REQUEST, f"{name}: expected an image file in base64, found {shown(value)}")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        # Line breaks are common in it.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            BAD_REQUEST, f"{name}: expected an image file in base64, found {shown(value)} ({error})"
        ) from error


def _images_in_form(body: bytes, content_type: str, max_images: int) -> list[NamedImage]:
    from python_multipart.multipart import FormParser, parse_options_header

    images: list[NamedImage] = []
    num_fields, is_whole = 0, False

    def add_file(file: Any) -> None:
        if len(images) == max_images:
            raise too_many(max_images + 1, max_images)
        file.file_object.seek(0)
        images.append(NamedImage(_file_name(file), file.file_object.read()))
        file.close()

    def add_field(field: Any) -> None:
        nonlocal num_fields
        num_fields += 1
        if num_fields > _MOST_FIELDS:
            raise Refused(
                BAD_REQUEST, f"body: expected files in the form, found more than {_MOST_FIELDS} fields"
            )

    def end() -> None:
        nonlocal is_whole
        is_whole = True

    try:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        # In memory: the body is, too.
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = FormParser("multipart/form-data", add_field, add_file, end, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
        if not is_whole:  # the parser leaves out the file in which it is cut
            raise ValueError("it ends before its last boundary")
    except Refused:
        raise
    except Exception as error:  # the parser asserts, too
        raise Refused(
            BAD_REQUEST, f"body: expected a multipart form with files, found another ({said(error)})"
        ) from error
    return images


def _file_name(file: Any) -> str:
    name = (file.file_name or file.field_name or b"image").decode("utf-8", "replace")
    return printable(name)[:_MOST_NAME] or "image"
