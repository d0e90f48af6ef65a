"""The service in replicas of Ray Serve: the same paths, spread over processes, GPUs and machines.

Ray makes the replicas, gives each request to the one with the least to do, makes more of them as requests come, refuses
what is beyond the queue (429), and replaces replicas: one whose model fails, and all of them, in turn, in an update.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Optional, cast

from runtime.detector import Detector
from runtime.ray_cluster import import_ray, last_line
from runtime.serving.app import create_app
from runtime.serving.options import ServingOptions
from runtime.serving.routes import add_line
from runtime.serving.server import opened_socket
from runtime.serving.service import Service, warm_up
from runtime.values import is_number

NAME = "maskrcnn"
QUEUE_FULL_STATUS, RETRY_AFTER_S = 429, 1
HEALTH_PERIOD_S = 10.0
_HEALTH_TIMEOUT_S = 30.0
_NAMESPACE = "serve"  # of Serve's own actors
# Batches of requests that a replica holds: one that runs, one that is decoded, one that gathers.
_BATCHES_HELD = 3
# A model that cannot be opened is not tried for ever.
_MOST_TRIES = 3


@dataclass(frozen=True)
class ModelFile:
    """A model to be opened in every replica.

    Attributes:
        path: on every node.
        backend, options: of ``Detector``.
    """

    path: str
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what each takes.

    Attributes:
        least, most: where they differ, Ray scales by the number of requests under way.
        cpus, gpus: of each; a part of a GPU lets several share it.
        has_surge: whether, in an update, a replica's successor runs before it ends; there has to be room for it.
        max_ongoing: requests that a replica holds; None: three batches.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    has_surge: bool = False
    max_ongoing: Optional[int] = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"min_replicas, max_replicas: expected 1 or more, and no more of the first, found {self.least} and "
                f"{self.most}"
            )
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(f"{name}: expected a number from 0, found {value!r}")


def application(
    models: Mapping[str, ModelFile],
    serving: ServingOptions,
    replicas: Replicas,
    *,
    name: str = NAME,
    line_score: Optional[float] = None,
) -> Any:
    """Return an application for ``ray.serve.run``.

    Args:
        models: by name, one or more; the first is the default. Each replica has all of them.
        serving: of each replica; ``max_queue`` is the requests that wait in each proxy for one.
        replicas: how many.
        name: of the deployment.
        line_score: ``POST /`` with an image file is answered as a line of ``detections.jsonl``, of this score or more;
            None: it is not.

    Raises:
        RuntimeError: Ray Serve is not installed.
    """
    serve = import_ray("serve", ", or serve from one process: `python -m runtime.serve`").serve
    held = replicas.max_ongoing or _BATCHES_HELD * serving.max_batch
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.least < replicas.most:
        limits = {"min_replicas": replicas.least, "max_replicas": replicas.most}
        scaling = {"autoscaling_config": {**limits, "target_ongoing_requests": serving.max_batch}}
    decorate = serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=held,
        max_queued_requests=serving.max_queue,
        backpressure_config={"status_code": QUEUE_FULL_STATUS, "retry_after_s": RETRY_AFTER_S},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=serving.timeout_s + 5,
        max_constructor_retry_count=_MOST_TRIES,
        max_surge_percent=100 if replicas.has_surge else 0,
        **scaling,
    )
    return decorate(_replica(serve)).bind(dict(models), _held(serving, held), line_score)


def run(target: Any, name: str = NAME) -> None:
    """Have Ray run an application at ``/``; one of that name is replaced, replica after replica.

    Raises:
        RuntimeError: it does not start.
    """
    serve = import_ray("serve", "").serve
    try:
        serve.run(target, name=name, route_prefix="/")
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise RuntimeError(
            f"ray.serve: expected the application {name} to start, found: {_reason(serve, name) or last_line(error)}"
        ) from error


def _reason(serve: Any, name: str) -> str:
    """Return what ended the replicas of an application, in the words of the last one."""
    found = serve.status().applications.get(name)
    messages = [one.message for one in found.deployments.values() if one.message] if found else []
    return last_line(messages[0]) if messages else ""


def listening(ray: Any, address: str, port: int, *, is_own: bool) -> str:
    """Have Ray's proxies listen; return where.

    Args:
        ray: the package, connected.
        address, port: to listen at; where Serve runs in a cluster already, its proxies stay where they are.
        is_own: whether Ray was started for this alone, on this machine.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if any(actor["namespace"] == _NAMESPACE for actor in ray.util.list_named_actors(all_namespaces=True)):
        return "the address of the cluster's Serve"
    if is_own:  # Ray itself would say nothing
        with opened_socket(address, port) as opened:
            port = opened.getsockname()[1]
    ray.serve.start(http_options={"host": address, "port": port})
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def stop(ray: Any, name: str = NAME) -> None:
    """Answer what an application has taken, and end it."""
    ray.serve.delete(name)


def _held(serving: ServingOptions, num_requests: int) -> ServingOptions:
    """Return a replica's options: what Ray gives it, it has room for."""
    return replace(serving, max_queue=num_requests * serving.max_images)


class Health:
    """Whether a service's models still run."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._forgiven = dict.fromkeys(service.models, 0)

    def check(self) -> None:
        """Run each model that failed since the last check on a grey image: an image may be to blame.

        Raises:
            RuntimeError: a model fails on that too, or its thread has ended.
        """
        if not self._service.is_alive:
            raise RuntimeError("a model's thread has ended")
        for name, model in self._service.models.items():
            num_failed = model.batcher.num_failed
            if num_failed > self._forgiven[name]:
                warm_up(cast(Detector, model.detector))  # a replica has opened it itself
                self._forgiven[name] = num_failed


def _replica(serve: Any) -> type:
    """Return the class of a replica; made here, since its decorator is Ray's."""

    class MaskRCNN:
        """Models, and the requests that they get."""

        def __init__(
            self, models: Mapping[str, ModelFile], serving: ServingOptions, line_score: Optional[float]
        ) -> None:
            with ExitStack() as stack:
                detectors = {}
                for name, model in models.items():
                    opened = Detector(
                        model.path, model.backend, batch_size=serving.max_batch, **model.options
                    )
                    detectors[name] = stack.enter_context(opened)
                    warm_up(opened)
                self._app = create_app(detectors, serving)
                self._detectors = stack.pop_all()
            if line_score is not None:
                add_line(self._app, self._app.state.service, line_score)
            self._health = Health(self._app.state.service)

        def __serve_build_asgi_app__(self) -> Any:
            """Return the app; Ray asks for it."""
            return self._app

        async def check_health(self) -> None:
            """Raise where a model fails; Ray then makes another replica."""
            await asyncio.get_running_loop().run_in_executor(None, self._health.check)

        def __del__(self) -> None:
            # Ray has ended the app before, which answered what it took.
            detectors: Optional[ExitStack] = getattr(self, "_detectors", None)
            if detectors is not None:
                detectors.close()

    replica: type = serve.ingress()(MaskRCNN)
    return replica
