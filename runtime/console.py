"""What a run shows and writes: progress, tables, JSON."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, TypeVar

from rich.console import Console
from rich.progress import Progress

from runtime.files import write_whole

Item = TypeVar("Item")

# Without a terminal, rich assumes 80 columns and folds tables.
_WIDTH_WITHOUT_TERMINAL = 140


def tracked(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items with a progress bar on a terminal's standard error."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show a line while something runs, on a terminal's standard error; yields what changes it."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with Console(stderr=True).status(text) as shown:
        yield shown.update


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
