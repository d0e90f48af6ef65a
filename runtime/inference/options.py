"""What ``runtime.infer`` is asked to write."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InferenceOptions:
    """What is written, and where to.

    Attributes:
        out: the folder.
        score: least score in table and overlays.
        json_score: least score in the files.
        overlays: whether images are drawn on.
    """

    out: Path
    score: float = 0.3
    json_score: float = 0.05
    overlays: bool = True
