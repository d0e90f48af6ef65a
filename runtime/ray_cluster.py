"""Ray as the commands use it: imported where it is needed, connected to, and left again."""

import importlib
import signal
import threading
from typing import Any, Optional

from runtime.interrupts import Interrupted

_MOST_LETTERS = 500


def import_ray(part: str, remedy: str) -> Any:
    """Return the package ray, with one of its libraries loaded.

    Args:
        part: ``data`` or ``serve``.
        remedy: what else can be done, for the message.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        importlib.import_module(f"ray.{part}")
        return importlib.import_module("ray")
    except ImportError as error:
        raise RuntimeError(
            f"ray.{part}: expected the Python package, found none ({error}); `pip install 'ray[{part}]'`, the extra "
            f"`ray`{remedy}"
        ) from error


class Connected:
    """Ray, connected to for as long as the context lasts; what is connected already stays so."""

    def __init__(self, ray: Any, address: Optional[str]) -> None:
        """Connect later.

        Args:
            ray: of ``import_ray``.
            address: of a cluster; None: ``RAY_ADDRESS``, or Ray on this machine.
        """
        self._ray, self._address = ray, address
        self._is_own = not ray.is_initialized()

    def __enter__(self) -> None:
        if not self._is_own:
            return
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        before = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=self._address, **options)
        except Exception as error:  # Ray's own have no other base
            wanted = f"reach {self._address}" if self._address else "start, or to reach RAY_ADDRESS"
            raise RuntimeError(
                f"ray: expected to {wanted}, found: {last_line(error)}; is the machine busy, or the address another?"
            ) from error
        except SystemExit as error:  # of Ray's own handler, which it puts in the place of the command's
            raise Interrupted(signal.SIGTERM) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)

    def __exit__(self, *exception: object) -> None:
        if self._is_own:
            self._ray.shutdown()


def last_line(error: object) -> str:
    """Return what an error of Ray's ends with: what was raised in a worker, behind its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_MOST_LETTERS]
