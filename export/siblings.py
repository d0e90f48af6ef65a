"""The packages that are installed beside this one, looked for before the first import from them.

Their names are common. A user's own ``runtime.py`` in the folder where a command is run comes first on Python's path,
and imports from it fail with a message that names neither.
"""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Optional


def check_siblings(names: Iterable[str]) -> None:
    """Refuse to go on where Python finds another package or module by the name of one of ours.

    Raises:
        ImportError: it does.
    """
    folder = Path(__file__).resolve().parents[1]
    for name in names:
        expected, found = folder / name / "__init__.py", _file_of(name)
        if found != expected:
            raise ImportError(
                f"{name}: expected the package of maskrcnn-deploy, {expected}, found {found or 'none'}, which Python "
                "finds first; rename it, run the command in another folder, or take its folder out of PYTHONPATH"
            )


def _file_of(name: str) -> Optional[Path]:
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        file = spec.origin if spec else None
    return Path(file).resolve() if file else None
