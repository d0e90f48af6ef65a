"""JSON from outside."""

import json
from typing import Any, Union

from runtime.messages import said


def parsed(document: Union[str, bytes]) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: it is none, not UTF-8, or nested deeper than Python follows; says what was found, without the place.
    """
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as error:
        start = document[:30] if isinstance(document, str) else document[:30].decode("utf-8", "replace")
        raise ValueError(f"expected JSON, found {start!r} ({said(error)})") from error
