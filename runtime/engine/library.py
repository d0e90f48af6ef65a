"""The TensorRT of this process: module, log and runtime, opened once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

from runtime.engine.compat import TensorRT, load_tensorrt

Listener = Callable[[str, str], None]


class Library:
    """TensorRT with one logger and one runtime for the process.

    TensorRT's registry logs to the first logger there ever was, so there is only this one; whoever wants to read
    along passes a listener to ``listening``.
    """

    def __init__(self, tensorrt: TensorRT) -> None:
        self.tensorrt = tensorrt
        self._listeners: list[Listener] = []
        self.logger = tensorrt.new_logger(self._log)
        self._runtime: Optional[Any] = None
        tensorrt.trt.init_libnvinfer_plugins(self.logger, "")

    def _log(self, severity: str, message: str) -> None:
        for listener in list(self._listeners):
            listener(severity, message)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call ``listener(severity, message)`` for what is logged inside, whichever thread logs it."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def errors(self) -> Iterator[list[str]]:
        """Collect the error messages that are logged inside."""
        messages: list[str] = []

        def listen(severity: str, message: str) -> None:
            if severity in ("internal_error", "error"):
                messages.append(message.strip())

        with self.listening(listen):
            yield messages

    @property
    def runtime(self) -> Any:
        """TensorRT's runtime; needs a GPU."""
        if self._runtime is None:
            self._runtime = self.tensorrt.trt.Runtime(self.logger)
        return self._runtime

    def engine_from(self, data: bytes) -> Any:
        """Return the ``ICudaEngine`` of a serialised engine.

        Raises:
            ValueError: this TensorRT cannot read it (another version or GPU, damaged, a plugin missing).
        """
        with self.errors() as errors:
            engine = self.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise ValueError(
                f"engine: expected one that {self.tensorrt.name} reads, found: {last(errors)}; "
                "build it again on this machine with `python -m runtime.build`"
            )
        return engine


def last(messages: list[str], count: int = 3) -> str:
    """Return the last few messages as one line."""
    return " | ".join(" ".join(message.split()) for message in messages[-count:]) or "no message"


_libraries: dict[Optional[str], Library] = {}
_lock = threading.Lock()


def open_library(module: Optional[str] = None) -> Library:
    """Return this process's TensorRT.

    Raises:
        RuntimeError: it is not installed or does not load.
    """
    with _lock:
        if module not in _libraries:
            _libraries[module] = Library(load_tensorrt(module))
        return _libraries[module]
