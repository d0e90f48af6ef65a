"""How a service runs: what it batches, and what it refuses."""

from dataclasses import dataclass

from runtime.ranges import MAX_BATCH, checked_count
from runtime.values import is_number

MIB = 1 << 20
LOGS = ("none", "plain", "json")
# Far more than a machine has of either.
_MOST = 1 << 40
# Of seconds and milliseconds: what the system's clocks take.
_LONGEST = 1e9


@dataclass(frozen=True)
class ServingOptions:
    """Settings of a service; each has a limit that is met before memory or patience end.

    Attributes:
        max_batch: most images of one batch.
        max_delay_ms: how long the first image of a batch waits for others.
        max_queue: images of one model that wait; further requests are refused at once (429).
        timeout_s: from a request's last byte to its answer (504); a request may ask for less.
        max_body_bytes: of one request (413).
        max_memory_bytes: of the bodies of all requests together (503).
        max_pixels: that one image's header may declare (413).
        max_images: of one request (413).
        client_timeout_s: for a client to send its request (408), and to take in some of its answer.
        max_connections: open at once (503).
        drain_delay_s: between "not ready" and the end of listening, when the service is told to end.
        log: a line for each request: ``none``, ``plain`` or ``json``.
    """

    max_batch: int = 8
    max_delay_ms: float = 2.0
    max_queue: int = 64
    timeout_s: float = 30.0
    max_body_bytes: int = 32 * MIB
    max_memory_bytes: int = 1024 * MIB
    max_pixels: int = 1 << 26
    max_images: int = 16
    client_timeout_s: float = 60.0
    max_connections: int = 1000
    drain_delay_s: float = 0.0
    log: str = "none"

    def __post_init__(self) -> None:
        checked_count("max_batch", self.max_batch, MAX_BATCH)
        for name in (
            "max_queue",
            "max_body_bytes",
            "max_memory_bytes",
            "max_pixels",
            "max_images",
            "max_connections",
        ):
            checked_count(name, getattr(self, name), _MOST)
        for name, least in (
            ("max_delay_ms", 0.0),
            ("drain_delay_s", 0.0),
            ("timeout_s", 1e-3),
            ("client_timeout_s", 1e-3),
        ):
            value = getattr(self, name)
            if not is_number(value) or not least <= value <= _LONGEST:
                raise ValueError(f"{name}: expected a number from {least:g} to {_LONGEST:g}, found {value!r}")
        if self.log not in LOGS:
            raise ValueError(f"log: expected one of {', '.join(LOGS)}, found {self.log!r}")
