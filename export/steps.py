"""Progress in steps: what runs now, and how long it took."""

import time
from types import TracebackType
from typing import Optional

from rich.console import Console

from runtime.console import status


class Step:
    """A running step, as a context manager; ``note`` adds a word to its line."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Show ``text`` beside the time."""
        self._notes.append(text)

    def __enter__(self) -> "Step":
        self._start = time.perf_counter()
        self._status = status(f"{self._title} ...")
        self._status.__enter__()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._status.__exit__(kind, error, trace)
        if error is None:
            seconds = time.perf_counter() - self._start
            notes = "".join(f"  {note}" for note in self._notes)
            self._console.print(f"{seconds:7.1f} s  {self._title}{notes}", highlight=False)


class Steps:
    """Makes steps: ``with steps("trace") as step: ...``."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, title: str) -> Step:
        """Return the step, to be entered."""
        return Step(self._console, title)
