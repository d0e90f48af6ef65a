"""What surrounds every request: counts, the log, and the form of a refusal."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any, Callable, Optional

from runtime.messages import printable, said
from runtime.serving.refusals import CLIENT_TOO_SLOW, TOO_LARGE, Kind, Refused
from runtime.serving.service import Service

OTHER = "other"
# Of a request's state, where all of it has been taken in.
BODY_IS_READ = "body_is_read"
# How long, and how much, the rest of a refused body is still read: a client that writes does not see its answer, and
# where the connection is closed on unread bytes the answer is lost.
_LINGER_SECONDS, _LINGER_BYTES = 5.0, 1 << 26
_MOST_LOGGED = 200
_CLOSE = (b"connection", b"close")


class Frame:
    """ASGI around the app: counts each request and its time, and logs a line."""

    def __init__(self, app: Any, service: Service, log: Optional[Callable[[str], None]]) -> None:
        self._app, self._service, self._log = app, service, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, statuses = time.perf_counter(), []

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                if self._service.is_draining:  # closed on an idle connection, its next request would be lost
                    message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        # The server leaves out the body; what is answered to GET is answered to HEAD.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, receive, sent)
        finally:
            self._count(
                scope, inner.get("route"), statuses[0] if statuses else 500, time.perf_counter() - start
            )

    def _count(self, scope: Any, route: Any, status: int, seconds: float) -> None:
        self._service.metrics.add_request(getattr(route, "path", OTHER), status, seconds)
        if self._log is not None and self._service.options.log != "none":
            self._log(_line(scope, status, seconds, as_json=self._service.options.log == "json"))


def _line(scope: Any, status: int, seconds: float, *, as_json: bool) -> str:
    client = (scope.get("client") or ("-",))[0]
    path = scope["path"][:_MOST_LOGGED]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if not as_json:
        return printable(
            f"{stamp} {client} {scope['method']} {path} {status} {seconds * 1e3:.1f} ms"
        ).replace("\n", " ")
    values = {"time": stamp, "client": client, "method": scope["method"], "path": path, "status": status}
    return json.dumps({**values, "ms": round(seconds * 1e3, 1)})


def register_errors(app: Any, service: Service) -> None:
    """Have every error answered with ``{"error": reason}``."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def refused(request: Any, error: Refused) -> Any:
        service.metrics.add_refusal(error.kind.name)
        headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
        return _response(request, error.kind, error.reason, headers)

    async def http(request: Any, error: HTTPException) -> Any:
        kind = Kind("http", error.status_code)
        return _response(request, kind, str(error.detail), dict(error.headers or {}))

    async def invalid(request: Any, error: RequestValidationError) -> Any:
        words = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        service.metrics.add_refusal("bad_request")
        return _response(request, Kind("bad_request", 400), words, {})

    async def failed(request: Any, error: Exception) -> Any:
        return _response(request, Kind("defect", 500), f"a defect of the service: {said(error)}", {})

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


def _response(request: Any, kind: Kind, reason: str, headers: dict[str, str]) -> Any:
    """Return the answer; where the request is still to be read, one that is whole at once and reads the rest."""
    from starlette.responses import JSONResponse

    class Lingering(JSONResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_rest(receive), _LINGER_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    is_read = getattr(request.state, BODY_IS_READ, False) or not _has_body(request)
    if kind in (TOO_LARGE, CLIENT_TOO_SLOW) and not is_read:
        headers = {**headers, "Connection": "close"}  # nobody waits for all that
    return (JSONResponse if is_read else Lingering)(
        {"error": printable(reason)}, kind.status, headers=headers
    )


def _has_body(request: Any) -> bool:
    length = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or length.strip("0") != ""


async def _rest(receive: Any) -> None:
    num_bytes = 0
    while num_bytes < _LINGER_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
