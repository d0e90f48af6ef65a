"""How far a build is, and what came out of it, on a terminal and in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime.console import heartbeat, say, table_console
from runtime.engine.config import MIB
from runtime.engine.progress import Monitor
from runtime.engine.sidecar import Sidecar
from runtime.messages import listed

_NUM_NAMED = 3


@contextmanager
def shown_progress(verbose: bool) -> Iterator[Monitor]:
    """Show phases with a bar on a terminal, and a line every few seconds elsewhere."""
    if sys.stderr.isatty() and not verbose:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(
            *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
        ) as progress:
            task = progress.add_task("building", total=None)
            yield lambda phase, done, total: progress.update(
                task, description=phase, completed=done, total=total or None
            )
        return
    latest = ["reading the model", 0, 0]

    def monitor(phase: str, done: int, total: int) -> None:
        latest[:] = [phase, done, total]

    def beat(seconds: float) -> None:
        phase, done, total = latest
        say(f"{seconds:5.0f} s  {phase}" + (f"  {done}/{total}" if total else ""))

    with heartbeat(beat):
        yield monitor


def _batches(least: int, best: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}, tuned for {best}"


def print_engine(engine: Path, sidecar: Sidecar) -> None:
    """Print what an engine is."""
    build, config = sidecar.build, sidecar.config
    # Text, not str: a folder with brackets is not rich's markup.
    table = Table("engine")
    table.add_column(Text(str(engine)), overflow="fold")
    table.add_row("batch", "; ".join(_batches(*profile) for profile in config.profiles))
    for name in ("height", "width"):
        limits = getattr(config, name)
        if limits:
            table.add_row(name, f"{limits[0]} to {limits[2]} px, tuned for {limits[1]}")
    kept = f", {build['layers_kept_fp32']} layers kept FP32" if build.get("layers_kept_fp32") else ""
    table.add_row("precision", config.precision + kept)
    counts = ", ".join(
        f"{count} {name}" for name, count in sorted(build.get("layers_by_precision", {}).items())
    )
    table.add_row("layers", f"{build.get('layers', '?')} ({counts})")
    shares = build.get("dense_flops_share", {})
    table.add_row("dense FLOPs", ", ".join(f"{share:.1%} {name}" for name, share in shares.items() if share))
    slower = build.get("slower_than_asked") or {}
    if slower:
        named = listed(list(slower), _NUM_NAMED)
        table.add_row("slower than asked", Text(f"{sum(slower.values()):.1%}: {named}"))
    table.add_row("size", f"{build['bytes'] / MIB:.1f} MiB")
    table.add_row("build time", f"{build['seconds']:.0f} s")
    table_console().print(table)
