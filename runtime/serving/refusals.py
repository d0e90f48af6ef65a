"""Why a request is not answered with detections: a status, and a reason in words."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Kind:
    """A kind of refusal.

    Attributes:
        name: in the metrics.
        status: of HTTP.
    """

    name: str
    status: int


BAD_REQUEST = Kind("bad_request", 400)
BAD_IMAGE = Kind("bad_image", 400)
NOT_FOUND = Kind("not_found", 404)
CLIENT_TOO_SLOW = Kind("client_too_slow", 408)
TOO_LARGE = Kind("too_large", 413)
UNSUPPORTED = Kind("unsupported", 415)
QUEUE_FULL = Kind("queue_full", 429)
MODEL_FAILED = Kind("model_failed", 500)
NOT_READY = Kind("not_ready", 503)
NO_MEMORY = Kind("no_memory", 503)
EXPIRED = Kind("expired", 504)
# Nobody reads this answer; the status is that of nginx, for log and metrics.
CLIENT_GONE = Kind("client_gone", 499)


class Refused(Exception):
    """A request, or one image of it, that gets no detections.

    Attributes:
        kind: of refusal.
        reason: what was expected, what was found, and the remedy.
        retry_after_s: when to ask again, where that may help.
    """

    def __init__(self, kind: Kind, reason: str, *, retry_after_s: Optional[int] = None) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.retry_after_s = kind, reason, retry_after_s
