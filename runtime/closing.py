"""What is closed at the end of a ``with`` block."""

from types import TracebackType
from typing import Optional, TypeVar

Opened = TypeVar("Opened", bound="Closing")


class Closing:
    """A base for what has a ``close``."""

    def close(self) -> None:
        """Release what is open."""

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
