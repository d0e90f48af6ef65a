"""What a run writes: for each block a Parquet file of detections and one of the images that could not be used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.bulk.blocks import Block, import_pyarrow
from runtime.detections import Detections
from runtime.files import write_whole

DETECTIONS, FAILED, BEGUN = "detections", "failed", "begun"
# How often a block is begun in a run: Ray makes a worker that died again, for ever.
MOST_BEGUN = 4


@dataclass(frozen=True, eq=False)
class Row:
    """What became of an image: detections, or the reason why there are none."""

    path: str
    detections: Optional[Detections] = None
    reason: str = ""


def files_of(folder: Path, number: int) -> tuple[Path, Path]:
    """Return the files of a block: detections, and failures."""
    name = f"block-{number:08d}.parquet"
    return folder / DETECTIONS / name, folder / FAILED / name


def begun_file(folder: Path, number: int) -> Path:
    """Return the file that says how often a block was begun."""
    return folder / BEGUN / f"block-{number:08d}"


def begin_block(folder: Path, block: Block) -> None:
    """Count that a block is begun.

    Raises:
        RuntimeError: it was too often, so that something in it ends its workers.
    """
    path = begun_file(folder, block.number)
    times = len(path.read_bytes()) if path.exists() else 0
    if times >= MOST_BEGUN:
        what = f"{block.paths[0]} to {block.paths[-1]}" if block.paths else f"{block.table}"
        raise RuntimeError(
            f"block {block.number}: expected a worker that outlives it, found {times} that died; one of its images "
            f"({what}) ends the process, or memory runs out: find it with --block 1 into another folder"
        )
    write_whole(path, b"." * (times + 1))


def write_block(folder: Path, block: Block, rows: Sequence[Row], classes: Sequence[str]) -> None:
    """Write a block's files, the failures first: a block whose detections are there is done.

    Raises:
        OSError: they cannot be written.
        RuntimeError: it is not one row an image.
    """
    if len(rows) != block.count:
        raise RuntimeError(
            f"block {block.number}: expected {block.count} rows, found {len(rows)}; were its sources changed meanwhile?"
        )
    detections, failed = files_of(folder, block.number)
    write_whole(failed, _failed([row for row in rows if row.detections is None], block.number))
    write_whole(
        detections, _detections([row for row in rows if row.detections is not None], block.number, classes)
    )
    begun_file(folder, block.number).unlink(missing_ok=True)


def num_rows(folder: Path, number: int) -> tuple[int, int]:
    """Return how many rows a block's files have: detections, and failures."""
    read = import_pyarrow().parquet.read_metadata
    detections, failed = (read(path).num_rows for path in files_of(folder, number))
    return detections, failed


def _detections(rows: Sequence[Row], number: int, classes: Sequence[str]) -> bytes:
    pa = import_pyarrow()
    found = [row.detections for row in rows]
    has_masks = any(d.has_masks for d in found)
    columns = {
        "path": pa.array([_text(row.path) for row in rows], pa.string()),
        "block": pa.array([number] * len(rows), pa.int32()),
        "height": pa.array([d.image_size[0] for d in found], pa.int32()),
        "width": pa.array([d.image_size[1] for d in found], pa.int32()),
        "boxes": pa.array([d.boxes.tolist() for d in found], pa.list_(pa.list_(pa.float32(), 4))),
        "scores": pa.array([d.scores.tolist() for d in found], pa.list_(pa.float32())),
        "labels": pa.array([d.labels.tolist() for d in found], pa.list_(pa.int32())),
        "names": pa.array([d.names for d in found], pa.list_(pa.string())),
        "rle": pa.array(
            [[r["counts"] for r in d.rle()] if has_masks else None for d in found], pa.list_(pa.string())
        ),
    }
    table = pa.table(columns).replace_schema_metadata({"classes": "\n".join(classes)})
    return _serialised(pa, table)


def _failed(rows: Sequence[Row], number: int) -> bytes:
    pa = import_pyarrow()
    columns = {
        "path": pa.array([_text(row.path) for row in rows], pa.string()),
        "block": pa.array([number] * len(rows), pa.int32()),
        "reason": pa.array([_text(row.reason) for row in rows], pa.string()),
    }
    return _serialised(pa, pa.table(columns))


def _text(value: str) -> str:
    """Return a text that Parquet can hold: bytes of a name that are not UTF-8 become escapes."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _serialised(pa: Any, table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
