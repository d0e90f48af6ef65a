"""A service of Ray Serve over ``Detector``: image files in, detections as JSON out.

``serve run runtime.ray_serve:build model=model.onnx max_replicas=4`` on a cluster, in Python
``serve.run(deployment("model.onnx"))``. ``POST /`` with the bytes of an image file is answered as a line of
``detections.jsonl``; Ray makes replicas, batches requests, scales, watches health, and replaces replicas one after the
other when the application is run again.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from runtime.contract import check_model_file
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.host.preprocess import check_fits
from runtime.images import decode_image
from runtime.ranges import MAX_BATCH, checked_count
from runtime.serving.answers import image_answer

OK, BAD_REQUEST, WRONG_METHOD, TOO_LARGE = 200, 400, 405, 413
MAX_BODY_BYTES = 64 << 20


def deployment(
    model: Union[str, Path],
    *,
    backend: str = "auto",
    batch_size: int = 8,
    batch_wait_s: float = 0.01,
    min_replicas: int = 1,
    max_replicas: int = 1,
    max_ongoing_requests: int = 32,
    max_queued_requests: int = 128,
    cpus: float = 1,
    gpus: float = 0,
    min_score: float = 0.05,
    name: str = "maskrcnn",
    **options: Any,
) -> Any:
    """Return an application for ``ray.serve.run``.

    Args:
        model: path of the model, on every node.
        backend: of ``Detector``.
        batch_size: most requests that run at once in a replica.
        batch_wait_s: how long the first of a batch waits for others.
        min_replicas, max_replicas: where they differ, Ray scales by the number of requests under way.
        max_ongoing_requests: of a replica: those that run, and wait for the next batch.
        max_queued_requests: of each proxy, beyond those; a request more is answered 503.
        cpus, gpus: of each replica; a part of a GPU lets several share it.
        min_score: detections below it are left out; ``reconfigure`` changes it without a restart.
        name: of the deployment.
        options: other keywords of ``Detector``.

    Raises:
        FileNotFoundError: no such model.
        ValueError: numbers that contradict each other.
        RuntimeError: Ray Serve is not installed.
    """
    serve = import_serve()
    path = str(check_model_file(model).absolute())
    checked_count("batch_size", batch_size, MAX_BATCH)
    if not 1 <= min_replicas <= max_replicas:
        raise ValueError(
            f"min_replicas, max_replicas: expected 1 or more, and no more of the first, found {min_replicas} and "
            f"{max_replicas}"
        )
    scaling: dict[str, Any] = {"num_replicas": min_replicas}
    if min_replicas < max_replicas:
        limits = {"min_replicas": min_replicas, "max_replicas": max_replicas}
        scaling = {"autoscaling_config": {**limits, "target_ongoing_requests": batch_size}}
    decorate = serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=max_ongoing_requests,
        max_queued_requests=max_queued_requests,
        user_config={"min_score": min_score, "batch_size": batch_size, "batch_wait_s": batch_wait_s},
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=1,
        **scaling,
    )
    return decorate(_replica(serve)).bind(path, backend, batch_size, options)


def build(args: dict[str, str]) -> Any:
    """Return an application of the words behind ``serve run runtime.ray_serve:build``: ``model=m.onnx gpus=0.5``.

    Raises:
        ValueError: a word is none of ``deployment``'s, or its value no number.
    """
    kinds: dict[str, Any] = {
        **dict.fromkeys(("model", "backend", "name", "device", "precision", "plugins"), str),
        **dict.fromkeys(("batch_size", "min_replicas", "max_replicas", "threads", "streams"), int),
        **dict.fromkeys(("max_ongoing_requests", "max_queued_requests"), int),
        **dict.fromkeys(("batch_wait_s", "cpus", "gpus", "min_score"), float),
    }
    if "model" not in args:
        raise ValueError(
            "model: expected model=FILE, found none; serve run runtime.ray_serve:build model=m.onnx"
        )
    values = {}
    for word, text in args.items():
        if word not in kinds:
            raise ValueError(f"{word}: expected one of {', '.join(kinds)}, found another; leave it out")
        try:
            values[word] = kinds[word](text)
        except ValueError as error:
            raise ValueError(f"{word}: expected a number, found {text!r}") from error
    return deployment(**values)


def import_serve() -> Any:
    """Return the package ray.serve.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise RuntimeError(
            f"ray.serve: expected the Python package, found none ({error}); `pip install 'ray[serve]'`, the extra `ray`"
        ) from error
    return serve


def _replica(serve: Any) -> type:
    """Return the class of a replica; made here, since its decorators are Ray's."""

    class MaskRCNN:
        """A model, and the requests that it gets."""

        def __init__(self, model: str, backend: str, batch_size: int, options: dict[str, Any]) -> None:
            self._detector = Detector(model, backend, batch_size=batch_size, **options)
            self._min_score = 0.0
            self._failure = ""

        def reconfigure(self, config: dict[str, Any]) -> None:
            """Take what may change while the replica runs."""
            self._min_score = float(config["min_score"])
            self._detect.set_max_batch_size(int(config["batch_size"]))
            self._detect.set_batch_wait_timeout_s(float(config["batch_wait_s"]))

        def check_health(self) -> None:
            """Raise where the model failed; Ray then makes another replica."""
            if self._failure:
                raise RuntimeError(self._failure)

        async def __call__(self, request: Any) -> Any:
            """Answer a request."""
            from starlette.responses import JSONResponse

            status, content = await self._answered(request)
            return JSONResponse(content, status)

        async def _answered(self, request: Any) -> tuple[int, dict[str, Any]]:
            if request.method != "POST":
                return WRONG_METHOD, {"error": f"expected POST with an image file, found {request.method}"}
            data = await request.body()
            if len(data) > MAX_BODY_BYTES:
                return TOO_LARGE, {
                    "error": f"expected up to {MAX_BODY_BYTES} bytes, found {len(data)}; send a smaller image"
                }
            try:
                image = await asyncio.get_running_loop().run_in_executor(None, self._decoded, data)
            except ValueError as error:
                return BAD_REQUEST, {"error": str(error)}
            found: Detections = await self._detect(image)
            return OK, await asyncio.get_running_loop().run_in_executor(None, self._written, found)

        @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)
        async def _detect(self, images: list[np.ndarray]) -> Sequence[Detections]:
            return await asyncio.get_running_loop().run_in_executor(None, self._run, images)

        def _run(self, images: Sequence[np.ndarray]) -> list[Detections]:
            try:
                return self._detector(images)
            except RuntimeError as error:
                self._failure = str(error)
                raise

        def _decoded(self, data: bytes) -> np.ndarray:
            image = decode_image(data, self._detector.metadata.load, name="image")
            check_fits(image, self._detector.metadata)
            return image

        def _written(self, found: Detections) -> dict[str, Any]:
            return image_answer(found.filter(self._min_score))

        def __del__(self) -> None:
            detector: Optional[Detector] = getattr(self, "_detector", None)
            if detector is not None:
                detector.close()

    return MaskRCNN
