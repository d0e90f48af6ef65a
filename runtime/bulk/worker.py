"""A block's way through a model: what a worker of Ray Data does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Union

import numpy as np

from runtime.bulk.blocks import Block, import_pyarrow
from runtime.bulk.tables import Row, begin_block, write_block
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.host.preprocess import check_fits
from runtime.images import decode_image
from runtime.pipeline import in_threads, num_readers
from runtime.transforms import Size

# Batches of images in memory at once, where a block holds the files themselves.
_BATCHES = 4


@dataclass(frozen=True)
class Task:
    """What every block gets.

    Attributes:
        model: path of the model.
        folder: of the results.
        backend, batch_size, options: of ``Detector``.
        min_score: detections below it are left out.
        threads: that read and decode.
    """

    model: str
    folder: str
    backend: str = "auto"
    batch_size: int = 1
    min_score: float = 0.0
    threads: int = field(default_factory=num_readers)
    options: Mapping[str, Any] = field(default_factory=dict)


class BlockDetector:
    """Detects in blocks and writes them; made once in each worker."""

    def __init__(self, task: Task) -> None:
        """Open the model; see ``Detector``."""
        self._task = task
        self._detector = Detector(task.model, task.backend, batch_size=task.batch_size, **task.options)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list]:
        """Return the numbers of images and failures of blocks, which are then written.

        Args:
            batch: of Ray Data; ``block`` has the blocks' JSON.
        """
        done = [self._write(Block.from_json(str(text))) for text in batch["block"]]
        return {
            "block": [block.number for block, _ in done],
            "images": [block.count for block, _ in done],
            "failed": [failed for _, failed in done],
        }

    def _write(self, block: Block) -> tuple[Block, int]:
        folder = Path(self._task.folder)
        begin_block(folder, block)
        rows = list(self._rows(block))
        write_block(folder, block, rows, self._detector.metadata.classes)
        return block, sum(row.detections is None for row in rows)

    def _rows(self, block: Block) -> Iterator[Row]:
        if not block.table:
            return self._of_files(block.paths)
        values = _values(block)
        if values and isinstance(values[0][1], str):
            return self._of_files([str(value) for _, value in values])
        return self._of_bytes(iter(values))

    def _of_files(self, paths: Any) -> Iterator[Row]:
        task = self._task
        found = self._detector.detect_files(
            paths, min_score=task.min_score, threads=task.threads, check_outputs=True, by_size=True
        )
        for path, result in zip(paths, found):
            reason = result.error or result.problem
            yield Row(str(path), None if reason else result.detections, reason)

    def _of_bytes(self, values: Iterator[tuple[str, Any]]) -> Iterator[Row]:
        size = _BATCHES * self._task.batch_size
        decoded = in_threads(self._decoded, values, self._task.threads, size)
        while part := list(islice(decoded, size)):
            groups: dict[Size, dict[int, np.ndarray]] = {}
            for index, (_, image) in enumerate(part):
                if isinstance(image, np.ndarray):
                    groups.setdefault(self._detector.input_size(*image.shape[:2]), {})[index] = image
            found: dict[int, Detections] = {}
            for images in groups.values():
                found.update(zip(images, self._detector(list(images.values()))))
            for index, (name, image) in enumerate(part):
                if isinstance(image, str):
                    yield Row(name, reason=image)
                else:
                    yield Row(name, found[index].filter(self._task.min_score))

    def _decoded(self, value: tuple[str, Any]) -> tuple[str, Union[np.ndarray, str]]:
        """Return an image, or why it is none."""
        name, data = value
        if data is None:
            return name, f"{name}: expected an image file, found null"
        try:
            image = decode_image(data, self._detector.metadata.load, name=name)
            check_fits(image, self._detector.metadata, name)
        except ValueError as error:
            return name, str(error)
        return name, image


def _values(block: Block) -> list[tuple[str, Any]]:
    """Return the names and values of a block's rows: that of the column ``path``, or file and row."""
    parquet = import_pyarrow().parquet
    with parquet.ParquetFile(block.table) as file:
        names = [block.column]
        if "path" in file.schema_arrow.names and block.column != "path":
            names.append("path")
        # Of a large row group, what comes before the block is read and dropped, a part at a time.
        rows = file.iter_batches(batch_size=256, row_groups=[block.row_group], columns=names)
        pairs = (
            pair
            for part in rows
            for pair in zip(
                part.column(names[-1]).to_pylist() if len(names) > 1 else [None] * part.num_rows,
                part.column(block.column).to_pylist(),
            )
        )
        first = sum(file.metadata.row_group(index).num_rows for index in range(block.row_group)) + block.start
        return [
            (str(name) if name is not None else f"{block.table}#{first + index}", value)
            for index, (name, value) in enumerate(islice(pairs, block.start, block.start + block.count))
        ]
