"""The service of a front end."""

from typing import Any

from runtime.serving.batching import Observer
from runtime.serving.remote_runner import Link, RemoteRunner
from runtime.serving.service import OpenedModel, Service


class RemoteService(Service):
    """A service whose models are another process's: it is as well as that one."""

    def __init__(self, link: Link, *arguments: Any, **options: Any) -> None:
        """Start the queues; see ``Service``.

        Args:
            link: to the process of the models.
            arguments, options: of ``Service``.
        """
        self._link = link
        super().__init__(*arguments, **options)

    @property
    def is_alive(self) -> bool:
        """Whether every model's batches are formed here, and run there."""
        return self._link.is_alive and super().is_alive

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken; not while the models' process does not answer."""
        return self._link.is_answering and super().is_ready

    def _observer(self, name: str, detector: OpenedModel) -> Observer:
        """Count what the model ran, not what this queue made of it: there images of several queues run together."""
        observer = super()._observer(name, detector)
        if not isinstance(detector.runner, RemoteRunner):
            return observer
        detector.runner.observe = observer.batch
        return Observer()
