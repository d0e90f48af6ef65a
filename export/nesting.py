"""How deep a config's values lie in each other."""

import re
from pathlib import Path

# Of brackets in brackets; Python takes 200.
MAX_DEPTH = 200


def check_depth(path: Path) -> None:
    """Refuse a file that is nested deeper than parsers follow: YAML's ends the process."""
    depth = deepest = 0
    data = path.read_bytes()
    for bracket in re.findall(rb"[\[({\])}]", data):
        depth += 1 if bracket in b"[({" else -1
        deepest = max(deepest, depth)
    runs = re.findall(rb"(?:[-?:][ \t\r\n]+)+", data) if path.suffix != ".py" else []
    deepest = max([deepest, *(len(run.split()) for run in runs)])
    if deepest > MAX_DEPTH:
        raise ValueError(
            f"config {path}: expected values up to {MAX_DEPTH} deep in each other, found {deepest}; mend the config"
        )
