"""What a run detects: images, in blocks that are the same in every run over the same sources."""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Optional

from runtime.image_files import find_images
from runtime.messages import listed, said

LIST, TABLE = ".txt", ".parquet"
# Of a Parquet file, where none is named.
COLUMNS = ("path", "image", "bytes")


@dataclass(frozen=True)
class Block:
    """Images that are detected and written together.

    Attributes:
        number: from 0; its files are called after it.
        count: of images.
        paths: of image files; empty of a Parquet file's rows.
        table: path of a Parquet file.
        column: of it, with paths or with bytes of image files.
        row_group: of it.
        start: the block's first row in the row group.
    """

    number: int
    count: int
    paths: tuple[str, ...] = ()
    table: str = ""
    column: str = ""
    row_group: int = 0
    start: int = 0

    def to_json(self) -> str:
        """Return what ``from_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Block":
        """Return the block that ``to_json`` wrote."""
        values = json.loads(text)
        return cls(**{**values, "paths": tuple(values["paths"])})


def blocks_of(sources: Sequence[str], size: int, column: Optional[str] = None) -> list[Block]:
    """Divide the images of sources into blocks.

    Args:
        sources: image files, folders and patterns; lists (``.txt``, a path a line) and Parquet files (``.parquet``,
            with a column of paths or of bytes).
        size: most images of a block.
        column: of the Parquet files; None: the first of ``COLUMNS`` that is there.

    Returns:
        The blocks. A path that is named twice is in one of them; paths are absolute.

    Raises:
        OSError, ValueError: a source cannot be read, or there are no images; names it.
    """
    tables, others = _divided(sources)
    paths = list(dict.fromkeys(os.path.abspath(path) for path in _paths(others)))
    blocks = [
        Block(number, len(part), tuple(part))
        for number, part in enumerate(paths[start : start + size] for start in range(0, len(paths), size))
    ]
    for table in tables:
        blocks += _of_table(table, size, column, len(blocks))
    if not blocks:
        raise ValueError(
            f"sources: expected images, found none in {listed(list(sources), 3)}; name image files, folders, lists or "
            "Parquet files"
        )
    return blocks


def digest(blocks: Iterable[Block]) -> str:
    """Return the SHA-256 of what blocks hold, as hexadecimal text."""
    found = sha256()
    for block in blocks:
        found.update(block.to_json().encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()


def _divided(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the Parquet files, absolute, and the other sources."""
    tables: list[str] = []
    others = []
    for source in sources:
        if not source.lower().endswith(TABLE):
            others.append(source)
            continue
        found = [source] if os.path.exists(source) else sorted(glob.glob(source))
        if not found:
            raise ValueError(f"{source}: expected a Parquet file, found nothing; check the path")
        tables += map(os.path.abspath, found)
    return list(dict.fromkeys(tables)), others


def _paths(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if source.lower().endswith(LIST) and os.path.isfile(source):
            # What cannot be read is for the table of failures: a list may be older than its files.
            text = Path(source).read_text(encoding="utf-8", errors="surrogateescape")
            yield from (line for line in text.splitlines() if line.strip())
        else:
            yield from map(str, find_images([source]))


def import_pyarrow() -> Any:
    """Return the package pyarrow, with its reader of Parquet files.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            f"pyarrow: expected the Python package, found none ({error}); `pip install 'ray[data]'`, the extra `ray`"
        ) from error
    return pyarrow


def _of_table(path: str, size: int, column: Optional[str], first: int) -> list[Block]:
    pyarrow = import_pyarrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path}: expected a Parquet file, found another ({said(error)})") from error
    with file:
        name = _column(path, file.schema_arrow, column)
        counts = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    places = [(group, start) for group, count in enumerate(counts) for start in range(0, count, size)]
    return [
        Block(
            first + index,
            min(size, counts[group] - start),
            table=path,
            column=name,
            row_group=group,
            start=start,
        )
        for index, (group, start) in enumerate(places)
    ]


def _column(path: str, schema: Any, column: Optional[str]) -> str:
    types = import_pyarrow().types
    kinds = {field.name: field.type for field in schema}
    usable = [
        name
        for name, kind in kinds.items()
        if any(
            test(kind)
            for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
        )
    ]
    name = column or next((name for name in COLUMNS if name in usable), None)
    if name not in usable:
        raise ValueError(
            f"{path}: expected a column {' or '.join(COLUMNS) if column is None else column} of paths or of bytes, "
            f"found {listed([f'{n}: {k}' for n, k in kinds.items()])}; name one with --column"
        )
    return name
