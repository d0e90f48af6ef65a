"""Values and names in the words of a message, short whatever they are."""

import reprlib
from collections.abc import Sequence
from typing import Any

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def shown(value: Any) -> str:
    """Return a value in one short line."""
    return " ".join(_repr.repr(value).split())


def listed(names: Sequence[str], limit: int = 6, none: str = "none") -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or none) + more


def said(error: BaseException) -> str:
    """Return what an error says in one line, its name where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def printable(text: str) -> str:
    """Return a text with escapes for what no terminal should be sent: control characters, halves of characters.

    A file's name may hold either; line breaks stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in in_utf8(text))


def in_utf8(text: str) -> str:
    """Return a text with the names of files in it decoded as UTF-8, whatever the locale says.

    Bytes that are not UTF-8 stay what ``os.fsdecode`` makes of them.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 image`` and ``2 images``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
