"""What a case tries, and what came of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np

# In the order in which a report lists them. The first two are what should be; TOLERATED are counted and no failure.
OK, CLEAN = "ok", "clean error"
UNNAMED, FORMLESS = "file not named", "no expected and found"
TRACEBACK, HANG, CRASH, MEMORY = "traceback", "hang", "crash", "memory"
TOUCHED, LOST, LEFT = "input touched", "result lost or mixed", "file left behind"
VERDICTS = (OK, CLEAN, UNNAMED, FORMLESS, TRACEBACK, HANG, CRASH, MEMORY, TOUCHED, LOST, LEFT)


def nothing_lost() -> str:
    """Return that nothing is wrong with a result, of a trial that makes none."""
    return ""


@dataclass(frozen=True)
class Trial:
    """Something to run once.

    Attributes:
        name: what is damaged, in words.
        run: a command (returns its exit status) or a function of the library.
        named: what the message of a refusal may name, one of them.
        is_command: whether ``run`` prints its refusal and returns 2, instead of raising it.
        check: after a success, says what is wrong with its result; empty if nothing is.
        outputs: a folder in which nothing temporary may remain.
        may_change: files of the case's folder that are no inputs.
        may_add: whether it may write files anywhere in the case's folder.
    """

    name: str
    run: Callable[[], Any]
    named: tuple[str, ...]
    is_command: bool = False
    check: Callable[[], str] = nothing_lost
    outputs: Optional[Path] = None
    may_change: tuple[Path, ...] = field(default_factory=tuple)
    may_add: bool = False


# Makes a trial in an empty folder.
Make = Callable[[Path, np.random.Generator], Trial]


@dataclass(frozen=True)
class Case:
    """The name of a trial, from which it is made again."""

    kind: str
    seed: int
    number: int


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        case: which.
        name: what was damaged.
        verdict: one of ``VERDICTS``.
        said: the message, or the traceback.
        seconds: that it took.
    """

    case: Case
    name: str
    verdict: str
    said: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)
