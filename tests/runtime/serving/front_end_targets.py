"""What runs in front ends that do not start; importable, since a process of its own has to find it."""

import os
from multiprocessing.connection import Connection
from typing import Any

from runtime.serving.exchange import NotStarted

STATUS = 7
REASON = "serving: expected the package fastapi_offline, found none"


def ends_at_once(plan: Any, connection: Connection) -> None:
    os._exit(STATUS)


def cannot_begin(plan: Any, connection: Connection) -> None:
    connection.send(NotStarted(REASON))
    os._exit(STATUS)
