"""Values of options that are a name, or a file's path."""

import os


def looks_like_path(value: str, ending: str) -> bool:
    """Return whether a value means a file: it has the ending, or a separator of folders."""
    separators = {"/", os.sep, os.altsep or os.sep}
    return value.lower().endswith(ending) or any(separator in value for separator in separators)
