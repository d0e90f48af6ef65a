"""``detections.jsonl``: a line of JSON for each image, written when the image is done.

A line has ``image_id`` and ``file_name``; then ``width``, ``height`` and ``detections``, COCO results as in
``results.json`` with the class as ``category``; or, of an image that was skipped, ``skipped``: why.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Optional

from runtime.files import append_whole, publish, whole_file

LINES = "detections.jsonl"
_OF_THE_LINE = ("image_id", "file_name")


class JsonLinesWriter:
    """Writes lines that are whole whatever happens: a process that is killed leaves those that were finished.

    The file takes its name with the first line, in the place of the one before. Two processes that write the same name
    do not mix: each has a file of its own, which takes the name again when it ends.
    """

    def __init__(self, folder: Path, *, least: int = 1) -> None:
        """Prepare to write into a folder; as a context, open the file.

        Args:
            folder: where to.
            least: how many lines there are before the file takes its name: those of the run that is resumed.
        """
        self._path = folder / LINES
        self._least = least
        self._stack = ExitStack()
        self._file: Optional[IO[bytes]] = None
        self._num_lines = 0

    def add(
        self,
        image_id: Any,
        file_name: str,
        size: tuple[int, int],
        results: Sequence[dict[str, Any]],
        classes: Sequence[str],
        category_ids: Optional[Sequence[Any]] = None,
    ) -> None:
        """Write what was found in an image.

        Args:
            image_id: the image's number in the run, from 1, or its id in the user's annotations.
            file_name: of the image.
            size: (height, width) px.
            results: of ``coco_results``.
            classes: the model's.
            category_ids: see ``coco_results``.

        Raises:
            OSError: it cannot be written; no part of the line is.
        """
        names = dict(zip(range(1, len(classes) + 1) if category_ids is None else category_ids, classes))
        detections = [
            {
                "category": names[r["category_id"]],
                **{k: v for k, v in r.items() if k not in _OF_THE_LINE},
            }
            for r in results
        ]
        self._write(image_id, file_name, width=size[1], height=size[0], detections=detections)

    def add_skipped(self, image_id: Any, file_name: str, reason: str) -> None:
        """Write why an image was skipped; see ``add``."""
        self._write(image_id, file_name, skipped=reason)

    def add_line(self, content: Mapping[str, Any]) -> None:
        """Write a line that is made already."""
        append_whole(self._file, (json.dumps(content) + "\n").encode("ascii"), self._path)
        self._num_lines += 1
        if self._num_lines == self._least:
            publish(self._file, self._path)

    def _write(self, image_id: Any, file_name: str, **content: Any) -> None:
        self.add_line({"image_id": image_id, "file_name": file_name, **content})

    def __enter__(self) -> "JsonLinesWriter":
        self._file = self._stack.enter_context(whole_file(self._path))
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
