"""What Prometheus is told, of one service."""

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

from runtime.serving.batching import Observer

EXTRA = "serve"
# Where prometheus_client looks for a folder: each process has its figures in files there.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SUMS, _GAUGES = ("counter", "histogram"), ("gauge_livesum", "gauge_livemin")
# More than the names of a hundred models take.
_FILE_BYTES = 1 << 20
# From what a refusal takes to what nobody waits for.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def required(name: str) -> Any:
    """Return a module of the extra ``serve``.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"serving: expected the package {name.partition('.')[0]}, found none ({error}); `pip install "
            f"'.[{EXTRA}]'`"
        ) from error


def make_files(folder: Path, number: int) -> None:
    """Make the files of so many processes, each with all of its place: writing to their memory cannot fail later.

    Raises:
        RuntimeError: there is no room.
    """
    kinds = (*_SUMS, *_GAUGES)
    try:
        for path in (_file(folder, kind, index) for index in range(number) for kind in kinds):
            with path.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
    except OSError as error:
        size = number * len(kinds) * _FILE_BYTES >> 20
        raise RuntimeError(
            f"{folder}: expected room for {size} MiB of metrics, found: {error.strerror}; make some, or set TMPDIR"
        ) from error


def forget_moment(folder: Path, index: int) -> None:
    """Have the sums not count what a process showed of the moment, which has ended; what it counted stays."""
    for kind in _GAUGES:
        # Where somebody has removed it, nothing of it is counted either.
        with suppress(FileNotFoundError), _file(folder, kind, index).open("r+b") as file:
            file.write(bytes(4))  # how much of it is used


def _file(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}_{index}.db"


class Metrics:
    """Counters and histograms with a registry of their own: two services in a process do not mix."""

    def __init__(self, folder: Optional[Path] = None, index: int = 0) -> None:
        """Begin to count, or go on.

        Args:
            folder: of ``FOLDER_VARIABLE``, where this is one process of several: ``text`` has the sums over all of
                them, and ``process_…`` of the one that has started them. None: it is alone.
            index: of this process among them. One that takes the place of another goes on with its files.
        """
        client = required("prometheus_client")
        self._client, self.registry = client, client.CollectorRegistry()
        # What each process counts is not what is told.
        self._own: Any = self.registry if folder is None else None
        self._shown: list[tuple[Any, Callable[[], float]]] = []
        if folder is None:
            client.ProcessCollector(registry=self.registry)
            client.GCCollector(registry=self.registry)
        else:
            values = required("prometheus_client.values")
            values.ValueClass = values.MultiProcessValue(lambda: index)
            required("prometheus_client.multiprocess").MultiProcessCollector(self.registry, str(folder))
            client.ProcessCollector(pid=os.getppid, registry=self.registry)
        self._requests = self._counter("requests", "Requests, by endpoint and status.", "endpoint", "status")
        self._refusals = self._counter("refusals", "Requests that got no detections, by reason.", "reason")
        self._images = self._counter("images", "Images that went through the model.", "model")
        self._stages = self._counter("stage_seconds", "Time of each stage, s.", "model", "stage")
        self._seconds = self._histogram(
            "request_seconds", "From the headers to the answer, s.", _SECONDS, "endpoint"
        )
        self._sizes = self._histogram("batch_images", "Images of a batch.", _SIZES, "model")
        self._queued = client.Gauge(
            "maskrcnn_queue_images",
            "Images that wait for the model.",
            ["model"],
            registry=self._own,
            multiprocess_mode="livesum",
        )
        self._ready = client.Gauge(
            "maskrcnn_ready", "1 while requests are taken.", registry=self._own, multiprocess_mode="livemin"
        )

    def add_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            endpoint: the route, not the path: clients do not make names.
            status: of HTTP.
            seconds: from the headers to the answer.
        """
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def add_refusal(self, reason: str) -> None:
        """Count a refusal by its kind's name."""
        self._refusals.labels(reason).inc()

    def observer(self, model: str, queued: Callable[[], float]) -> Observer:
        """Return what counts a model's batches; ``queued`` returns how many images wait."""
        self._show(self._queued.labels(model), queued)
        images, sizes = self._images.labels(model), self._sizes.labels(model)

        def batch(size: int, timings: Mapping[str, float]) -> None:
            images.inc(size)
            sizes.observe(size)
            for stage, milliseconds in timings.items():
                self._stages.labels(model, stage).inc(milliseconds / 1e3)

        return Observer(batch)

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        """Report whether requests are taken."""
        self._show(self._ready, lambda: float(is_ready()))

    def refresh(self) -> None:
        """Write down, for the other processes, what changes without being counted."""
        for gauge, value in self._shown:
            gauge.set(value())

    def _show(self, gauge: Any, value: Callable[[], float]) -> None:
        """Have a gauge show a value whenever it is asked for."""
        if self._own is not None:
            gauge.set_function(value)
        else:
            self._shown.append((gauge, value))

    def text(self) -> tuple[bytes, str]:
        """Return what Prometheus reads, and its content type."""
        self.refresh()
        return self._client.generate_latest(self.registry), self._client.CONTENT_TYPE_LATEST

    def _counter(self, name: str, words: str, *labels: str) -> Any:
        return self._client.Counter(f"maskrcnn_{name}", words, labels, registry=self._own)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Any:
        return self._client.Histogram(f"maskrcnn_{name}", words, labels, buckets=buckets, registry=self._own)
