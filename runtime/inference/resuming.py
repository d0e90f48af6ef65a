"""Going on where a run ended: what ``detections.jsonl`` has is not detected again.

Batches are those of a run that nothing interrupts, since an image's padding depends on its batch. So a run goes on
where a batch began, and the last whole batch is made again too: if it is not what was written, the model or an option
has changed, and nothing is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.inference.json_lines import LINES
from runtime.messages import said, shown

# Of numbers that another run rounds in another way.
_BOX_PX, _SCORE = 0.1, 1e-3
_MOST_WAITING = 256  # as in runtime.pipeline


class ResumeError(ValueError):
    """The earlier run is not one that this one goes on with."""


@dataclass(frozen=True)
class Earlier:
    """An earlier run's lines.

    Attributes:
        path: of the file; it may be replaced while it is read.
        num_kept: lines that stay.
        num_lines: how many are whole; those beyond ``num_kept`` are made again, and compared.
    """

    path: Path
    num_kept: int = 0
    num_lines: int = 0

    def kept(self) -> Iterator[dict]:
        """Yield the lines that stay."""
        for _, line in zip(range(self.num_kept), whole_lines(self.path)):
            yield line

    def compared(self) -> list[dict]:
        """Return the lines that are made again."""
        if self.num_kept == self.num_lines:
            return []
        return [line for number, line in enumerate(whole_lines(self.path)) if number >= self.num_kept]


def whole_lines(path: Path) -> Iterator[dict]:
    """Yield the lines; one that was cut off at the end is none. Without the file there are none.

    Raises:
        ResumeError: a line is none of ours.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ResumeError(
                    f"--resume {path}: line {number}: expected JSON, found {shown(text)} ({said(error)}); "
                    "leave --resume out: the run then begins anew"
                ) from error
            if not isinstance(line, dict) or not (
                "skipped" in line or isinstance(line.get("detections"), list)
            ):
                raise ResumeError(
                    f"--resume {path}: line {number}: expected an image's detections, found {shown(line)}; "
                    "leave --resume out: the run then begins anew"
                )
            yield line


def earlier_run(out: Path, expected: Sequence[Mapping[str, Any]], batch: int) -> Earlier:
    """Read how far an earlier run into a folder came.

    Args:
        out: the folder.
        expected: of each line of a whole run what is known before it: ``image_id`` and ``file_name``.
        batch: images that run at once.

    Raises:
        ResumeError: its lines are of other sources, or none of ours.
    """
    path = out / LINES
    starts, number, group = [0], 0, _Group(batch)
    for number, line in enumerate(whole_lines(path), 1):
        _check_source(path, number, line, expected)
        if group.ends_with("skipped" not in line) or number == len(expected):
            starts.append(number)
    # The last batch that is whole is made again, to see whether it is still the same.
    return Earlier(path, starts[-2] if len(starts) > 1 else 0, number)


class _Group:
    """Which images run together; see ``runtime.pipeline``."""

    def __init__(self, batch: int) -> None:
        self._batch, self._num, self._num_readable = batch, 0, 0

    def ends_with(self, is_readable: bool) -> bool:
        """Add an image; return whether the group ends with it."""
        self._num += 1
        self._num_readable += is_readable
        waiting = self._num - self._num_readable
        ends = self._num_readable == self._batch or not self._num_readable or waiting >= _MOST_WAITING
        if ends:
            self._num = self._num_readable = 0
        return ends


def _check_source(
    path: Path, number: int, line: Mapping[str, Any], expected: Sequence[Mapping[str, Any]]
) -> None:
    known = expected[number - 1] if number <= len(expected) else {}
    found = {key: line.get(key) for key in known}
    if known and found == dict(known):
        return
    name = known.get("file_name", f"the end of {len(expected)} sources")
    raise ResumeError(
        f"--resume {path}: line {number}: expected {name}, found {shown(line.get('file_name'))}; name the sources "
        "of the run that was interrupted, or leave --resume out: the run then begins anew"
    )


def check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a line that another model or other options made.

    Raises:
        ResumeError: the two differ by more than rounding.
    """
    problem = _difference(before, now)
    if problem is not None:
        raise ResumeError(
            f"--resume {path}: {before.get('file_name')}: expected what this model finds with these options, found "
            f"{problem}; run with the model and the options of the run that was interrupted, or leave --resume out"
        )


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> Optional[str]:
    if ("skipped" in before) != ("skipped" in now):
        return "one that was skipped" if "skipped" in before else "one that was read"
    old, new = before.get("detections", []), now.get("detections", [])
    if len(old) != len(new):
        return f"{len(old)} detections and not {len(new)}"
    for number, (a, b) in enumerate(zip(old, new)):
        try:
            boxes = [*zip(a["bbox"], b["bbox"])]
            same = a["category_id"] == b["category_id"] and abs(a["score"] - b["score"]) <= _SCORE
            same = same and ("segmentation" in a) == ("segmentation" in b)
            if not same or any(not abs(x - y) <= _BOX_PX for x, y in boxes):
                return f"another detection {number}"
        except (KeyError, TypeError) as error:
            return f"detection {number} without {said(error)}"
    return None
