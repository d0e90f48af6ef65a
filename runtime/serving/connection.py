"""One connection: no client keeps it longer than is needed."""

import json
import socket
from contextlib import suppress
from typing import Any, Optional

from runtime.serving.descriptors import NUM_LINGERING
from runtime.serving.metrics import required
from runtime.serving.options import ServingOptions

# A request line and headers together; base64 and images are in the body.
HEAD_BYTES = 1 << 16
# For what the app itself answers first.
_GRACE_SECONDS = 2.0


def connection_class(options: ServingOptions, most_connections: int) -> Any:
    """Return the protocol of a connection, a class for asyncio.

    It is uvicorn's with h11, which limits the size of a head, and it closes what uvicorn would keep: a head that does
    not come to its end, a refused body that trickles in, an answer that is not read, and connections beyond the limit.

    Args:
        options: of the service.
        most_connections: that are open at once.
    """
    h11 = required("h11")
    protocol: Any = required("uvicorn.protocols.http.h11_impl").H11Protocol

    class Connection(protocol):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self._is_refused = False
            self._reading: Optional[Any] = None
            self._writing: Optional[Any] = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # asyncio does it for sockets that it has made; head and body of an answer are two packets.
            with suppress(OSError):  # the client is gone
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Any byte that the client does not take counts, not those beyond 64 KiB.
            transport.set_write_buffer_limits(high=0)
            self._expect_input()
            if len(self.connections) > most_connections:
                self._refuse(
                    503,
                    f"expected up to {most_connections} connections, found more; come again later",
                    lingers=len(self.connections) <= most_connections + NUM_LINGERING,
                )

        def data_received(self, data: bytes) -> None:
            if self._is_refused:
                return
            super().data_received(data)
            if self._is_whole():
                self._expect_nothing()
            else:
                self._expect_input()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and not self._is_whole():
                self._expect_input()

        def connection_lost(self, exc: Optional[Exception]) -> None:
            self._expect_nothing()
            self._written()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing is None:
                self._writing = self.loop.call_later(options.client_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._written()

        def send_400_response(self, msg: str) -> None:
            self._refuse(
                400,
                "expected an HTTP/1.1 request, found another or one with a head of more than "
                f"{HEAD_BYTES} bytes",
            )

        def _is_whole(self) -> bool:
            """Return whether nothing of a request is missing; between two requests nothing is."""
            state = self.conn.their_state
            return state is not h11.SEND_BODY and (state is not h11.IDLE or not self.conn.trailing_data[0])

        def _expect_input(self) -> None:
            if self._reading is None:
                seconds = options.client_timeout_s + _GRACE_SECONDS
                self._reading = self.loop.call_later(seconds, self.transport.abort)

        def _expect_nothing(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _written(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _refuse(self, status: int, reason: str, *, lingers: bool = True) -> None:
            """Answer what no app sees, and close; at once, or when the client may have read it."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            body = json.dumps({"error": reason}).encode("ascii")
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            try:
                answer = h11.Response(status_code=status, headers=headers)
                for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
                self._is_refused = True
                if not lingers:
                    self.transport.close()
                    return
                # What still comes is taken in for a while: on unread bytes the answer would be lost.
                self.flow.resume_reading()
                self.transport.write_eof()
                self.loop.call_later(_GRACE_SECONDS, self.transport.abort)
            except (h11.LocalProtocolError, OSError):  # in the middle of an answer, or the client is gone
                self.transport.abort()

    return Connection
