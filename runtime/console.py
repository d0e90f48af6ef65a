"""What a run shows and writes: progress, tables, JSON."""

import json
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.text import Text

from runtime.files import write_whole
from runtime.interrupts import check
from runtime.messages import printable

Item = TypeVar("Item")

# Without a terminal, rich assumes 80 columns and folds tables.
_WIDTH_WITHOUT_TERMINAL = 140
# Between two lines about what is going on, where no terminal shows a bar.
PROGRESS_SECONDS = 5.0


def tracked(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items, and show how far one is: a bar on a terminal's standard error, else a line every few seconds.

    Raises:
        Interrupted: a signal has come, and native code has lost it.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with Progress(console=Console(stderr=True), transient=True) as progress:
            yield from progress.track(_checked(items), total=total, description=escape(description))
        return
    done = 0
    with heartbeat(lambda seconds: say(f"{description}: {done} of {total}, {seconds:.0f} s")):
        for item in _checked(items):
            yield item
            done += 1


def _checked(items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        yield item
        check()


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show what runs, on standard error: on a terminal now, else every few seconds; yields what changes the text."""
    if sys.stderr is not None and sys.stderr.isatty():
        with Console(stderr=True).status(Text(text)) as shown:
            yield lambda changed: shown.update(Text(changed))
        return
    latest = [text]
    with heartbeat(lambda seconds: say(f"{latest[0]}, {seconds:.0f} s")):
        yield lambda changed: latest.__setitem__(0, changed)


@contextmanager
def heartbeat(beat: Callable[[float], None], seconds: Optional[float] = None) -> Iterator[None]:
    """Call ``beat(elapsed seconds)`` every so often (``PROGRESS_SECONDS``), from a thread.

    What it tells of can be silent for minutes.
    """
    done = threading.Event()
    start = time.monotonic()

    def run() -> None:
        while not done.wait(PROGRESS_SECONDS if seconds is None else seconds):
            beat(time.monotonic() - start)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def say(line: str) -> None:
    """Print a line to standard error at once."""
    print(printable(line), file=sys.stderr, flush=True)


def table_console() -> Console:
    """Return the console for tables on standard output."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)


def write_json(path: Path, content: Any) -> None:
    """Write a report, under its name only when it is whole. NaN is written as null, which JSON has."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode("utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
