"""How far a build is, read from TensorRT's progress monitor or, before TensorRT 10, from its verbose log."""

from typing import Callable, Optional

from runtime.engine.compat import LOG_CHOSEN, LOG_COSTS, LOG_LAYERS, LOG_ORIGINAL

# phase, steps done, steps in all (0: not known)
Monitor = Callable[[str, int, int], None]


class BuildLog:
    """A listener for ``Library.listening``: keeps errors and warnings, and drives a monitor from verbose lines.

    TensorRT 8 says how many layers are left after its fusions, and then once for each that it looks for kernels.
    Several builds may follow one another, whether or not the one before came to its end.
    """

    def __init__(
        self, monitor: Optional[Monitor] = None, echo: Optional[Callable[[str], None]] = None
    ) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._monitor = monitor
        self._echo = echo
        self._layers = 0
        self._done = 0

    def __call__(self, severity: str, message: str) -> None:
        if severity in ("internal_error", "error"):
            self.errors.append(message.strip())
        elif severity == "warning" and message not in self.warnings:
            self.warnings.append(message)
        if self._echo is not None:
            self._echo(f"[{severity}] {message}")
        if severity == "verbose" and self._monitor is not None:
            self._follow(message)

    def _follow(self, message: str) -> None:
        if LOG_ORIGINAL.match(message):
            self._done = 0
        layers = LOG_LAYERS.match(message)
        # "After reformat layers" comes when the kernels are chosen.
        if layers and not self._done:
            self._layers = int(layers.group(1))
            self._monitor("fusing layers", 0, 0)
        elif LOG_COSTS.match(message):
            self._done += 1
            self._monitor("choosing kernels", min(self._done, self._layers), self._layers)
        elif LOG_CHOSEN in message:
            self._monitor("writing the engine", 0, 0)
